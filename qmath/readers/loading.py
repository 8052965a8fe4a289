"""`load`: a file, told apart by its content → a `QatModel`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qmath.containers.sniff import sniff
from qmath.errors import QmathError
from qmath.kernels.builds import Build, check_build
from qmath.model import QatModel, with_build, with_shapes
from qmath.readers import notes as words
from qmath.readers.dispatch import read_model
from qmath.readers.records import ModelFile, check_told
from qmath.readers.settings.resolve import resolve

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    quantizers: Mapping[str, Quantizer] | None = None,
    *,
    force: bool = False,
    architecture: str | os.PathLike[str] | None = None,
    isolate: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    build: Build | None = None,
) -> QatModel:
    """Read a model that quantization-aware training saved, without TensorFlow.

    Parameters
    ----------
    path : str or path-like
        What Keras saves, told apart by content: ``.keras``, a whole ``.h5``, or weights alone,
        with names (``save_weights("w.h5")``) or without (``save_weights("w.weights.h5")``, which
        needs `architecture`); a SavedModel: its directory, or the ``saved_model.pb`` in it; a
        TensorFlow checkpoint: its prefix, index or directory; or a TFLite file, whose integers are
        taken as they are.
    quantizers : mapping of str to quantizer, optional
        Settings that the file does not hold, in the words of the training script: by
        ``QuantizeConfig`` class (``"MyConfig.weights"``, ``"MyConfig.activation"``,
        ``"MyConfig.output"``) or by tensor name, which may be a glob (``"conv*/kernel"``).
    force : bool, optional
        Let `quantizers` win where they contradict the file.
    architecture : str or path-like, optional
        A file that holds the model's architecture, for weights that were saved without it: a
        ``.keras`` or ``.h5`` model, or JSON as ``model.to_json()`` returns it.
    isolate : bool, optional
        Let another process read ``.h5`` and ``.keras`` files, under limits of time and memory:
        for files from strangers, as the HDF5 library crashes or hangs on some damaged ones.
    shapes : mapping of str to sequence of int, optional
        Shapes without the batch, where the model leaves them open: of inputs, and of the outputs of
        layers that qmath cannot compute, by the layer's name.
    build : {"tf", "tf<2.6", "xla-cpu", "xla-cpu-nofma"}, optional
        Whose kernels trained the model and are to be reproduced, as
        `qmath.fake_quant_with_min_max_args` takes it; ``"tf"`` unless one is named, and what
        `qmath.verify` finds in the manifest. A TFLite file's integers stay as they are.

    Returns
    -------
    QatModel
        With lazy tensors, which read the file again when they are asked for their values.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or of another kind; weights and architecture do not belong
        together; or the file does not show surely which variable is which.
    ContradictionError
        `quantizers` and the file, or two parts of the file, disagree.
    QmathError
        A key of `quantizers` matches nothing, or two that differ match one tensor; there is no
        such build.
    MissingExtraError
        What reads this kind of file (h5py, protobuf, google-crc32c) is not installed.

    Notes
    -----
    Nothing in the file is imported, deserialized or run. What no source says stays unknown:
    `QatTensor.spec` holds ``None`` and `QatTensor.hint` the option to supply. A SavedModel
    holds the ops that fake-quantize, with their widths, and how training updates the ranges; those
    that read a stored range give its settings, whatever the ``get_config`` of a custom
    ``QuantizeConfig`` returns.

    `isolate` is not the default for what it costs: 0.3 s to start the process, which stays as long
    as the tensors do, and more than twice the time (MobileNetV2 takes 1.2 s instead of 0.5 s). What
    else is read, qmath reads itself, checking as it goes.

    Examples
    --------
    >>> import qmath
    >>> model = qmath.load("reference/samples/question.h5")
    >>> model.tensors["conv1/kernel"].spec.num_bits
    4
    """
    if hasattr(path, "layers") and hasattr(path, "get_config"):
        raise QmathError(
            f"a model is read from the path of a file, and this is a live {type(path).__name__}; "
            "for one, there is qmath.from_keras(model)"
        )
    check_told(quantizers, shapes)
    source = _text(path)
    beside = None if architecture is None else _text(architecture)
    kernels = check_build("tf" if build is None else build)
    file = ModelFile(source, beside, isolate, quantizers or {}, kernels)
    if sniff(source) == "tflite":
        from qmath.readers.tflite import reader as tflite  # which takes time to import

        model = tflite.read(file)
        model = replace(model, notes=(*model.notes, *words.without_a_build(kernels)))
        return with_shapes(model, {**model.shapes, **(shapes or {})})
    reading = read_model(file)
    known = reading.architecture
    try:
        tensors, notes = resolve(reading.tensors, quantizers, force=force, layers=known.layers)
    except QmathError as error:
        raise type(error)(f"{source}: {error}") from None
    notes = [*known.notes, *reading.notes, *notes]
    model = QatModel(tensors, known.graph, tuple(notes), source, reading.files)
    model = with_shapes(model, shapes) if shapes else model
    return model if build is None else with_build(model, build)


def _text(path: str | os.PathLike[str]) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise QmathError(f"a model is read from the path of a file, not {path!r}") from None
