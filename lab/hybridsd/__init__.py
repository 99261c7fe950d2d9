"""Hybrid SD (card follows)."""
