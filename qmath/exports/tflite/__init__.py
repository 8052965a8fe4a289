"""The ``tflite`` format: an integer model in TFLite's operations, with training's integers."""
