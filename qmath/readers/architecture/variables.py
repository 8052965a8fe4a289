"""Which variables Keras's own layers have: names, shapes, and the order in which they are made.

Mirrors ``build`` of the layers in ``tf_keras/src/layers``. Keras's newer format stores variables by
position alone, so that their names have to come from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qmath.layers import LAYERS
from qmath.readers.architecture.config import Serialized, bare_name, layer_name

__all__ = ["Slot", "slots_of", "snake_case", "uncounted"]

_COUNTED = re.compile(r"((?:^|/)[^/]*_cell)_\d+(?=/)")

Shape = tuple[int | None, ...]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Slot:
    """One variable of a layer.

    Attributes
    ----------
    name : str
        Within the layer: ``kernel``, ``lstm_cell/kernel``.
    shape : tuple or None
        As far as the config tells it; ``None`` for a length or a whole shape that it does not tell.
    trainable : bool
        Whether it was made to be trained.
    group : str
        Where Keras's newer format keeps it, as a path of attributes: ``""``, ``cell``.
    """

    name: str
    shape: Shape | None = None
    trainable: bool = True
    group: str = ""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a variable of this shape can be the one."""
        return self.shape is None or (
            len(self.shape) == len(shape)
            and all(mine in (None, other) for mine, other in zip(self.shape, shape, strict=True))
        )


def slots_of(class_name: str, config: Config) -> tuple[Slot, ...] | None:
    """Return the variables of a layer in the order in which Keras makes them.

    Parameters
    ----------
    class_name : str
        Of a layer, such as ``"Conv2D"``.
    config : mapping
        The layer's own config.

    Returns
    -------
    tuple of Slot or None
        ``None`` if the class is not one of Keras's.

    Examples
    --------
    >>> [slot.name for slot in slots_of("Dense", {"units": 3, "use_bias": True})]
    ['kernel', 'bias']
    >>> slots_of("MyLayer", {}) is None
    True
    """
    make = _LAYERS.get(class_name)
    if make is None:
        return None
    slots = list(make(config))
    names = uncounted([slot.name for slot in slots])
    return tuple(replace(slot, name=name) for slot, name in zip(slots, names, strict=True))


def uncounted(names: Sequence[str]) -> list[str]:
    """Return the names of a layer's variables, as if each of its cells were the session's first.

    Keras counts the cells that it makes itself: ``lstm_cell_3/kernel`` is ``lstm_cell/kernel`` if
    the layer has one such cell.

    Examples
    --------
    >>> uncounted(["lstm_cell_3/kernel", "lstm_cell_3/bias"])
    ['lstm_cell/kernel', 'lstm_cell/bias']
    >>> uncounted(["gru_cell/kernel", "gru_cell_1/kernel"])
    ['gru_cell/kernel', 'gru_cell_1/kernel']
    """
    plain = [_COUNTED.sub(r"\1", name) for name in names]
    return plain if len(set(plain)) == len(set(names)) else list(names)


def snake_case(class_name: str) -> str:
    """Return what Keras makes of a class's name: ``LSTMCell`` → ``lstm_cell``.

    Mirrors ``to_snake_case`` of ``tf_keras/src/utils/generic_utils.py``.
    """
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    return f"private{name}" if name.startswith("_") else name


def _length(config: Config, key: str, factor: int = 1) -> int | None:
    value = config.get(key)
    return value * factor if type(value) is int else None


def _kernel_size(config: Config, rank: int) -> Shape:
    value = config.get("kernel_size")
    sizes = value if isinstance(value, (list, tuple)) else [value] * rank
    return tuple(size if type(size) is int else None for size in sizes)


def _bias(config: Config, shape: Shape | None, key: str = "use_bias") -> Iterator[Slot]:
    if config.get(key, True) not in (False, None):
        yield Slot("bias", shape)


