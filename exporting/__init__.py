"""What export.py is made of: the gate, and what becomes of a network on its way into a file."""
