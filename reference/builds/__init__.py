"""Other builds of TensorFlow than the one that is installed: fetched, run, compared with qmath."""
