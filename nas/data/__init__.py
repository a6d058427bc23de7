"""Data sets with a train, a search and a test split: folders of images, and the shipped scenes."""