def _weighted(kernel: str, axes: str) -> Callable[[Config], Iterator[Slot]]:
    """Return the maker of a layer's variables from its kernel's name and the order of its axes."""
    out = "units" if axes == "IO" else "filters"

    def make(config: Config) -> Iterator[Slot]:
        lengths = {"O": _length(config, out), "M": _length(config, "depth_multiplier")}
        size = _kernel_size(config, len(axes) - 2)
        yield Slot(kernel, (*size, *(lengths.get(letter) for letter in axes[-2:])))
        yield from _bias(config, (lengths["O"] if "O" in axes else None,))

    return make


def _separable(rank: int) -> Callable[[Config], Iterator[Slot]]:
    depthwise = _weighted("depthwise_kernel", "HWIM"[2 - rank :])

    def make(config: Config) -> Iterator[Slot]:
        filters = _length(config, "filters")
        yield next(depthwise(config))
        yield Slot("pointwise_kernel", (*[1] * rank, None, filters))
        yield from _bias(config, (filters,))

    return make


def _embedding(config: Config) -> Iterator[Slot]:
    yield Slot("embeddings", (_length(config, "input_dim"), _length(config, "output_dim")))


def _affine(config: Config) -> Iterator[Slot]:
    for name, key in (("gamma", "scale"), ("beta", "center")):
        if config.get(key, True):
            yield Slot(name, _axes(config))


def _batch_normalization(config: Config) -> Iterator[Slot]:
    yield from _affine(config)
    yield Slot("moving_mean", _axes(config), trainable=False)
    yield Slot("moving_variance", _axes(config), trainable=False)


def _axes(config: Config) -> Shape | None:
    """Return the shape of what a normalization keeps: one axis, unless it was told several."""
    axis = config.get("axis")
    return None if isinstance(axis, (list, tuple)) and len(axis) > 1 else (None,)


def _einsum_dense(config: Config) -> Iterator[Slot]:
    yield Slot("kernel")
    yield from _bias(config, None, "bias_axes")


def _attention(config: Config) -> Iterator[Slot]:
    for part, name in (
        ("query", "query"),
        ("key", "key"),
        ("value", "value"),
        ("output", "attention_output"),
    ):
        yield Slot(f"{name}/kernel", group=f"_{part}_dense")
        if config.get("use_bias", True):
            yield Slot(f"{name}/bias", group=f"_{part}_dense")


def _normalization(config: Config) -> Iterator[Slot]:
    if config.get("mean") is None:
        yield Slot("mean", trainable=False)
        yield Slot("variance", trainable=False)
        yield Slot("count", (), trainable=False)


def _locally_connected(config: Config) -> Iterator[Slot]:
    yield Slot("kernel")
    yield from _bias(config, None)


def _prelu(_: Config) -> Iterator[Slot]:
    yield Slot("alpha")


def _scores(config: Config) -> Iterator[Slot]:
    """Yield the variables of dot-product attention."""
    if config.get("use_scale", False):
        yield Slot("scale", ())
    if config.get("score_mode") == "concat":
        yield Slot("concat_score_weight", ())


def _additive_scores(config: Config) -> Iterator[Slot]:
    if config.get("use_scale", True):
        yield Slot("scale", (None,))


def _cell(gates: int) -> Callable[[Config], Iterator[Slot]]:
    def make(config: Config) -> Iterator[Slot]:
        width = _length(config, "units", gates)
        yield Slot("kernel", (None, width))
        yield Slot("recurrent_kernel", (_length(config, "units"), width))
        yield from _bias(config, (2, width) if config.get("reset_after") else (width,))

    return make


def _convolutional_cell(config: Config) -> Iterator[Slot]:
    filters, width = _length(config, "filters"), _length(config, "filters", 4)
    sizes = config.get("kernel_size")
    kernel = _kernel_size(config, len(sizes) if isinstance(sizes, (list, tuple)) else 0)
    yield Slot("kernel", (*kernel, None, width))
    yield Slot("recurrent_kernel", (*kernel, filters, width))
    yield from _bias(config, (width,))


