"""Layers rebuilt from the ops that serve, entered by `rebuild`; without this room: no graph."""
