"""What each layer of a model's integer program costs, as its export to C computes it."""

from __future__ import annotations

from qmath.exports.bundle import fitting, quantize_model
from qmath.exports.c.costs import Cost
from qmath.exports.c.exporter import C
from qmath.exports.c.program import add_program
from qmath.exports.c.tensors import PACKINGS, Code, Names, add_tensors
from qmath.integer.profiles.fixed import constants
from qmath.model import QatModel

__all__ = ["costs"]


def costs(model: QatModel) -> tuple[dict[str, Cost], int]:
    """Return what each step of the integer program costs, and the bytes of its arena.

    Parameters
    ----------
    model : QatModel

    Returns
    -------
    dict of str to Cost
        By step, in the program's order; empty if there is no integer program.
    int
        What all tensors need, which share bytes.

    Raises
    ------
    QmathError
        The model cannot be exported to C.

    Examples
    --------
    >>> import qmath
    >>> found, arena = costs(qmath.load("reference/samples/default8.h5"))
    >>> found["dense/post_activation"].multiplications
    2560
    """
    bundle = quantize_model(model, layouts=fitting(model, C.layouts))
    if bundle.program is None:
        return {}, 0
    code, names = Code(), Names(C.name, bundle)
    views = add_tensors(code, bundle, names, PACKINGS[0])
    made = add_program(code, bundle, constants(bundle.program), names, views)
    return made.costs, made.arena_bytes
