"""TensorFlow's ops in NumPy, and the arithmetic under them: files and models are unknown here."""
