"""Layers that run in float32 with their quantized weights: what Keras computes, one class each."""
