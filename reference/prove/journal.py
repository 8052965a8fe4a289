"""Finished tasks on disk, one line each: what an interrupted run need not do again."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Journal", "JournalError"]


class JournalError(Exception):
    """The journal belongs to another run."""


class Journal:
    """A file of JSON lines: first what is proved and where, then a line for each finished task.

    Parameters
    ----------
    path : path
    environment : dict
        Versions and processor of this run; records of another one are not mixed in.
    resume : bool
        Keep what the file holds, instead of starting anew.

    Raises
    ------
    JournalError
        `resume`, and the file is of another environment.
    """

    def __init__(self, path: Path, environment: dict[str, Any], resume: bool) -> None:
        self._path = path
        self.finished: dict[str, dict[str, Any]] = {}
        lines = path.read_text("utf-8").splitlines() if resume and path.exists() else []
        before = json.loads(lines[0]) if lines else environment
        if before != environment:
            changed = sorted(key for key in environment if before.get(key) != environment[key])
            raise JournalError(
                f"{path} is of a run with other {', '.join(changed)}; run without --resume"
            )
        path.write_text(json.dumps(environment) + "\n", "utf-8")
        for line in lines[1:]:
            with suppress(json.JSONDecodeError):  # a line that a crash cut off: to do again
                self.add(json.loads(line))

    def add(self, entry: dict[str, Any]) -> None:
        """Write a finished task down: its name, its records, the seconds it took."""
        self.finished[entry["task"]] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def remove(self) -> None:
        """Delete the file, when the certificate holds all that it held."""
        self._path.unlink()
