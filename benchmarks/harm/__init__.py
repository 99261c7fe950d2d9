"""What `reliability.py` does to the lab: a file a part."""
