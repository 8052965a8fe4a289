"""The integer model: folded, run and compared, with the rounding under control."""
