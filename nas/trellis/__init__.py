"""A space as a layered graph: how many members fit a budget, which is best, and draws of them."""
