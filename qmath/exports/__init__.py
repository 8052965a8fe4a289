"""Where a `qmath.exports.bundle.Bundle` goes: one small module for each format.

A format of one file is a module with ``write(bundle, file, **options)``, which writes to an open
binary file, deterministically, and ``read(file)``, which returns what `qmath.verify` checks; with
``differences(file, bundle, manifest, **options)`` where the file holds a network besides. One
without ``read`` and without options is written again by `qmath.verify`, and compared. A format of
several files is a module with ``render(bundle, **options)``, which yields the name and the bytes
of each; `qmath.verify` renders again and compares. A module may also hold ``VECTORS``, how many
test vectors its format runs by itself, and ``STORED_INTEGERS = True``, if it can hold integers that
Keras itself quantized. A package of yours adds a format by an entry point of the group
``qmath.exports``: its name is the format's, its value such a module.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

from numpy.typing import NDArray

from qmath._progress import Progress
from qmath.errors import OutputError, QmathError
from qmath.exports.bundle import Bundle, quantize_model
from qmath.exports.output import folder
from qmath.exports.output.atomic import check_output, replacing, replacing_folder
from qmath.model import QatModel
from qmath.readers.source import as_model

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer

__all__ = [
    "FORMATS",
    "FileExporter",
    "FileWriter",
    "FolderExporter",
    "NetworkExporter",
    "check_options",
    "export",
    "exporter",
    "formats",
]

# A format's name, which is also the suffix of its files, to its module.
FORMATS: dict[str, str] = {
    "npz": "qmath.exports.arrays.npz",
    "safetensors": "qmath.exports.arrays.safetensors",
    "bin": "qmath.exports.arrays.bin",
    "c": "qmath.exports.c",
    "cmsis-nn": "qmath.exports.cmsis_nn",
    "h5": "qmath.exports.arrays.h5",
    "onnx": "qmath.exports.onnx.qdq",
    "qonnx": "qmath.exports.onnx.qonnx",
    "mem": "qmath.exports.memories.mem",
    "hex": "qmath.exports.memories.hex",
    "coe": "qmath.exports.memories.coe",
    "mif": "qmath.exports.memories.mif",
}
_GROUP = "qmath.exports"


class FileWriter(Protocol):
    """What the module of a format of one file offers."""

    def write(self, bundle: Bundle, file: BinaryIO, **options: Any) -> None:
        """Write `bundle` to `file`."""


@runtime_checkable
class FileExporter(FileWriter, Protocol):
    """The same of a format whose files say what they hold."""

    def read(self, file: BinaryIO) -> tuple[dict[str, Any], Mapping[str, NDArray[Any]]]:
        """Return the manifest of what `write` wrote, and its arrays, read one by one."""


@runtime_checkable
class NetworkExporter(FileExporter, Protocol):
    """The same of a format whose files hold a network.

    `read` returns the arrays that are parts of the network; in the manifest, ``export`` holds the
    options of `write`.
    """

    def differences(
        self, file: BinaryIO, bundle: Bundle, manifest: Mapping[str, Any], **options: Any
    ) -> Iterable[str]:
        """Yield in words where the network in `file` differs from the one that `write` writes."""


@runtime_checkable
class FolderExporter(Protocol):
    """What the module of a format of several files offers."""

    def render(self, bundle: Bundle, **options: Any) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each file; ``manifest.json`` is written by qmath."""


def formats() -> dict[str, str]:
    """Return the name and the module of every format, those of other packages included.

    Raises
    ------
    OutputError
        Another package's format has the name of one of qmath's.
    """
    from importlib import metadata  # slow to import, and asked for other packages' formats only

    found = dict(FORMATS)
    for point in metadata.entry_points(group=_GROUP):
        if found.setdefault(point.name, point.value) != point.value:
            raise OutputError(
                f"the format {point.name!r} is both {found[point.name]} and {point.value}; "
                "uninstall one of the packages"
            )
    return found


def exporter(
    output: str | os.PathLike[str], format: str | None = None
) -> tuple[str, FileWriter | FolderExporter]:
    """Return the name and the module of `format`, or of what the suffix of `output` says.

    A name of one of qmath's own means that one, whatever other packages add.

    Raises
    ------
    OutputError
        There is no such format.
    """
    key = (format if format is not None else Path(output).suffix[1:]).lower()
    known = FORMATS if key in FORMATS else formats()
    if key not in known:
        if format is None and not key:
            raise OutputError(
                f"{output} has no suffix that says the format; add one, or give --format "
                f"(format=); use one of: {', '.join(known)}"
            )
        what = f"format {format!r}" if format is not None else f"{output}: the suffix {'.' + key!r}"
        raise OutputError(f"{what} is not one that qmath writes; use one of: {', '.join(known)}")
    return key, importlib.import_module(known[key])


