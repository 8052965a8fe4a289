"""The version of the package; its metadata, its manifests and its command line read it here."""

__version__ = "0.2.0"
