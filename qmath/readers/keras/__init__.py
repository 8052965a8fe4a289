"""Keras's files and live models to tensors with their quantizers' ranges."""