def export(
    model: str | os.PathLike[str] | QatModel,
    output: str | os.PathLike[str],
    *,
    quantizers: Mapping[str, Quantizer] | None = None,
    format: str | None = None,
    layouts: Sequence[str] = (),
    signed: bool = True,
    vectors: int | None = None,
    multiplier_bits: int = 31,
    strict: bool = False,
    overwrite: bool = False,
    force: bool = False,
    architecture: str | os.PathLike[str] | None = None,
    isolate: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Bundle:
    """Write the integers of a model, or the whole integer model, to a file or folder.

    Parameters
    ----------
    model : path or QatModel
        What `qmath.load` reads, or what it or `qmath.from_keras` returned.
    output : path
        The file to write, or the folder where the format has several files. It appears when it is
        complete, under this name, or not at all.
    quantizers : mapping, optional
        Settings that are in no file, as for `qmath.load`.
    format : str, optional
        Default: by the suffix of `output`. `formats` lists them.
    layouts : sequence of str
        Axis orders, see `qmath.quantize_model`.
    signed : bool
        Two's complement integers of the weights, or TensorFlow's unsigned count.
    vectors : int, optional
        How many golden test vectors to write, with every layer's integers. Default: as many as
        the format runs by itself, mostly none.
    multiplier_bits : int
        Width of the integer model's multipliers, 8 to 31.
    strict : bool
        Refuse a model in which the settings of an activation are unknown.
    overwrite : bool
        Replace `output` if it exists; a folder only if qmath wrote all that is in it.
    force : bool
        Let `quantizers` win where the file says something else.
    architecture : path, optional
        The file that holds the model's architecture, as for `qmath.load`.
    isolate : bool
        Let another process read HDF5 files, as for `qmath.load`.
    progress : callable, optional
        Called with how many tensors are quantized, and of how many; they are then written.
    **options
        Of the format: the arguments of its module's ``write`` or ``render``.

    Returns
    -------
    Bundle
        What was written.

    Raises
    ------
    QmathError
        See `qmath.load` and `qmath.quantize_model`; test vectors are asked of a model that does
        not run in integers. Nothing is written.
    OutputError
        The output cannot be written, and what was there before is untouched; the format does not
        exist, or has no such option.

    Examples
    --------
    >>> import tempfile
    >>> import qmath
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bundle = qmath.export("reference/samples/question.h5", f"{folder}/model.npz")
    >>> bundle.tensors["conv1/kernel"].values.dtype
    dtype('int8')
    """
    target = Path(output)
    name, module = exporter(target, format)
    check_options(name, module, options)
    sources = (model.source,) if isinstance(model, QatModel) else (model, architecture)
    check_output(
        target, overwrite=overwrite, sources=sources, is_folder=isinstance(module, FolderExporter)
    )
    loaded = as_model(model, quantizers, force=force, architecture=architecture, isolate=isolate)
    by_keras = [tensor.name for tensor in loaded.tensors.values() if tensor.stored]
    if by_keras and not getattr(module, "STORED_INTEGERS", False):
        raise OutputError(
            f"Keras itself quantized {', '.join(by_keras)}, in a convention that the format "
            f"{name!r} does not state (the real values are integers / scale); export to npz"
        )
    bundle = quantize_model(
        loaded,
        strict=strict,
        layouts=layouts,
        signed=signed,
        vectors=getattr(module, "VECTORS", 0) if vectors is None else vectors,
        multiplier_bits=multiplier_bits,
        progress=progress,
    )
    if vectors and bundle.program is None:
        raise QmathError(
            f"test vectors need an integer model, and there is none; notes: {bundle.obstacles}"
        )
    if isinstance(module, FolderExporter):
        with replacing_folder(target, overwrite=overwrite) as place:
            folder.write(place, name, bundle, module.render(bundle, **options), options)
    else:
        with replacing(target, overwrite=overwrite) as file:
            module.write(bundle, file, **options)
    return bundle


def check_options(
    name: str, module: FileWriter | FolderExporter, options: Mapping[str, Any]
) -> None:
    """Raise unless a format has every one of the options."""
    function = module.render if isinstance(module, FolderExporter) else module.write
    parameters = list(inspect.signature(function).parameters.values())
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            has = f"its options are: {', '.join(known)}" if known else "it has none"
            raise OutputError(f"the format {name!r} has no option {option!r}; {has}")
