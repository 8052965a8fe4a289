"""Which activation quantizers of a wrapper its layer can call.

TFMOT makes a quantizer for each activation that a ``QuantizeConfig`` names, and leaves it to
``set_quantize_activations`` to put it into the layer. One that was put nowhere is never called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["holds"]

# Objects looked at, and how deep: a layer's cells and what wraps an activation lie close.
_MAX_OBJECTS = 20_000
_MAX_DEPTH = 6
# Keras's ways from a layer to its neighbours, and so to the wrapper around it.
_NODES = ("_inbound_nodes", "_outbound_nodes")


def holds(layer: Any, wanted: Any) -> bool:
    """Tell whether an object is anywhere in a layer: attributes, containers, closures.

    If there is too much to look through, the answer is yes: what may be called counts as called.
    """
    seen: set[int] = set()
    waiting: deque[tuple[Any, int]] = deque([(layer, 0)])
    while waiting:
        thing, depth = waiting.popleft()
        if thing is wanted or len(seen) > _MAX_OBJECTS:
            return True
        if id(thing) in seen or depth > _MAX_DEPTH:
            continue
        seen.add(id(thing))
        waiting += ((part, depth + 1) for part in _parts(thing))
    return False


def _parts(thing: Any) -> Iterator[Any]:
    """Yield what an object of Python's refers to, without the variables of TensorFlow."""
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif not isinstance(thing, (str, bytes, int, float, type)) and not hasattr(thing, "numpy"):
        attributes = getattr(thing, "__dict__", {})
        yield from (part for name, part in attributes.items() if not name.startswith(_NODES))
        yield from (getattr(thing, name, None) for name in ("__self__", "func", "args", "keywords"))
        for cell in getattr(thing, "__closure__", None) or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not assigned yet
                continue
