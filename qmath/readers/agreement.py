"""Whether weights belong to an architecture, that of their own file or of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qmath.errors import FileFormatError
from qmath.readers.architecture.architecture import Architecture
from qmath.readers.architecture.config import bare_name
from qmath.readers.architecture.variables import slots_of
from qmath.readers.pairing import OWN_WEIGHTS
from qmath.readers.settings.facts import Found

__all__ = ["check_agreement", "check_shapes"]


def check_agreement(found: Sequence[Found], architecture: Architecture, path: str) -> None:
    """Raise unless a model's layers have exactly the variables that its architecture asks for.

    Parameters
    ----------
    found : sequence of Found
        All tensors of the file.
    architecture : Architecture
        From another file, its `source`.
    path : str
        The file.

    Raises
    ------
    FileFormatError
        A layer or variable is in one file alone, or has another shape; the message names both.
    """
    shapes = {item.name: np.shape(item.values) for item in found if item.values is not None}
    kinds = {layer.path: layer.kind for layer in architecture.layers}
    for item in found:
        kind = kinds.get(item.layer.path)
        if kind is None and item.layer.top != OWN_WEIGHTS:
            raise _disagree(path, architecture, f"{item.name} belongs to no layer of the latter")
        if kind not in (None, item.layer.kind):
            where = "former" if kind == "plain" else "latter"
            raise _disagree(
                path, architecture, f"TFMOT quantizes {item.layer.path} in the {where} alone"
            )
    for layer in architecture.layers:
        for slot in slots_of(bare_name(layer.class_name), layer.config) or ():
            name = f"{layer.path}/{slot.name}"
            if slot.name and name not in shapes:
                raise _disagree(path, architecture, f"the former lacks {name}")
    check_shapes(found, architecture, path)


def check_shapes(found: Sequence[Found], architecture: Architecture, path: str) -> None:
    """Raise if a variable has another shape than its layer's config says.

    Parameters
    ----------
    found, architecture, path
        As of `check_agreement`; the architecture may be that of the file itself.

    Raises
    ------
    FileFormatError
        The message names the variable and both shapes.
    """
    shapes = {item.name: np.shape(item.values) for item in found if item.values is not None}
    for layer in architecture.layers:
        for slot in slots_of(bare_name(layer.class_name), layer.config) or ():
            name = f"{layer.path}/{slot.name}"
            if slot.name and name in shapes and not slot.fits(shapes[name]):
                wanted = ", ".join("any" if n is None else str(n) for n in slot.shape or ())
                how = (
                    f"{name} has the shape {shapes[name]}, and {layer.class_name} of that config "
                    f"one of ({wanted})"
                )
                if architecture.source:
                    raise _disagree(path, architecture, how)
                raise FileFormatError(f"{path}: {how}; the file is damaged, save the model again")


def _disagree(path: str, architecture: Architecture, how: str) -> FileFormatError:
    return FileFormatError(
        f"{path} does not hold the weights of the architecture in {architecture.source}: {how}; "
        "give the architecture of the model that was saved"
    )
