"""Handwritten digits: a convolutional network that evolves with the digits it sees."""
