"""An independent check of an exported file against the model.

Nothing here, and nothing in `qmath.comparison`, calls the code that exports.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmath._source import as_model
from qmath.comparison import SAME_OPTIONS, USER, Comparison, object_in
from qmath.errors import FileFormatError, MissingSettingsError
from qmath.types import QatModel

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes
    ----------
    tensors : int
        Tensors of the model that were compared.
    elements : int
        Integers and floats compared one by one.
    near_ties : int
        Integers so close to a rounding tie that TensorFlow's float32 arithmetic decided.
    differing : int
        Elements that differ.
    differences : tuple of str
        Every difference in words; of each array the first element.
    assumed : tuple of str
        Tensors whose settings are not in the model, so that those count which the file says the
        user told the export.
    """

    tensors: int
    elements: int
    near_ties: int
    differing: int
    differences: tuple[str, ...]
    assumed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the file holds what the model says."""
        return not self.differences


def verify(
    model: str | os.PathLike[str] | QatModel,
    output: str | os.PathLike[str],
    *,
    quantizers: Mapping[str, Quantizer] | None = None,
    format: str | None = None,
    force: bool = False,
) -> Verification:
    """Check an exported file against the model it was made from.

    Parameters
    ----------
    model : path or QatModel
        What was exported.
    output : path
        The exported file.
    quantizers, format, force
        As they were given to `qmath.export`.

    Returns
    -------
    Verification
        Its `ok` says whether all is as it should be.

    Raises
    ------
    FileFormatError
        `output` is damaged or not what qmath wrote.
    MissingSettingsError
        The settings of a weight are unknown.

    Notes
    -----
    Compared are: names, shapes and axis orders, dtypes; scales, bit by bit; zero points; every
    integer; every float, bit by bit; every field of the manifest that the model determines.

    Examples
    --------
    >>> import qmath
    >>> qmath.verify("reference/samples/question.h5", "model.npz").ok  # doctest: +SKIP
    True
    """
    from qmath.exports import exporter

    source = as_model(model, quantizers, force=force)
    path = Path(output)
    reader = exporter(path, format)
    check = Comparison(path.name)
    try:
        with open(path, "rb") as file:
            manifest, arrays = reader.read(file)
            entries = object_in(manifest, "tensors", path.name)
            source, assumed = _with_told_settings(source, entries)
            check.compare_model(source, manifest, arrays)
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}") from error
    return Verification(
        check.tensors,
        check.elements,
        check.near_ties,
        check.differing,
        tuple(check.differences),
        assumed,
    )


def _with_told_settings(
    model: QatModel, entries: dict[str, Any]
) -> tuple[QatModel, tuple[str, ...]]:
    """Complete what the model leaves open with what the user told the export, as its file says.

    Nothing else can be asked for these settings; whether scales and integers follow from them is
    still checked.
    """
    tensors, assumed = dict(model.tensors), []
    for name, tensor in model.tensors.items():
        entry = entries.get(name)
        if tensor.role == "float" or tensor.spec.is_complete or not isinstance(entry, dict):
            continue
        evidence = entry.get("evidence")
        told: dict[str, Any] = {
            field: entry.get(field)
            for field, source in (evidence if isinstance(evidence, dict) else {}).items()
            if source == USER and getattr(tensor.spec, field, "") is None
        }
        if not told:
            continue
        told["op"] = entry.get("op")
        spec = dataclasses.replace(tensor.spec, **told)
        bits = spec.num_bits
        if (
            type(bits) is not int
            or not 2 <= bits <= 16
            or not isinstance(spec.narrow_range, bool)
            or spec.op not in ("vars", "args")
        ):
            raise FileFormatError(f"the manifest's settings of {name} are damaged; export again")
        assumed.append(name)
        tensors[name] = dataclasses.replace(tensor, spec=spec)
    unknown = [t.name for t in tensors.values() if t.role == "weight" and not t.spec.is_complete]
    if unknown:
        raise MissingSettingsError(
            f"the quantizer settings of {', '.join(unknown)} are in no file; {SAME_OPTIONS}"
        )
    return dataclasses.replace(model, tensors=tensors), tuple(assumed)
