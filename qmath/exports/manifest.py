"""The manifest: in JSON, what an export holds, as ``manifest.schema.json`` describes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from qmath._version import __version__
from qmath.errors import QmathError
from qmath.model import Float32Array, Node, QatModel, QatTensor

__all__ = ["bit_patterns", "build", "layer_config", "settings", "stored_range"]

RECONSTRUCTION = "(values.astype(np.int32) - zero_point).astype(np.float32) * scale"

# What a layer's config says about training only.
_TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")


def stored_range(tensor: QatTensor) -> tuple[Float32Array, Float32Array]:
    """Return a quantized tensor's range, which must be finite whether its width is known or not."""
    if tensor.min is None or tensor.max is None:
        raise QmathError(
            f"{tensor.name}: the model holds no range for it; save it again after a training step"
        )
    for end in (tensor.min, tensor.max):
        if not np.isfinite(end).all():
            raise QmathError(
                f"{tensor.name}: its stored range is not finite, so training diverged; "
                "train again with a lower learning rate"
            )
    return tensor.min, tensor.max


def settings(tensor: QatTensor) -> dict[str, Any]:
    """Return the part of a manifest entry that says how a tensor was quantized."""
    low, high = stored_range(tensor)
    spec = tensor.spec
    return {
        "quantizer": spec.quantizer,
        "num_bits": spec.num_bits,
        "symmetric": spec.symmetric,
        "narrow_range": spec.narrow_range,
        "per_axis": spec.per_axis,
        "op": spec.op,
        "min": low.ravel().tolist(),
        "max": high.ravel().tolist(),
        "min_bits": bit_patterns(low),
        "max_bits": bit_patterns(high),
        "evidence": dict(tensor.provenance),
    }


def bit_patterns(array: Float32Array) -> list[str]:
    """Return float32 values as hexadecimal bit patterns."""
    big_endian = np.ravel(array).astype(">f4").tobytes()
    return [f"0x{pattern}" for pattern in big_endian.hex(" ", 4).split()]


def build(
    model: QatModel,
    entries: dict[str, Any],
    program: dict[str, Any] | None,
    options: dict[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """Return the manifest of a model's export.

    Parameters
    ----------
    model : QatModel
        The source.
    entries : dict
        What there is to say of each tensor.
    program : dict or None
        The integer model, if there is one.
    options : dict
        How the bundle was made.
    notes : list of str
        For the reader.
    """
    graph = model.graph
    layers = [
        {
            "name": node.name,
            "layer": node.layer,
            "class_name": node.class_name,
            "inputs": list(node.inputs),
            "quantize_config": node.quantize_config,
            "config": layer_config(node),
        }
        for node in (graph.nodes if graph else ())
    ]
    return {
        "format": "qmath",
        "format_version": 1,
        "qmath_version": __version__,
        "source": {"file": PurePath(model.source).name, "sha256": model.sha256},
        "reconstruction": RECONSTRUCTION,
        "tensors": entries,
        "layers": layers,
        "inputs": list(graph.inputs) if graph else [],
        "outputs": list(graph.outputs) if graph else [],
        "program": program,
        "options": options,
        "notes": notes,
    }


def layer_config(node: Node) -> dict[str, Any]:
    """Return what a deployment may need of a layer's Keras config, as JSON values."""
    return {
        key: _strict(value)
        for key, value in node.config.items()
        if not key.endswith(_TRAINING_ONLY)
    }


def _strict(value: Any) -> Any:
    """Return a JSON value without NaN and infinities, which JSON has no words for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value
