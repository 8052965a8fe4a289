"""Work that goes on where it was interrupted: a file of what is done.

It is an ``.npz`` of arrays and one JSON text, bound by hashes to the program, to what is asked of
it, and to the examples that are done. So what it holds is counted once, or refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qmath._version import __version__
from qmath.containers.array_file import read_arrays
from qmath.errors import FileFormatError, OutputError, QmathError
from qmath.integer.fingerprint import fingerprint
from qmath.integer.streams import Part, Stream

__all__ = ["Keepable", "Resumption", "Sink", "keeps_outputs", "outputs_beside"]

Array = NDArray[Any]
_FORMAT = "qmath/resume 1"
_EVERY = 10.0  # seconds from one writing to the next, at least
_SHARE = 20  # and so many times as long as a writing takes


def outputs_beside(path: Path) -> Path:
    """Return the name of the file where a command keeps the outputs of what is done."""
    return path.with_name(f"{path.name}.outputs")


def keeps_outputs(path: Path) -> bool:
    """Whether a file of what is done has outputs beside it.

    Raises
    ------
    FileFormatError
        It is damaged, or no such file.
    """
    return _read(path).get("sink") is not None


class Keepable(Protocol):
    """What a file can keep."""

    def state(self) -> Any:
        """Return what it holds: JSON values, and arrays."""

    def restore(self, state: Any) -> None:
        """Take what `state` returned, in place of nothing."""


class Sink(Keepable, Protocol):
    """Where results go as they are made, in the order of the examples."""

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Take those of further examples."""


class Resumption:
    """A file of what is done, written now and then and when the work ends before its end.

    Parameters
    ----------
    path : path
        Need not exist. After the work, whoever uses its results calls `remove`.
    sink : Sink, optional
        Where results go besides.

    Attributes
    ----------
    path : Path
    done : int
        How many examples are.

    Raises
    ------
    QmathError
        It is no path.
    """

    def __init__(self, path: str | os.PathLike[str], sink: Sink | None = None) -> None:
        try:
            self.path, self.done = Path(path), 0
        except TypeError:
            raise QmathError(f"resume must be the path of a file, got {path!r}") from None
        self._sink = sink
        self._facts: dict[str, Any] = {}
        self._hashes: dict[str, Any] = {}
        self._expected = ""  # the hash of the examples that the file says are done
        self._next = 0.0

    def begin(self, job: Any, stream: Stream, total: Keepable) -> None:
        """Restore what is done of a job, if the file is there.

        Raises
        ------
        QmathError
            The file is of something else, or no such file.
        """
        state = dict(job.__getstate__())
        self._facts = {
            "model": fingerprint(state.pop("_program")),
            "options": fingerprint([type(job).__name__, state, self._sink is not None]),
            "length": stream.length,
            "versions": [__version__, np.__version__],
        }
        if not self.path.exists():
            if (new := _unfinished(self.path)).exists():
                raise QmathError(
                    f"{new} exists, and {self.path} does not, which is written under that name "
                    f"first; remove {new} if nobody needs it, or give --resume (resume=) another "
                    "name"
                )
            return
        found = _read(self.path)
        for name, words in {
            "model": "of another model", "options": "of other options",
            "length": "of other data", "versions": "of other versions of qmath or NumPy",
        }.items():  # fmt: skip
            if found.get(name) != self._facts[name]:
                raise self._stale(words)
        try:
            self.done, self._expected = int(found["examples"]), str(found["data"])
            total.restore(found["total"])
            if self._sink is not None:
                self._sink.restore(found["sink"])
        except QmathError as error:  # of the outputs
            raise FileFormatError(f"{error}; {_anew(self.path)}") from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _damaged(self.path) from error

    def rest(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield what is left of the data, whose beginning must be that which is done.

        Raises
        ------
        QmathError
            It is not.
        """
        left = self.done
        for given in parts:
            part = given
            if left:
                old, part = part.cut_at(min(left, len(part)))
                self._add(old)
                left -= len(old)
                if not left and self._digest() != self._expected:
                    raise self._stale("of other data")
            if len(part) or not self.done:
                yield part
        if left:
            raise self._stale("of other data")

    def count(self, parts: Iterable[Part], total: Keepable) -> None:
        """Count examples that follow, and are in the total."""
        for part in parts:
            self._add(part)
            self.done += len(part)
        if time.monotonic() >= self._next:
            self.save(total)

    def save(self, total: Keepable) -> None:
        """Write the file.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        start = time.monotonic()
        tree = {
            "format": _FORMAT, **self._facts, "examples": self.done, "data": self._digest(),
            "total": total.state(), "sink": None if self._sink is None else self._sink.state(),
        }  # fmt: skip
        _write(self.path, tree)
        now = time.monotonic()
        self._next = now + max(_EVERY, _SHARE * (now - start))

    def remove(self) -> None:
        """Remove the file: its results are where they belong."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _add(self, part: Part) -> None:
        for name, x in sorted({**part.inputs, **part.beside}.items()):
            if name not in self._hashes:
                kind = f"{name} {x.dtype.str} {x.shape[1:]}"
                self._hashes[name] = hashlib.sha256(kind.encode())
            self._hashes[name].update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)

    def _digest(self) -> str:
        return fingerprint({name: x.hexdigest() for name, x in sorted(self._hashes.items())})

    def _stale(self, words: str) -> QmathError:
        return QmathError(
            f"{self.path} is {words}, so nothing can go on from it; {_anew(self.path)}, or give "
            "the model, data and options that it was made with"
        )


def _write(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree so that the name holds the old one or all of the new."""
    arrays: dict[str, Any] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"x{len(arrays)}"] = value
            return {"array": len(arrays) - 1}
        return value.item()  # a NumPy scalar

    text = json.dumps(tree, default=plain)
    unfinished = _unfinished(path)
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, state=np.frombuffer(text.encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; check the folder's permissions and "
            "free space"
        ) from error


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _read(path: Path) -> dict[str, Any]:
    try:
        arrays: Callable[[str], Array] = read_arrays(path).__getitem__
    except FileFormatError as error:
        raise _damaged(path) from error

    def whole(value: dict[str, Any]) -> Any:
        return arrays(f"x{value['array']}") if set(value) == {"array"} else value

    try:
        tree = json.loads(arrays("state").tobytes(), object_hook=whole)
    except (KeyError, ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
        raise _damaged(path)
    return tree


def _damaged(path: Path) -> FileFormatError:
    return FileFormatError(
        f"{path} is damaged, or does not hold what is done of a run; if --resume (resume=) wrote "
        f"it, {_anew(path)}, else give the name of a new file"
    )


def _anew(path: Path) -> str:
    outputs = outputs_beside(path)
    return f"remove {f'{path} and {outputs}' if outputs.exists() else path} to begin anew"
