"""The exported C, compiled and loaded: what is shipped, run on data."""
