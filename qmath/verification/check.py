"""An independent check of an exported file or folder against the model.

For the weights' integers, scales and settings, nothing here, and nothing in
`qmath.verification.contents`, calls the code that makes what is exported: both share only the
reader of the model, the reader of the file, and TensorFlow's arithmetic. The integer model is
lowered again; a folder's files, and a file of a format without a reader, are rendered again and
compared byte by byte; a network is rendered again and compared part by part. The reader's belief
about which quantizer acted is shared, too: only a forward pass can judge it, see
`qmath.verification.forward`.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmath._progress import Progress
from qmath.errors import FileFormatError, MissingSettingsError, OutputError, QmathError
from qmath.integer.deployment import Deployment, deploy
from qmath.integer.whole_inputs import restored
from qmath.kernels.builds import BUILDS, Build
from qmath.model import Float32Array, QatModel, assumed_tensors, with_build
from qmath.readers.source import as_model
from qmath.verification.all_floats import Proof, prove_model
from qmath.verification.contents import FORCED, SAME_OPTIONS, USER, Check, object_in
from qmath.verification.forward import Source, read_forward

if TYPE_CHECKING:
    from qmath.exports.bundle import Bundle
    from qmath.exports.exporter import Exporter

__all__ = ["Verification", "verify"]

_FIXED = "FixedQuantizer"
# Settings that a user can tell, and what is one.
_CHECKS: dict[str, Callable[[object], bool]] = {
    "quantizer": lambda value: isinstance(value, str),
    "num_bits": lambda value: type(value) is int and 2 <= value <= 16,
    "per_axis": lambda value: isinstance(value, bool),
    "symmetric": lambda value: isinstance(value, bool),
    "narrow_range": lambda value: isinstance(value, bool),
}


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
    assumptions : tuple of str
        Tensors of which the model does not show which quantizer acted, and no forward pass was
        compared with: the check starts from the assumption that the export started from.
    all_floats : Proof or None
        For how many ranges the kernel was proved on every float32, if that was asked for.
    build : str
        Whose kernels the file was compared with: those that the model was loaded with, or, if none
        were named, those that the file says.
    """

    tensors: int
    elements: int
    near_ties: int
    differing: int
    differences: tuple[str, ...]
    assumed: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    all_floats: Proof | None = None
    build: Build = "tf"

    def __repr__(self) -> str:
        found = "equal" if self.ok else f"differs in {len(self.differences)}"
        assumed = f", the settings of {len(self.assumed)} as told" if self.assumed else ""
        assumed += "" if self.build == "tf" else f", build {self.build}"
        return (
            f"<Verification: {found}; {self.tensors} tensors, {self.elements:,} elements{assumed}>"
        )

    @property
    def ok(self) -> bool:
        """Whether the file holds what the model says."""
        return not self.differences


