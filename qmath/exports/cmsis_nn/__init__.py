"""The ``cmsis-nn`` format: what CMSIS-NN's layers take, and calls of them."""
