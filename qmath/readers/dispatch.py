"""A path → what its file holds: the one place that knows every reader.

A reader is a module of this package with

    def read(path: str, architecture: Architecture | None) -> Reading

`path` is what the user gave, of the kind that `sniff` names; `architecture` is what the user gave
beside it, for files that hold none. A reader that needs none refuses it (`refuse_architecture`).
Those that need the HDF5 library take `isolate`, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from qmath.containers.sniff import Kind, sniff
from qmath.containers.source_files import SourceFiles
from qmath.errors import QmathError
from qmath.readers.agreement import check_agreement, check_shapes
from qmath.readers.architecture.architecture import Architecture
from qmath.readers.settings.facts import Found

__all__ = ["Reading", "read_model", "refuse_architecture"]

# By kind; imported when such a file is met, as each needs libraries of its own.
_READERS: Mapping[Kind, str] = {
    "hdf5": "qmath.readers.keras.h5",
    "keras_zip": "qmath.readers.keras.archive",
    "saved_model": "qmath.readers.saved_model.reader",
    "tf_checkpoint": "qmath.readers.tensorflow.checkpoint",
}


_BY_HDF5: frozenset[Kind] = frozenset({"hdf5", "keras_zip"})


@dataclass(frozen=True, eq=False)
class Reading:
    """What a file holds, before anything is known of the quantizers.

    Attributes
    ----------
    found : tuple of Found
        All tensors in the model's order, named as everywhere: ``<layer path>/<weight>``. What the
        file proves (a graph's fake-quant ops) is in `Found.facts`.
    architecture : Architecture
        Layers and graph, empty if unknown.
    files : SourceFiles
        The files that were read.
    notes : tuple of str
        For the user, besides those of the architecture.
    """

    found: tuple[Found, ...]
    architecture: Architecture
    files: SourceFiles
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """A module that reads one kind of file."""

    def read(self, path: str, architecture: Architecture | None, **options: bool) -> Reading:
        """Read the file."""


def read_model(path: str, architecture: str | None = None, *, isolate: bool = False) -> Reading:
    """Read a file of any kind, told apart by content.

    All bytes of untrusted files are read in here, except the values of lazy tensors.

    Parameters
    ----------
    path : str
        As `sniff` takes it.
    architecture : str, optional
        Path of the file that holds the model's architecture.
    isolate : bool
        Let another process read HDF5 files, whose library crashes or hangs on some damaged ones.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or of a kind that is not read.
    """
    kind = sniff(path)
    beside = None
    if architecture is not None:
        from qmath.readers.architecture.architecture_file import read_architecture_file

        beside = read_architecture_file(architecture, isolate=isolate)
    reader: Reader = import_module(_READERS[kind])
    reading = reader.read(path, beside, **({"isolate": isolate} if kind in _BY_HDF5 else {}))
    if beside is not None:
        check_agreement(reading.found, beside, path)
    else:
        check_shapes(reading.found, reading.architecture, path)
    return reading


def refuse_architecture(path: str, architecture: Architecture | None) -> None:
    """Raise if an architecture was given for a file that holds its own."""
    if architecture is not None:
        raise QmathError(
            f"{path} holds its own architecture; leave {architecture.source or 'the other'} out"
        )
