"""Directed vectors: for each step inputs that find mistakes, and what it has to make of them."""
