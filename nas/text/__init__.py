"""Texts: captions as arrays, tokens of texts, and the tower that embeds them beside pictures."""
