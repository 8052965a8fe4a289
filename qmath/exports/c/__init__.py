"""The ``c`` format: C99 sources of the integers, of the integer model, and a check of both."""
