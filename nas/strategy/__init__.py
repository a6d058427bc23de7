"""The strategy of a search: which architectures it tries next, and what it predicts of others."""
