"""TFLite files: their FlatBuffers schema, and a bounded reader of them."""
