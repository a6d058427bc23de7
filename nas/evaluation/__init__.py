"""How accurate a subnet is with inherited weights, and how to find out with fewer images."""
