"""What the arguments of TFMOT's quantizers in a file may be: checked before any is believed."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from qmath.errors import FileFormatError
from qmath.readers.architecture.config import LayerFacts, Serialized
from qmath.readers.settings.facts import KINDS, is_flag, is_width
from qmath.readers.settings.tfmot import config_chain

__all__ = ["check_quantizers"]

_ALLOWED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "num_bits": (is_width, "a width from 2 to 16"),
    "per_axis": (is_flag, "true or false"),
    "symmetric": (is_flag, "true or false"),
    "narrow_range": (is_flag, "true or false"),
}


def check_quantizers(layers: Iterable[LayerFacts]) -> None:
    """Raise if a quantizer in a layer's config has an argument that none of its class can have.

    Raises
    ------
    FileFormatError
        Naming the layer, the argument and its value. What is missing stays unknown.
    """
    for layer in layers:
        for quantizer in _quantizers(layer):
            for name, (is_allowed, allowed) in _ALLOWED.items():
                value = quantizer.config.get(name)
                if name in quantizer.config and not is_allowed(value):
                    raise FileFormatError(
                        f"{layer.path}: {name} of its {quantizer.class_name} is "
                        f"{reprlib.repr(value)}, not {allowed}; the file is damaged, save the "
                        "model again"
                    )


def _quantizers(layer: LayerFacts) -> Iterator[Serialized]:
    """Yield the quantizers of TFMOT's that a ``QuantizeLayer`` or a ``QuantizeConfig`` holds."""
    yield from (q for q in (layer.quantizer,) if q and q.class_name in KINDS)
    chain = config_chain(layer)
    yield from (config for config in chain if config.class_name == "FixedQuantizeConfig")
    waiting: list[Any] = [config.config for config in chain]
    while waiting:
        value = waiting.pop()
        read = Serialized.read(value)
        if read is not None and read.class_name in KINDS:
            yield read
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
