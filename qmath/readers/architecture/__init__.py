"""Keras's model config (JSON) to layers and the graph between them."""