def verify(
    model: str | os.PathLike[str] | QatModel,
    output: str | os.PathLike[str],
    *,
    format: str | type[Exporter] | None = None,
    against: Source | None = None,
    all_floats: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Check an exported file against the model it was made from.

    Parameters
    ----------
    model : path or QatModel
        What was exported: a file that is read without options, or what `qmath.load` or
        `qmath.from_keras` returned.
    output : path
        The exported file or folder.
    format : str or type of Exporter, optional
        As it was given to `qmath.export`; a folder knows its format itself.
    against : path or mapping of str to array-like, optional
        The kernels that the trained model's layers computed with, as ``python -m reference.dump``
        writes them: ``kernels/<tensor>``, float32. What the file holds has to stand for them, bit
        for bit; only zeros may differ in sign.
    all_floats : bool
        Prove besides, for every range of the model at its width, that qmath's kernel is what the
        model's build is defined to compute on all 2**32 floats.
    progress : callable, optional
        Called with how many tensors are compared, and of how many.

    Returns
    -------
    Verification
        Its `ok` says whether all is as it should be.

    Raises
    ------
    FileFormatError
        `output` is damaged or not what qmath wrote; `against` is damaged or holds no kernels.
    MissingSettingsError
        The settings of a weight are unknown.

    Notes
    -----
    Compared are: names, shapes and axis orders, dtypes; scales, bit by bit; zero points; every
    integer; every float, bit by bit; every field of the manifest but its notes, the source's file
    name and qmath's version. Settings that the model does not show are taken from the file where
    it says that the user told them: see `Verification.assumed`. So is the build, unless the model
    was loaded with one: see `Verification.build`.

    Examples
    --------
    >>> import tempfile
    >>> import qmath
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bundle = qmath.export("reference/samples/question.h5", f"{folder}/model.npz")
    ...     qmath.verify("reference/samples/question.h5", f"{folder}/model.npz").ok
    True
    """
    from qmath.exports.output.atomic import as_path

    path = as_path(output)
    source = as_model(model)
    forward = None if against is None else read_forward(against)
    check = Check(path.name, forward)
    try:
        compare = _compare_folder if path.is_dir() else _compare_file
        found, assumed = compare(check, source, path, format, progress)
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}") from error
    proof = prove_model(with_build(source, found.build), progress) if all_floats else None
    return Verification(
        check.tensors,
        check.elements,
        check.near_ties,
        check.differing,
        (*check.differences, *(proof.differences if proof else ())),
        assumed,
        tuple(n for n in assumed_tensors(source) if n not in {*assumed, *(forward or {})}),
        proof,
        found.build,
    )


def _compare_file(
    check: Check,
    model: QatModel,
    path: Path,
    format: str | type[Exporter] | None,
    progress: Progress | None,
) -> tuple[QatModel, tuple[str, ...]]:
    from qmath.exports.exporter import Exporter
    from qmath.exports.registry import exporter_class

    path.stat()
    kind = exporter_class(path, format)
    if kind.is_folder:
        raise FileFormatError(
            f"{path} is a file, and the format {kind.name!r} is a folder of files"
        )
    if kind.read is Exporter.read:
        return _compare_bytes(check, model, path, kind, progress)
    with open(path, "rb") as file:
        manifest, arrays = kind().read(file)
        exporter = _exporter(kind, manifest, path.name)
        model, assumed = _with_told_settings(model, manifest, path.name)
        options = _options(manifest, path.name)
        if kind.differences is Exporter.differences:
            made = {key: options[key] for key in ("vector_bytes",) if key in options}
            deployed = deploy(model, options["vectors"], options["multiplier_bits"], **made)
            check.compare_model(model, manifest, arrays, deployed, progress)
        else:
            bundle = _compare_bundle(check, model, options, manifest, progress, arrays)
            check.differences += exporter.differences(file, bundle, manifest)
    return model, assumed


def _compare_bytes(
    check: Check,
    model: QatModel,
    path: Path,
    kind: type[Exporter],
    progress: Progress | None,
) -> tuple[QatModel, tuple[str, ...]]:
    """Compare a file that has no reader with what the export would write now."""
    from qmath.exports.output.folder import byte_differences, record_path
    from qmath.exports.reading import read_manifest

    if kind.is_recorded:
        manifest = read_manifest(record_path(path))
        exporter = _exporter(kind, manifest, record_path(path).name)
        model, assumed = _with_told_settings(model, manifest, path.name)
        options = _options(manifest, path.name)
    else:
        manifest, exporter, assumed, options = None, kind(), (), {}
    bundle = _compare_bundle(check, model, options, manifest, progress)
    with open(path, "rb") as file, tempfile.TemporaryFile() as expected:
        exporter.write(bundle, expected)
        check.differences += byte_differences(path.name, file, expected)
    return model, assumed


def _compare_folder(
    check: Check,
    model: QatModel,
    path: Path,
    format: str | type[Exporter] | None,
    progress: Progress | None,
) -> tuple[QatModel, tuple[str, ...]]:
    from qmath.exports.output import folder
    from qmath.exports.reading import MANIFEST, export_of, read_manifest
    from qmath.exports.registry import exporter_class

    manifest = read_manifest(path / MANIFEST)
    named = format or str(export_of(manifest, path.name).get("format"))
    kind = exporter_class(path, named)
    if not kind.is_folder:
        raise FileFormatError(f"{path} is a folder, and the format {kind.name!r} is one file")
    exporter = _exporter(kind, manifest, path.name)
    model, assumed = _with_told_settings(model, manifest, path.name)
    bundle = _compare_bundle(check, model, _options(manifest, path.name), manifest, progress)
    check.differences += folder.differences(path, exporter, bundle)
    return model, assumed


def _exporter(kind: type[Exporter], manifest: dict[str, Any], name: str) -> Exporter:
    """Return the exporter with the options that the output was made with."""
    from qmath.exports.reading import export_of

    export = export_of(manifest, name)
    if export.get("format", kind.name) != kind.name:
        raise FileFormatError(
            f"{name} was exported as {export['format']!r}, and is verified as {kind.name!r}; give "
            "its own format"
        )
    try:
        return kind(**export["options"])
    except OutputError as error:
        raise FileFormatError(f"{name}: the manifest's options are damaged: {error}") from error


def _compare_bundle(
    check: Check,
    model: QatModel,
    options: dict[str, Any],
    manifest: dict[str, Any] | None,
    progress: Progress | None,
    held: Mapping[str, NDArray[Any]] | None = None,
) -> Bundle:
    """Compare what an export would hold now, and what the output holds: a manifest, some arrays."""
    from qmath.exports.bundle import quantize_model

    bundle = quantize_model(model, **options)
    deployed = Deployment(
        bundle.program,
        bundle.manifest["program"],
        bundle.constants,
        bundle.vectors,
        bundle.directed,
    )
    arrays = dict(bundle.arrays()) | dict(held or {})
    check.compare_model(model, manifest or bundle.manifest, arrays, deployed, progress)
    return bundle


def _options(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return how an export was made, as `qmath.quantize_model` takes it."""
    options = dict(object_in(manifest, "options", name))
    layouts = options.get("layouts")
    if (
        set(options) - {"vector_bytes", "build"}
        != {"layouts", "signed", "vectors", "multiplier_bits"}
        or type(options["signed"]) is not bool
        or not isinstance(layouts, list)
        or not all(isinstance(layout, str) for layout in layouts)
        or type(options["multiplier_bits"]) is not int
        or type(options.get("vector_bytes", 0)) is not int
        or str(options.pop("build", "tf")) not in BUILDS
    ):
        raise FileFormatError(f"{name}: the manifest's options are damaged; export again")
    try:
        return options | {"vectors": restored(options["vectors"])}
    except QmathError as error:
        raise FileFormatError(f"{name}: {error}; export again") from error


def _with_told_settings(
    model: QatModel, manifest: dict[str, Any], name: str
) -> tuple[QatModel, tuple[str, ...]]:
    """Complete what the model leaves open with what the user told the export, as its file says.

    Nothing else can be asked for these settings; whether scales and integers follow from them is
    still checked.
    """
    build = str(object_in(manifest, "options", name).get("build", "tf"))
    unnamed = model.build == "tf" and not model.is_build_told
    if unnamed and build in BUILDS:  # which is in no model
        model = with_build(model, BUILDS[build].name)
    entries = object_in(manifest, "tensors", name)
    tensors, assumed = dict(model.tensors), []
    for tensor in model.tensors.values():
        entry = entries.get(tensor.name)
        provenance = entry.get("evidence") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(provenance, dict):
            continue
        told: dict[str, Any] = {
            field: entry.get(field)
            for field in _CHECKS
            if provenance.get(field) == FORCED
            or (provenance.get(field) == USER and getattr(tensor.spec, field) is None)
        }
        if not told:
            continue
        told["op"] = entry.get("op")
        ends: dict[str, Any] = {}
        if tensor.role == "float":  # a FixedQuantizer keeps no variables: its range is told, too
            ends = {"role": "weight", "min": _end(entry, "min"), "max": _end(entry, "max")}
        if (
            not all(_CHECKS[field](value) for field, value in told.items() if field != "op")
            or told["op"] not in ("vars", "args")
            or (ends and (entry.get("role"), told.get("quantizer")) != ("weight", _FIXED))
            or any(end is None for end in ends.values())
        ):
            raise FileFormatError(
                f"{name}: the manifest's settings of {tensor.name} are damaged; export again"
            )
        assumed.append(tensor.name)
        tensors[tensor.name] = dataclasses.replace(
            tensor,
            spec=dataclasses.replace(tensor.spec, **told),
            provenance=dict(tensor.provenance) | {f: provenance[f] for f in told if f != "op"},
            **ends,
        )
    unknown = [t.name for t in tensors.values() if t.role == "weight" and not t.spec.is_complete]
    if unknown:
        raise MissingSettingsError(
            f"the quantizer settings of {', '.join(unknown)} are in no file; {SAME_OPTIONS}"
        )
    return dataclasses.replace(model, tensors=tensors), tuple(assumed)


def _end(entry: dict[str, Any], key: str) -> Float32Array | None:
    """Return one end of a range that only the file holds, ``None`` if it is no finite number."""
    values = entry.get(key)
    if not isinstance(values, list) or len(values) != 1 or type(values[0]) is not float:
        return None
    with np.errstate(over="ignore"):
        end = np.asarray(values[0], np.float32)
    return end if np.isfinite(end) else None
