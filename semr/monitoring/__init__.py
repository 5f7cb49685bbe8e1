"""Seeing: is the input still what the model was trained on, is the answer right, and what came in lately."""
