"""Keras's newer format: which group of the file holds which layer of the model.

The file names no layers. Below each model lies one container, where a layer's group is called by
its class, counted within the container in the model's order: ``dense``, ``dense_1``. Keras 2.13
counts every layer twice, so that only the order of the numbers means something. A layer that two
models share is stored where it was met first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qmath.containers.hdf5 import Hdf5File
from qmath.errors import FileFormatError
from qmath.readers.architecture.config import (
    LayerFacts,
    bare_name,
    is_model,
    layer_entries,
    layer_facts,
    layer_name,
)
from qmath.readers.architecture.parsing import Architecture
from qmath.readers.architecture.variables import snake_case

__all__ = ["CONTAINERS", "find_groups"]

# Of today's Keras, and of Keras 2.13.
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_NUMBERED = re.compile(r"(.+?)(?:_([1-9]\d{0,8}))?", re.DOTALL)
_MET_BEFORE = "/"


def find_groups(file: Hdf5File, architecture: Architecture) -> list[tuple[LayerFacts, str | None]]:
    """Match the layers of a model to the groups of a file.

    Parameters
    ----------
    file : Hdf5File
        Open.
    architecture : Architecture
        Of the model; it must be Sequential or Functional.

    Returns
    -------
    list of (LayerFacts, str or None)
        Each layer, and the group that holds its variables (``None`` if it has none), in the model's
        order, those of nested models under their path.

    Raises
    ------
    FileFormatError
        The file holds other layers than the architecture.
    """
    walk = _Walk(file, architecture.where(file.path))
    walk.note_repeated(architecture.config)
    return list(walk.model(architecture.config, "", "", None))


class _Walk:
    def __init__(self, file: Hdf5File, where: str) -> None:
        self.file = file
        self.where = where
        self.described: set[Any] = set()
        self.repeated: set[int] = set()  # ids of entries that describe what was described before
        self.met: dict[Any, list[str]] = {}

    def note_repeated(self, model: Any) -> None:
        """Note which entries may be a layer again that another model holds as well."""
        for entry in layer_entries(model):
            signature = _signature(entry)
            if signature in self.described:
                self.repeated.add(id(entry))
            self.described.add(signature)
            self.note_repeated(entry)

    def model(
        self, model: Any, group: str, prefix: str, top: str | None
    ) -> Iterator[tuple[LayerFacts, str | None]]:
        """Yield the places of a model's layers, in the order in which Keras stores them."""
        entries = layer_entries(model)
        for entry, place in zip(entries, self._places(entries, group), strict=True):
            signature = _signature(entry)
            if place is _MET_BEFORE:
                met = self.met.get(signature, [])
                if len(met) > 1:
                    raise FileFormatError(
                        f"{self.where}: {prefix}{layer_name(entry)} is one of several layers of "
                        "that name, and the file does not show which; give them different names"
                    )
                place = met[0] if met else None
            elif place is not None:
                self.met.setdefault(signature, []).append(place)
            if not is_model(entry):
                yield layer_facts(entry, prefix, top), place
                continue
            name = layer_name(entry)
            if place is None:
                raise FileFormatError(
                    f"{self.where}: the weights of the model {prefix}{name} are missing; they "
                    "were saved of another model, or the file was cut"
                )
            yield from self.model(entry, place, f"{prefix}{name}/", name if top is None else top)

    def _places(self, entries: Sequence[Mapping[str, Any]], group: str) -> list[str | None]:
        """Return the group of each layer of a model, `_MET_BEFORE` for one stored elsewhere."""
        container = self._container(group)
        stored: dict[str, list[tuple[int, str]]] = {}
        for name in self.file.children(container) if container else ():
            match = _NUMBERED.fullmatch(name)
            if match is not None:
                stored.setdefault(match[1], []).append((int(match[2] or 0), f"{container}/{name}"))
        wanted: dict[str, list[int]] = {}
        for i, entry in enumerate(entries):
            wanted.setdefault(snake_case(bare_name(entry["class_name"])), []).append(i)
        places: list[str | None] = [None] * len(entries)
        for stem, indices in wanted.items():
            groups = [path for _, path in sorted(stored.pop(stem, []))]
            repeated = [i for i in indices if id(entries[i]) in self.repeated]
            if len(groups) < len(indices) == len(groups) + len(repeated):
                for i in repeated:
                    places[i] = _MET_BEFORE
                indices = [i for i in indices if i not in repeated]
            elif groups and len(groups) != len(indices):
                raise FileFormatError(
                    f"{self.where}: {group or 'the model'} has {len(indices)} layers of class "
                    f"{entries[indices[0]]['class_name']}, and the file the weights of "
                    f"{len(groups)}; they were saved of another model"
                )
            for i, path in zip(indices, groups, strict=False):  # none of what has no variables
                places[i] = path
        for _, path in (place for groups in stored.values() for place in groups):
            if self.file.datasets(path):
                raise FileFormatError(
                    f"{self.where}: {path} holds the weights of a layer that the model does not "
                    "have; they were saved of another model"
                )
        return places

    def _container(self, group: str) -> str | None:
        for name in CONTAINERS:
            path = f"{group}/{name}" if group else name
            if self.file.has(path):
                return path
        return None


def _signature(entry: Mapping[str, Any]) -> Any:
    """Return what two entries of one layer have in common, however each was serialized."""
    inner = tuple(_signature(layer) for layer in layer_entries(entry))
    return bare_name(str(entry["class_name"])), layer_name(entry), inner
