"""Batch normalizations that the weights right before them can take in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmath.exports.bundle import Bundle
from qmath.layers import LAYERS, NORMALIZATION, activation_of, kind_of, supports
from qmath.model import Graph, Node, QatTensor

__all__ = ["Fold", "foldable", "real"]

_ENDS = ("pre_activation", "post_activation", "output")


@dataclass(frozen=True, eq=False)
class Fold:
    """A batch normalization, by its node: ``x * factor + shift``."""

    node: Node
    factor: NDArray[np.float64]
    shift: NDArray[np.float64]


def foldable(bundle: Bundle, graph: Graph) -> dict[str, Fold]:
    """Return the layers whose weights can take in the batch normalization after them."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    cuts = {cut.name for cut in bundle.program.cuts} if bundle.program else set()
    found = {}
    for node in graph.nodes:
        after = readers.get(node.name, [])
        if (
            kind_of(node.class_name) != "weighted"
            or not supports(node.class_name, "onnx")
            or LAYERS[node.class_name].then
            or node.name in graph.outputs
            or cuts & {node.name, *(reader.name for reader in after)}
            or [kind_of(reader.class_name) for reader in after] != ["normalization"]
            or activation_of(node) != "linear"
            or any(f"{node.layer}/{end}" in bundle.model.tensors for end in _ENDS)
        ):
            continue
        layer = LAYERS[node.class_name]
        kernel = bundle.model.tensors[f"{node.layer}/{layer.kernel}"]
        along_inputs = layer.axes[-1] == "I" and kernel.spec.per_axis
        fold = _fold(bundle, after[0])
        # A scale of 0 would lose the bias where a runtime makes an integer of it.
        if kernel.role == "weight" and not along_inputs and fold.factor.all():
            found[node.name] = fold
    return found


def _fold(bundle: Bundle, node: Node) -> Fold:
    """Return a batch normalization as a factor and a shift."""
    gamma, beta, mean, variance = (
        default if tensor is None else real(bundle, tensor)
        for tensor, default in (
            (bundle.model.tensors.get(f"{node.layer}/{key}"), default)
            for key, default in NORMALIZATION.items()
        )
    )
    factor = np.asarray(gamma / np.sqrt(variance + node.config.get("epsilon", 1e-3)))
    return Fold(node, factor, np.asarray(beta - mean * factor))


def real(bundle: Bundle, tensor: QatTensor) -> NDArray[np.float64]:
    """Return the values that inference uses."""
    is_weight = tensor.role == "weight"
    values = bundle.weights[tensor.name].dequantize() if is_weight else tensor.values
    return np.asarray(values, np.float32).astype(np.float64)
