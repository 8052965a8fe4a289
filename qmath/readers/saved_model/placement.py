"""Which layer an op belongs to that reads no variable: told by its scopes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qmath.readers.architecture.config import Kind, LayerFacts
from qmath.readers.completion import OWN_WEIGHTS
from qmath.readers.records import StoredLayer, StoredTensor
from qmath.readers.saved_model.functions import Output
from qmath.readers.settings.tfmot import activation_ranges, config_chain, is_custom

__all__ = ["Place", "Places"]

_CALL = re.compile(r"_\d+\Z")  # of a shared layer, the second call and all that follow

# Activations that clip by themselves.
_CLIP = ("hard_sigmoid", "relu6", "hard_silu", "hard_swish")


@dataclass(frozen=True, eq=False)
class Place:
    """Where an op quantizes.

    Attributes
    ----------
    layer : LayerFacts
    name : str
        As in `StoredTensor`; ``""`` if the layer has no more places.
    key : tuple of str
        The same for the op in each call of a shared layer.
    doubt : str
        What else the place may be called, for messages.
    """

    layer: LayerFacts
    name: str
    key: tuple[str, str]
    doubt: str = ""

    @property
    def label(self) -> str:
        """The name of a tensor here, or that of the layer."""
        return f"{self.layer.path}/{self.name}" if self.name else self.layer.path

    def added(self, layers: Sequence[StoredLayer], tensor: StoredTensor) -> list[StoredLayer]:
        """Return layers with one more tensor."""
        found = [
            replace(layer, tensors=[*layer.tensors, tensor])
            if layer.facts.path == self.layer.path
            else layer
            for layer in layers
        ]
        is_new = all(layer.facts.path != self.layer.path for layer in layers)
        return [*found, StoredLayer(self.layer, [tensor])] if is_new else found


class Places:
    """Finds layers by scopes.

    Parameters
    ----------
    facts : iterable of LayerFacts
        All layers of the model's config, empty if it has none.
    """

    def __init__(self, facts: Iterable[LayerFacts]) -> None:
        self._facts = {layer.path: layer for layer in facts}

    def of(self, output: Output, layers: Sequence[StoredLayer], *, is_input: bool) -> Place:
        """Return the place of an op that quantizes what flows, or rounds it.

        Parameters
        ----------
        output : Output
        layers : sequence of StoredLayer
            With the tensors that are placed already.
        is_input : bool
            Whether it takes an input of the model.
        """
        known = {**{layer.facts.path: layer.facts for layer in layers}, **self._facts}
        parts = [part.removeprefix("quant_") for part in output.name.split("/")]
        told = ((path, rest) for path, rest in _prefixes(parts) if path in known)
        path, rest = next(told, None) or _by_scope(output.name.split("/"))
        kind: Kind = "quantize_layer" if is_input else "wrapper"
        own_name = {"name": path.rpartition("/")[2]}
        facts = known.get(path) or LayerFacts(path, path, path, "", own_name, kind)
        own = [tensor for layer in layers if layer.facts.path == path for tensor in layer.tensors]
        taken = {tensor.own_name for tensor in own}
        free = [name for name in self._names(facts, own) if name not in taken]
        name = free[0] if free else ""
        is_sure = path in self._facts or name != "post_activation"
        doubt = "" if is_sure else f"; a config may call it {path}/output"
        return Place(facts, name, (path, rest), doubt)

    def unnamed(self, tensors: Mapping[object, StoredTensor]) -> list[str]:
        """Return the names of those tensors that could as well be their layers' outputs."""
        names = [t.name for t in tensors.values() if t.layer.path not in self._facts]
        return [name for name in names if name.endswith("/post_activation")]

    def may_clip(self, layer: LayerFacts, output: Output, layers: Sequence[StoredLayer]) -> bool:
        """Tell whether an op that clips may be a user's quantizer, not the layer's activation."""
        tensors = [t for each in layers if each.facts.path == layer.path for t in each.tensors]
        if not any(tensor.values is not None for tensor in tensors):
            return False
        if layer.path not in self._facts:
            return any(part.startswith("quant_") for part in output.name.split("/")[:-1])
        chain = config_chain(layer)
        return bool(chain) and is_custom(chain[-1]) and layer.config.get("activation") not in _CLIP

    def _names(self, facts: LayerFacts, tensors: Sequence[StoredTensor]) -> tuple[str, ...]:
        """Return where a layer can quantize, in the order of computation."""
        if facts.kind == "quantize_layer":
            return ("output",)
        if facts.path in self._facts:
            return (*activation_ranges(facts), "output") if facts.kind == "wrapper" else ()
        has_weights = any(tensor.values is not None for tensor in tensors)
        return ("post_activation", "output") if has_weights else ("output",)


def _prefixes(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what may be a layer's path, and the rest of an op's name, the likeliest first."""
    for start in (1, 0):
        for end in range(len(parts) - 1, start, -1):
            rest = "/".join(parts[end:])
            path = "/".join(parts[start:end])
            yield path, rest
            if _CALL.search(path):
                yield _CALL.sub("", path), rest


def _by_scope(parts: Sequence[str]) -> tuple[str, str]:
    """Return the path of a layer below the model's scope, as `scopes.layer_path` names it."""
    wrapped = [place for place, part in enumerate(parts[:-1]) if part.startswith("quant_")]
    end = wrapped[0] + 1 if wrapped else min(2, len(parts) - 1)
    path = "/".join(part.removeprefix("quant_") for part in parts[1:end]) or OWN_WEIGHTS
    return path, "/".join(parts[end:])
