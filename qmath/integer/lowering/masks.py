"""Keras's masks: which layers get one, silently, from a layer far before them."""

from __future__ import annotations

from collections.abc import Mapping

from qmath.model import Node

__all__ = ["MASKED", "Masks"]

# What computes otherwise under a mask, and what hands none on.
_USERS = frozenset({
    "AdditiveAttention", "Attention", "Bidirectional", "GRU", "GlobalAveragePooling1D", "LSTM",
    "MultiHeadAttention", "RNN", "SimpleRNN", "Softmax", "TimeDistributed",
})  # fmt: skip
MASKED = "a mask acts on it, which Masking or mask_zero=True of an Embedding made before it"
_ENDS = frozenset({"Flatten", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "Reshape"})
_RECURRENT = frozenset({"Bidirectional", "GRU", "LSTM", "RNN", "SimpleRNN"})


class Masks:
    """Follows masks from the layers that make them, Masking and Embedding with ``mask_zero``."""

    def __init__(self) -> None:
        self._masked: set[str] = set()

    def act_on(self, node: Node) -> bool:
        """Whether a layer computes under a mask, which nothing here does; call it in order."""
        is_fed = not self._masked.isdisjoint(node.inputs)
        makes = node.class_name == "Masking" or node.config.get("mask_zero") is True
        if (is_fed and not _is_end(node)) or makes:
            self._masked.add(node.name)
        return is_fed and node.class_name in _USERS


def _is_end(node: Node) -> bool:
    if node.class_name not in _RECURRENT:
        return node.class_name in _ENDS
    inner = node.config.get("layer")
    config = inner.get("config") if isinstance(inner, Mapping) else node.config
    return not (isinstance(config, Mapping) and config.get("return_sequences"))
