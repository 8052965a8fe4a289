"""Layers to integer accumulators, and where each is rounded."""
