"""Training of supernets, and pretrained weights to start from."""
