"""What train.py is made of: pixels, recipes, evaluation, several processes."""
