"""A space as a layered graph: how many members fit a budget, the best, and draws among them."""
