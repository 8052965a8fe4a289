"""File containers: bytes to lazy arrays, attributes and JSON, with no word of training in them."""
