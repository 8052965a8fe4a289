"""The two ONNX formats, and the network that both write."""
