"""Every layer class and networks of public architectures, from training to the exported C."""
