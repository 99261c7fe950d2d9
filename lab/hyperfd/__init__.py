"""HyperFD."""
