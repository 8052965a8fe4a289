"""TensorFlow checkpoints to tensors with their quantizers' ranges."""
