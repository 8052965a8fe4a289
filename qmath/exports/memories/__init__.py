"""Formats of FPGA memories, and the testbench that reads them."""
