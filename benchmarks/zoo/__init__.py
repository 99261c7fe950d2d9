"""What `benchmarks/registry.py` tries, and how."""
