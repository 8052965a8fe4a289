"""By which names people give a program's tensors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TypeVar

from qmath.errors import QmathError
from qmath.integer.program import Program, Requantize

__all__ = ["named", "tensor_named"]

_T = TypeVar("_T")

# Of golden vectors, and of what `qmath run -o` writes beside the integers.
_PREFIXES = ("vectors/", "output/")
_OTHERS = ("kernels/", "outputs/")  # of a dump: no tensors of a program


def named(program: Program, arrays: Mapping[str, _T]) -> tuple[dict[str, _T], list[str]]:
    """Return arrays by the names of the program's quantized tensors, and what is to be noted.

    A name is a tensor's own, or that with the prefix of golden vectors, or its layer's where the
    layer has one tensor; a file's name may have other characters in place of ``/``.

    Raises
    ------
    QmathError
        None is a tensor of the program, or two are the same.
    """
    tensors = _tensors(program)
    found: dict[str, tuple[int, str, _T]] = {}
    unknown: list[str] = []
    for key, array in arrays.items():
        rank, name = _match(key, tensors)
        if not name:
            unknown += [] if _is_known(key, program, tensors, arrays) else [key]
            continue
        if name in found and found[name][0] == rank:
            raise QmathError(f"{name}: both {found[name][1]!r} and {key!r} are this tensor")
        if name not in found or rank < found[name][0]:
            found[name] = rank, key, array
    if not found:
        held = "; ".join(f"{key!r}{_nearest(key, tensors)}" for key in unknown[:5]) or "nothing"
        raise QmathError(
            "there is none of the model's quantized tensors in what is compared with, which holds "
            f"{held}; the model has {', '.join(tensors[:5])}{', …' if len(tensors) > 5 else ''}"
        )
    notes = [
        f"not compared: {key!r}, which is no quantized tensor of the model{_nearest(key, tensors)}"
        for key in unknown
    ]
    return {name: array for name, (_, _, array) in found.items()}, notes


def tensor_named(program: Program, text: str) -> str:
    """Return the quantized tensor that a text means.

    Raises
    ------
    QmathError
        It means none.
    """
    tensors = _tensors(program)
    name = _match(text, tensors)[1]
    if not name:
        raise QmathError(
            f"{text!r} is no quantized tensor of the model{_nearest(text, tensors)}; it has "
            f"{', '.join(tensors)}"
        )
    return name


def _tensors(program: Program) -> list[str]:
    return list(program.quant_params)


def _match(key: str, tensors: list[str]) -> tuple[int, str]:
    """Return how far a name is from a tensor's own, and the tensor, ``""`` if it means none."""
    if key in tensors:
        return 0, key
    for rank, prefix in enumerate(_PREFIXES, 1):
        if key.startswith(prefix) and key.removeprefix(prefix) in tensors:
            return rank, key.removeprefix(prefix)
    plain = _plain(key.removeprefix(_PREFIXES[0]))
    for rank, of in ((3, str), (4, _layer)):
        meant = [name for name in tensors if _plain(of(name)) == plain]
        if plain and len(meant) == 1:
            return rank, meant[0]
    return 5, ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def _layer(name: str) -> str:
    return name.rpartition("/")[0]


def _is_known(key: str, program: Program, tensors: list[str], arrays: Mapping[str, _T]) -> bool:
    """Whether something of qmath's own lies beside the tensors, which is no mistake."""
    if "manifest" in arrays and not key.startswith(_PREFIXES[0]):  # an export with its vectors
        return True
    key = key.removeprefix(_PREFIXES[0])
    weights = {
        op.name
        for step in program.steps
        if isinstance(step, Requantize)
        for term in step.value.terms
        for op in term.ops
    }
    owner = key.partition(".")[0]
    return (
        key in program.inputs
        or key.startswith((*_PREFIXES, *_OTHERS))
        or ("." in key and owner in {*tensors, *weights})
        or key in weights
    )


def _nearest(key: str, tensors: list[str]) -> str:
    plain = {_plain(_layer(name)): name for name in tensors}
    plain |= {_plain(name): name for name in tensors}
    close = difflib.get_close_matches(_plain(key), plain, 2, 0.5)
    near = dict.fromkeys(plain[name] for name in close)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
