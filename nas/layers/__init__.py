"""The layers that networks are built of, elastic in size: all code that a latency depends on."""
