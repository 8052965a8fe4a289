"""What TensorFlow and TFMOT say: the referee of every number in qmath, not part of its wheel."""
