"""Facts about each quantizer, from files and from the user, to its settings."""
