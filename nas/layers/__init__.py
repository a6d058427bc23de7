"""The layers that networks are built of, elastic in size, and the network they make."""