def _recurrent(cell_class: str, scope: str) -> Callable[[Config], Iterator[Slot]]:
    def make(config: Config) -> Iterator[Slot]:
        yield from _inside("cell", scope, cell_class, config)

    return make


def _rnn(config: Config) -> Iterator[Slot]:
    cell = Serialized.read(config.get("cell"))
    if cell is not None:
        yield from _inside("cell", _own_name(cell), bare_name(cell.class_name), cell.config)


def _stacked_cells(config: Config) -> Iterator[Slot]:
    cells = config.get("cells")
    counts: dict[str, int] = {}
    for value in cells if isinstance(cells, list) else ():
        cell = Serialized.read(value)
        if cell is None:
            continue
        kind = snake_case(bare_name(cell.class_name))
        count = counts[kind] = counts.get(kind, -1) + 1
        group = f"cells/{kind}" + (f"_{count}" if count else "")
        yield from _inside(group, _own_name(cell), bare_name(cell.class_name), cell.config)


def _bidirectional(config: Config) -> Iterator[Slot]:
    layer = Serialized.read(config.get("layer"))
    if layer is None:
        return
    for way in ("forward", "backward"):
        one = Serialized.read(config.get(f"{way}_layer")) or layer
        name = f"{way}_{_own_name(one)}"
        yield from _inside(f"{way}_layer", name, bare_name(one.class_name), one.config)


def _time_distributed(config: Config) -> Iterator[Slot]:
    layer = Serialized.read(config.get("layer"))
    if layer is not None:
        yield from _inside("layer", "", bare_name(layer.class_name), layer.config)


def _inside(group: str, scope: str, class_name: str, config: Config) -> Iterator[Slot]:
    """Yield the variables of a layer inside a layer; of an unknown class, one without a name."""
    inner = slots_of(class_name, config)
    for slot in inner if inner is not None else (Slot(""),):
        yield replace(
            slot,
            name="/".join(filter(None, (scope, slot.name))) if slot.name else "",
            group="/".join(filter(None, (group, slot.group))),
        )


def _own_name(layer: Serialized) -> str:
    return layer_name({"config": layer.config})


_LAYERS: Mapping[str, Callable[[Config], Iterator[Slot]]] = {
    **{name: _weighted(row.kernel, row.axes) for name, row in LAYERS.items() if row.axes},
    "AdditiveAttention": _additive_scores,
    "Attention": _scores,
    "BatchNormalization": _batch_normalization,
    "Bidirectional": _bidirectional,
    "ConvLSTM1D": _recurrent("ConvLSTMCell", ""),
    "ConvLSTM2D": _recurrent("ConvLSTMCell", ""),
    "ConvLSTM3D": _recurrent("ConvLSTMCell", ""),
    "ConvLSTMCell": _convolutional_cell,
    "Conv3DTranspose": _weighted("kernel", "DHWOI"),
    "EinsumDense": _einsum_dense,
    "Embedding": _embedding,
    "GRU": _recurrent("GRUCell", "gru_cell"),
    "GRUCell": _cell(3),
    "GroupNormalization": _affine,
    "LSTM": _recurrent("LSTMCell", "lstm_cell"),
    "LSTMCell": _cell(4),
    "LayerNormalization": _affine,
    "LocallyConnected1D": _locally_connected,
    "LocallyConnected2D": _locally_connected,
    "MultiHeadAttention": _attention,
    "Normalization": _normalization,
    "PReLU": _prelu,
    "RNN": _rnn,
    "SeparableConv1D": _separable(1),
    "SeparableConv2D": _separable(2),
    "SimpleRNN": _recurrent("SimpleRNNCell", "simple_rnn_cell"),
    "SimpleRNNCell": _cell(1),
    "StackedRNNCells": _stacked_cells,
    "SyncBatchNormalization": _batch_normalization,
    "TimeDistributed": _time_distributed,
}
