"""Standard output and error, whatever becomes of them: closed, full, or a pipe without a reader."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from qmath.cli.text import printable
from qmath.errors import QmathError

__all__ = [
    "BROKEN_PIPE",
    "DIFFERS",
    "ERROR",
    "INTERRUPTED",
    "Held",
    "complain",
    "discard",
    "document",
    "dumps",
    "failed",
    "occupy",
]

DIFFERS = 1
ERROR = 2
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13  # as a shell reports a program that SIGPIPE ended
_VERSION = 2  # of results.schema.json


class Held(io.TextIOWrapper):
    """What takes the place of standard output until a verb has written its files.

    Parameters
    ----------
    stream : text file or None
        The real one; ``None`` if there is none, as when it was closed before the program started.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        # A name may not fit the encoding.
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self._content = io.BytesIO()
        super().__init__(self._content, encoding, errors="backslashreplace")
        self._stream = stream

    def isatty(self) -> bool:
        """Whether the real one is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def release(self, status: int) -> int:
        """Write what was held to the real one; return the exit status of the program.

        A reader that has gone, such as ``head``, hides no status but 0.
        """
        self.flush()
        content = self._content.getvalue()
        return self.pour([content], status) if content else status

    def pour(self, parts: Iterable[bytes], status: int = 0) -> int:
        """Write to the real one at once, as `release` does, what may be too much to be held."""
        try:
            if self._stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            for content in parts:
                if hasattr(self._stream, "buffer"):
                    self._stream.buffer.write(content)
                else:  # a notebook's
                    self._stream.write(content.decode(self.encoding))
            self._stream.flush()
        except QmathError:  # of what makes the parts
            raise
        except BrokenPipeError:
            discard(self._stream)
            return status or BROKEN_PIPE
        except (OSError, ValueError) as error:
            discard(self._stream)
            reason = getattr(error, "strerror", None) or error
            complain(f"error: cannot write to standard output: {reason}")
            return max(status, ERROR)
        return status


def complain(message: str) -> None:
    """Write one line to standard error, as far as there is one."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"qmath: {printable(message)}\n")
            sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)


def failed(message: str, status: int = ERROR, *, as_json: bool) -> int:
    """Say in one line why the program ends, and in a document; return its exit status."""
    complain(message if status == INTERRUPTED else f"error: {message}")
    if as_json:
        print(dumps(document("error", status, {"error": message})))
    return status


def document(name: str, status: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Return `fields` as a document that results.schema.json describes under `name`."""
    return {"schema": f"qmath/{name}", "version": _VERSION, "status": status, **fields}


def dumps(content: dict[str, Any]) -> str:
    """Return JSON; numbers that are not finite, for which it has no words, are null."""
    import json

    return json.dumps(_plain(content), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    number = value.item() if hasattr(value, "item") else value  # NumPy's
    return None if isinstance(number, float) and not math.isfinite(number) else number


def occupy() -> None:
    """Open the null device where a standard stream is closed, so that no file gets its number.

    What a library prints would go to that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def discard(stream: TextIO | None) -> None:
    """Let what a stream still holds, and could not write, go nowhere when the program ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)
