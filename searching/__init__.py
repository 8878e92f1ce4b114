"""What search.py is made of. Nothing in it needs torch."""
