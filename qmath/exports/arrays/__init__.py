"""Formats that hold arrays for programs to read."""
