"""Where a `qmath.bundle.Bundle` goes: one small module for each format.

A format is a module with ``write(bundle, file, **options)``, which writes to an open binary file,
deterministically, and ``read(file)``, which returns what `qmath.verify` checks.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from numpy.typing import NDArray

from qmath._source import as_model
from qmath.bundle import Bundle, quantize_model
from qmath.errors import OutputError
from qmath.exports.atomic import check_output, replacing
from qmath.types import QatModel

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer

__all__ = ["FORMATS", "Exporter", "export", "exporter"]

# File name suffix, which is also the format's name, to module.
FORMATS: dict[str, str] = {"npz": "qmath.exports.npz"}


class Exporter(Protocol):
    """What a format's module offers."""

    def write(self, bundle: Bundle, file: BinaryIO, **options: Any) -> None:
        """Write `bundle` to `file`."""

    def read(self, file: BinaryIO) -> tuple[dict[str, Any], Mapping[str, NDArray[Any]]]:
        """Return the manifest of what `write` wrote, and its arrays, read one by one."""


def exporter(output: str | os.PathLike[str], format: str | None = None) -> Exporter:
    """Return the module that writes `format`, or what the suffix of `output` says.

    Raises
    ------
    OutputError
        There is no such format.
    """
    key = (format if format is not None else Path(output).suffix[1:]).lower()
    if key not in FORMATS:
        known = ", ".join(FORMATS)
        what = f"format {format!r}" if format is not None else f"{output}: the suffix {'.' + key!r}"
        raise OutputError(f"{what} is not one that qmath writes; use one of: {known}")
    return cast("Exporter", importlib.import_module(FORMATS[key]))


def export(
    model: str | os.PathLike[str] | QatModel,
    output: str | os.PathLike[str],
    *,
    quantizers: Mapping[str, Quantizer] | None = None,
    format: str | None = None,
    layouts: Sequence[str] = (),
    strict: bool = False,
    overwrite: bool = False,
    force: bool = False,
) -> Bundle:
    """Write the integers of a model to a file.

    Parameters
    ----------
    model : path or QatModel
        What `qmath.load` reads, or what it or `qmath.from_keras` returned.
    output : path
        The file to write. It appears when it is complete, under this name, or not at all.
    quantizers : mapping, optional
        Settings that are in no file, as for `qmath.load`.
    format : str, optional
        Default: by the suffix of `output`. There is ``"npz"``.
    layouts : sequence of str
        Axis orders, see `qmath.quantize_model`.
    strict : bool
        Refuse a model in which the settings of an activation are unknown.
    overwrite : bool
        Replace `output` if it exists.
    force : bool
        Let `quantizers` win where the file says something else.

    Returns
    -------
    Bundle
        What was written.

    Raises
    ------
    QmathError
        See `qmath.load` and `qmath.quantize_model`; nothing is written.
    OutputError
        The output cannot be written; what was there before is untouched.

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
    module = exporter(target, format)
    sources = () if isinstance(model, QatModel) else (model,)
    check_output(target, overwrite=overwrite, sources=sources)
    bundle = quantize_model(
        as_model(model, quantizers, force=force), strict=strict, layouts=layouts
    )
    with replacing(target, overwrite=overwrite) as file:
        module.write(bundle, file)
    return bundle
