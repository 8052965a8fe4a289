"""What kernels get wrong, each computed: a layer's integers with one mistake."""
