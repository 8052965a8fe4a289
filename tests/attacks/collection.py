"""Files to attack with, each a function that writes one, by the functions' names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Build = Callable[[Path], object]


class Collection:
    """What has to be refused, with a pattern of the error's message; and what has to be read."""

    def __init__(self) -> None:
        self.attacks: dict[str, tuple[Build, str]] = {}
        self.read: dict[str, Build] = {}

    def refused(self, message: str) -> Callable[[Build], Build]:
        """Enter a function that writes a hostile file."""

        def enter(build: Build) -> Build:
            self.attacks[build.__name__] = build, message
            return build

        return enter

    def is_read(self, build: Build) -> Build:
        """Enter a function that writes an odd file that is right."""
        self.read[build.__name__] = build
        return build
