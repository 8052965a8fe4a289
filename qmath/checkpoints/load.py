"""`load`: a file, told apart by its content → a `QatModel`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qmath.checkpoints.architecture import read_architecture
from qmath.checkpoints.evidence import settle
from qmath.checkpoints.pairing import OWN_WEIGHTS, Variable, pair
from qmath.containers import hdf5
from qmath.containers.bounded_json import parse_json
from qmath.errors import FileFormatError, QmathError
from qmath.types import QatModel

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer

__all__ = ["load"]

_SUPPORTED = "this version of qmath reads whole models in HDF5: save it with model.save('model.h5')"
_WEIGHTS = "model_weights"


def load(
    path: str | os.PathLike[str],
    quantizers: Mapping[str, Quantizer] | None = None,
    *,
    force: bool = False,
) -> QatModel:
    """Read a model that quantization-aware training saved, without TensorFlow.

    Parameters
    ----------
    path : str or path-like
        A whole model in HDF5, as ``model.save("model.h5")`` writes it.
    quantizers : mapping of str to quantizer, optional
        Settings that the file does not hold, in the words of the training script: by
        ``QuantizeConfig`` class (``"MyConfig.weights"``, ``"MyConfig.activation"``,
        ``"MyConfig.output"``) or by tensor name, which may be a glob (``"conv*/kernel"``).
    force : bool, optional
        Let `quantizers` win where they contradict the file.

    Returns
    -------
    QatModel
        With lazy tensors, which read the file again when they are asked for their values.

    Raises
    ------
    FileFormatError
        The file is damaged, hostile, or of another kind.
    ContradictionError
        `quantizers` and the file, or two parts of the file, disagree.
    QmathError
        A key of `quantizers` matches nothing, or two that differ match one tensor.
    MissingExtraError
        h5py is not installed.

    Notes
    -----
    Nothing in the file is imported, deserialized or run. What no source says stays unknown:
    `QatTensor.spec` holds ``None`` and `QatTensor.hint` the option to supply.

    Examples
    --------
    >>> import qmath
    >>> model = qmath.load("reference/samples/question.h5")
    >>> model.tensors["conv1/kernel"].spec.num_bits
    4
    """
    try:
        source = os.fsdecode(path)
    except TypeError:
        raise QmathError(f"a model is read from the path of a file, not {path!r}") from None
    _check_kind(source)
    with hdf5.Hdf5File(source) as file:
        _check_whole_model(file)
        config = parse_json(file.text("", "model_config"), f"{source}: model_config")
        architecture = read_architecture(config)
        found, notes = pair(_variables(file), architecture.layers, source)
    try:
        tensors, more = settle(found, quantizers, force=force)
    except QmathError as error:
        raise type(error)(f"{source}: {error}") from None
    return QatModel(
        tensors, architecture.graph, (*architecture.notes, *notes, *more), source, _sha256(source)
    )


def _check_kind(path: str) -> None:
    """Raise unless the path is an HDF5 file, saying what it is instead."""
    if os.path.isdir(path):
        entries = set(os.listdir(path))
        kind = "a directory"
        if "saved_model.pb" in entries:
            kind = "a SavedModel directory"
        elif any(entry.endswith(".index") for entry in entries):
            kind = "a directory with a TensorFlow checkpoint"
        raise FileFormatError(f"{path}: this is {kind}; {_SUPPORTED}")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 8, 0))
            tail = file.read(8)
    except FileNotFoundError:
        is_prefix = os.path.exists(f"{path}.index")
        raise FileFormatError(
            f"{path}: "
            + (
                f"this is the prefix of a TensorFlow checkpoint; {_SUPPORTED}"
                if is_prefix
                else "there is no such file; check the path"
            )
        ) from None
    except OSError as error:
        raise FileFormatError(f"{path}: it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise FileFormatError(f"{path!r} is no path: {error}") from None
    if head.startswith(hdf5.MAGIC):
        return
    kind = "not an HDF5 file, whatever its name says"
    if not head:
        kind = "an empty file"
    elif head.startswith(b"PK\x03\x04"):
        kind = "a zip file, such as Keras's .keras"
    elif tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
        kind = "the index of a TensorFlow checkpoint"
    elif os.path.basename(path) == "saved_model.pb":
        kind = "the graph of a SavedModel"
    elif head[4:8] == b"TFL3":
        kind = "a TFLite model"
    raise FileFormatError(f"{path}: this is {kind}; {_SUPPORTED}")


def _check_whole_model(file: hdf5.Hdf5File) -> None:
    if file.has_attribute("", "model_config") and file.has(_WEIGHTS):
        return
    kind = "holds no Keras model"
    if file.has_attribute("", "model_config"):
        kind = "holds a model's architecture without its weights"
    elif file.has_attribute("", "layer_names"):
        kind = "holds a model's weights without its architecture (save_weights)"
    elif file.has("layers") or file.has("_layer_checkpoint_dependencies"):
        kind = "holds the weights of a .keras file (.weights.h5), which have no names"
    raise FileFormatError(f"{file.path}: this HDF5 file {kind}; {_SUPPORTED}")


def _variables(file: hdf5.Hdf5File) -> Iterator[tuple[str, list[Variable]]]:
    """Yield the variables of each layer, as the attributes list them."""
    layers = _listed(file, _WEIGHTS, "layer_names")
    if len(set(layers)) < len(layers):
        raise FileFormatError(
            f"{file.path}: it lists a layer twice; the file was edited, save the model again"
        )
    own = [OWN_WEIGHTS] if file.has(f"{_WEIGHTS}/{OWN_WEIGHTS}") else []
    for layer in layers + own:
        group = f"{_WEIGHTS}/{layer}"
        yield (
            layer,
            [
                Variable(name.removesuffix(":0"), file.array(f"{group}/{name}"))
                for name in _listed(file, group, "weight_names")
            ],
        )


def _listed(file: hdf5.Hdf5File, group: str, attribute: str) -> list[str]:
    names: Any = file.names(group, attribute)
    if names is None:
        raise FileFormatError(
            f"{file.path}: {group} does not list its {attribute}; the file was "
            f"cut or edited, save the model again"
        )
    return list(names)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
