"""TFLite files → a `QatModel` that holds the integers, scales and zero points of the file."""
