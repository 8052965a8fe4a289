"""The arithmetics in which the integer model runs."""
