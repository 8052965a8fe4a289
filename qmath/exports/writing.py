"""`qmath.export`: a model's bundle to a file or folder, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qmath._progress import Progress
from qmath.errors import OutputError, QmathError
from qmath.exports.bundle import Bundle, fitting, quantize_model
from qmath.exports.exporter import Exporter
from qmath.exports.output import folder
from qmath.exports.output.atomic import (
    as_path,
    check_output,
    replacing,
    replacing_folder,
    reporting,
)
from qmath.exports.registry import exporter_class
from qmath.integer.deployment import VECTOR_BYTES
from qmath.integer.whole_inputs import Vectors
from qmath.model import QatModel
from qmath.readers.source import as_model

__all__ = ["check_outputs", "export"]


def export(
    model: str | os.PathLike[str] | QatModel,
    output: str | os.PathLike[str],
    *,
    format: str | type[Exporter] | None = None,
    layouts: Sequence[str] = (),
    signed: bool = True,
    vectors: Vectors | None = None,
    vector_bytes: int = VECTOR_BYTES,
    multiplier_bits: int = 31,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Bundle:
    """Write the integers of a model, or the whole integer model, to a file or folder.

    Parameters
    ----------
    model : path or QatModel
        A file that is read without options, or what `qmath.load` or `qmath.from_keras` returned.
    output : path
        The file to write, or the folder where the format has several files. It appears when it is
        complete, under this name, or not at all.
    format : str or type of Exporter, optional
        Default: by the suffix of `output`. `qmath.exports.formats` lists the names.
    layouts : sequence of str
        Axis orders, see `qmath.quantize_model`. Default: those that the format wants, mostly none.
    signed : bool
        Two's complement integers of the weights, or TensorFlow's unsigned count.
    vectors : int, array-like or mapping of str to array-like, optional
        How many golden inputs of the whole model to draw and write, with every layer's integers;
        or inputs of your own, for the one input or by name, which the manifest keeps. With either,
        each layer gets directed vectors. Default: as many as the format runs by itself, mostly
        none.
    vector_bytes : int
        How many bytes the directed vectors may take; 0 for none. ``docs/vectors.md`` explains them.
    multiplier_bits : int
        Width of the integer model's multipliers, 8 to 31.
    strict : bool
        Refuse a model in which the settings of an activation are unknown.
    overwrite : bool
        Replace `output` if it exists; a folder only if qmath wrote all that is in it.
    progress : callable, optional
        Called with how many tensors are quantized, and of how many.
    **options
        Of the format: a wrong one lists all it has.

    Returns
    -------
    Bundle
        What was written. Large weights are made again from the model when they are asked for.

    Raises
    ------
    QmathError
        See `qmath.load` and `qmath.quantize_model`; test vectors are asked of a model that does
        not run in integers. Nothing is written.
    OutputError
        The output cannot be written, and what was there before is untouched; the format does not
        exist, has no such option, or is another package's and at fault.

    Notes
    -----
    Beside a file that qmath cannot read again, such as one of another package's format,
    ``<output>.manifest.json`` keeps the manifest and the options, for `qmath.verify`.

    Examples
    --------
    >>> import tempfile
    >>> import qmath
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bundle = qmath.export("reference/samples/question.h5", f"{folder}/model.npz")
    >>> bundle.tensors["conv1/kernel"].values.dtype
    dtype('int8')
    """
    target = as_path(output)
    exporter = exporter_class(target, format)(**options)
    sources = (model.source,) if isinstance(model, QatModel) else (model,)
    check_outputs(target, exporter, overwrite=overwrite, sources=sources)
    loaded = as_model(model)
    _refuse_stored_integers(loaded, exporter)

    quantized = partial(
        _quantized,
        loaded,
        strict=strict,
        layouts=layouts or fitting(loaded, exporter.layouts),
        signed=signed,
        vectors=exporter.vectors if vectors is None else vectors,
        vector_bytes=vector_bytes,
        multiplier_bits=multiplier_bits,
        progress=progress,
    )
    are_asked = vectors is not None and not (isinstance(vectors, int) and vectors == 0)
    if exporter.is_written_as_made:
        bundle = _as_made(exporter, target, overwrite, partial(quantized, are_asked))
    else:
        bundle = quantized(are_asked)
        _write(bundle, exporter, target, overwrite)
    notes = [*bundle.manifest["notes"], *exporter.remarks]
    return replace(bundle, manifest=bundle.manifest | {"notes": notes})


class _OfOthersError(Exception):
    """An error of the operating system in which the output has no part."""

    def __init__(self, error: OSError) -> None:
        self.error = error


def _as_made(
    exporter: Exporter, target: Path, overwrite: bool, quantized: Callable[..., Bundle]
) -> Bundle:
    """Write a model while it is quantized; return what was written."""
    try:
        with replacing(target, overwrite=overwrite) as file:
            writer = exporter.writer(reporting(file, target))
            try:
                bundle = quantized(writer=writer)
                writer.finish(exporter.manifest(bundle))
            except OSError as error:  # of the model, or of the caller's own functions and arrays
                raise _OfOthersError(error) from error
    except _OfOthersError as of_others:
        raise of_others.error from None
    return bundle


def _quantized(model: QatModel, are_asked: bool, **options: Any) -> Bundle:
    """Return the bundle of a model, with test vectors if they are asked for."""
    with model.hashing():
        bundle = quantize_model(model, **options)
    if are_asked and bundle.program is None:
        raise QmathError(
            f"test vectors need an integer model, and there is none; notes: {bundle.obstacles}"
        )
    return bundle


def check_outputs(
    target: Path,
    exporter: Exporter,
    *,
    overwrite: bool,
    sources: Sequence[str | os.PathLike[str] | None] = (),
) -> None:
    """Raise if a name that an export would take cannot be that of an output: see `check_output`."""
    check_output(
        target,
        overwrite=overwrite,
        sources=sources,
        is_folder=exporter.is_folder,
        example=f"model.{(exporter.suffixes or (exporter.name,))[0]}",
    )
    if folder.has_record(exporter):
        check_output(folder.record_path(target), overwrite=overwrite, sources=sources)


def _refuse_stored_integers(model: QatModel, exporter: Exporter) -> None:
    names = [
        tensor.name
        for tensor in model.tensors.values()
        if tensor.stored and not tensor.stored.is_bias
    ]
    if names and not exporter.takes_stored_integers:
        raise OutputError(
            f"Keras itself quantized {', '.join(names)}, in a convention that the format "
            f"{exporter.name!r} does not state (the real values are integers / scale); export to "
            "npz"
        )


def _write(bundle: Bundle, exporter: Exporter, target: Path, overwrite: bool) -> None:
    if exporter.is_folder:
        with replacing_folder(target, overwrite=overwrite) as place:
            folder.write(place, exporter, bundle)
        return
    with ExitStack() as stack:
        file = stack.enter_context(replacing(target, overwrite=overwrite))
        if not folder.has_record(exporter):
            exporter.write(bundle, file)
            return
        record = stack.enter_context(replacing(folder.record_path(target), overwrite=overwrite))
        record.write(folder.write_recorded(exporter, bundle, file, target.name))
