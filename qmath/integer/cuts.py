"""What stands for the cut points of a program: functions of layers, and what is missing without."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.errors import QmathError
from qmath.integer.program import CutStep, FloatStep, Program, Shape, sources
from qmath.kernels._arrays import unmasked

__all__ = [
    "Layers",
    "bind",
    "checked_cuts",
    "checked_layers",
    "function_of",
    "missing",
    "probed",
    "with_cuts",
]

Array = NDArray[Any]
# By a layer's name or its class: float32 arrays of some examples in, one float32 array out.
Layers = Mapping[str, Callable[..., Any]]


def checked_layers(layers: Layers | None) -> Layers:
    """Return functions of layers, none if there are none.

    Raises
    ------
    QmathError
        They are no mapping of names to functions.
    """
    expected = "expected {NAME: function}, by the name or the class of a layer"
    for name, function in _checked_names("layers", layers, expected).items():
        if not callable(function):
            raise QmathError(
                f"layers has {_shown(function)} for {name}; expected a function of the layer's "
                "inputs, float32 arrays, that returns its output"
            )
    return layers or {}


def checked_cuts(cuts: Mapping[str, ArrayLike] | None) -> Mapping[str, ArrayLike]:
    """Return recorded outputs of cut points, none if there are none.

    Raises
    ------
    QmathError
        They are no mapping of names to arrays.
    """
    expected = "expected {NAME: array}, by the name of a layer"
    for name, array in _checked_names("cuts", cuts, expected).items():
        if array is None or isinstance(array, (str, bytes, Mapping)) or callable(array):
            raise QmathError(
                f"cuts has {_shown(array)} for {name}; expected an array (N, …) of what the layer "
                "made of the examples; functions of layers are given as layers="
            )
    return cuts or {}


def bind(program: Program, layers: Layers) -> Program:
    """Return a program whose cut points are computed by functions, where there is one.

    Parameters
    ----------
    program : Program
    layers : mapping of str to callable
        By the name of a cut's step or layer, or by its class: what takes the layer's inputs as
        read-only float32 arrays ``(N, …)`` of some of the examples, and returns its output of the
        same examples in float32. What a function returns is checked whenever it is called.

    Raises
    ------
    QmathError
        A name is that of no cut.
    """
    layers = checked_layers(layers)
    names = {name for cut in program.cuts for name in _names(cut.name, cut.layer, cut.class_name)}
    if unknown := [name for name in layers if name not in names]:
        raise _unasked("layers", unknown, program)
    return replace(program, steps=tuple(_bound(step, layers) for step in program.steps))


def with_cuts(
    program: Program, inputs: Mapping[str, ArrayLike], cuts: Mapping[str, ArrayLike] | None
) -> Mapping[str, ArrayLike]:
    """Return data of the inputs, and of cut points, under the names of their steps.

    Raises
    ------
    QmathError
        A name is that of no cut, neither of its step nor of its layer.
    """
    steps = {name: cut.name for cut in program.cuts for name in (cut.layer, cut.name)}
    given = dict(inputs)
    for name, array in checked_cuts(cuts).items():
        if name not in steps:
            raise _unasked("cuts", [name], program)
        given[steps[name]] = array
    return given


def function_of(
    layers: Layers, name: str, layer: str, class_name: str
) -> Callable[..., Any] | None:
    """Return the function of a cut: that of its step, of its layer, or of its class."""
    return next((layers[n] for n in _names(name, layer, class_name) if n in layers), None)


def probed(function: Callable[..., Any], name: str, shapes: Sequence[Shape]) -> Shape:
    """Return the shape, without the batch, of what a function makes of one example of zeros."""
    made = _called(function, name, [np.zeros((1, *shape), np.float32) for shape in shapes])
    if made.ndim < 1 or len(made) != 1:
        raise QmathError(
            f"{name}: of 1 example its function makes an array of shape {made.shape}, whose first "
            "axis has to be the examples"
        )
    return tuple(made.shape[1:])


def missing(program: Program, given: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return what cannot be computed: by cut point, the steps that need it.

    Parameters
    ----------
    program : Program
    given : collection of str
        The cut points whose outputs are data.

    Returns
    -------
    dict of str to tuple of str
        A step that needs several cuts is in the list of the first one, and so is a tensor that is
        no step because nothing tells the cut's shape. A cut that nothing but given ones reads is
        not missing.
    """
    origin: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    is_read: dict[str, bool] = {}  # whether what is missing needs a step; without: it is an end
    for step in program.steps:
        if isinstance(step, CutStep) and step.name not in given:
            found[step.name] = list(step.left_out)
        reads = step.behind if isinstance(step, CutStep) and step.behind else sources(step)
        for name in reads:
            is_read[name] = is_read.get(name, False) or step.name not in given
        if isinstance(step, CutStep):
            if step.name not in given:
                origin[step.name] = step.name
            continue
        first = next((origin[name] for name in reads if name in origin), None)
        if first is not None:
            origin[step.name] = first
            found[first].append(step.name)
    return {
        cut: tuple(names)
        for cut, names in found.items()
        if names or cut in program.outputs or is_read.get(cut, True)
    }


def _checked_names(argument: str, given: object, expected: str) -> Mapping[str, object]:
    """Return a mapping if it is one of strings."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise QmathError(f"{argument} is of type {type(given).__name__}; {expected}")
    for name in given:
        if not isinstance(name, str):
            raise QmathError(f"{argument} has {_shown(name)} as a name; {expected}")
    return given


def _shown(value: object) -> str:
    return "None" if value is None else f"what is of type {type(value).__name__}"


def _unasked(argument: str, names: Sequence[str], program: Program) -> QmathError:
    """Return the error that there is no cut of these names."""
    cuts = ", ".join(f"{cut.name} ({cut.class_name})" for cut in program.cuts)
    open_ends = [cut.name for cut in program.cuts if not cut.is_shaped]
    behind = (
        f"; more may follow {', '.join(open_ends)}, if you give the shape of what that makes"
        if open_ends
        else ""
    )
    return QmathError(
        f"{argument} has {', '.join(names)}, which qmath does not ask for; the layers that it "
        f"cannot compute are: {cuts or 'none'}{behind}"
    )


def _names(name: str, layer: str, class_name: str) -> tuple[str, ...]:
    return name, layer, class_name, class_name.rpartition(">")[2]


def _bound(step: Any, layers: Layers) -> Any:
    if not isinstance(step, CutStep):
        return step
    function = function_of(layers, step.name, step.layer, step.class_name)
    if function is None or step.behind:  # what it reads is not in the program
        return step
    if not step.is_shaped:
        raise QmathError(
            f"{step.name}: the program was made without the shape of this {step.class_name}; give "
            "the function to program_of, too"
        )
    apply = partial(_checked, function, step.name, step.shape)
    return FloatStep(step.name, step.sources, apply, step.shape)


def _checked(function: Callable[..., Any], name: str, shape: Shape, *parts: Array) -> Array:
    """Call a function, and raise unless it returns what its layer has to."""
    made = _called(function, name, parts)
    expected = (len(parts[0]), *shape)
    if made.shape != expected:
        raise QmathError(
            f"{name}: its function returned an array of shape {made.shape}, and {expected} follows "
            "from the model"
        )
    return made


def _called(function: Callable[..., Any], name: str, parts: Sequence[Array]) -> Array:
    given = [np.ascontiguousarray(part).view() for part in parts]
    for part in given:
        part.flags.writeable = False
    try:
        returned = function(*given)
        made = np.asarray(returned)
    except Exception as error:
        raise QmathError(f"{name}: its function failed ({error!r})") from error
    unmasked(returned, f"{name}: what its function returns")
    if made.dtype != np.float32:
        is_array = isinstance(returned, np.ndarray) or made.dtype.kind in "fiubc"
        what = str(made.dtype) if is_array else _shown(returned)
        raise QmathError(
            f"{name}: its function returned {what}; a layer's output is an array of float32: "
            "convert it"
        )
    if not np.isfinite(made).all():
        raise QmathError(f"{name}: its function returned NaN or infinities")
    return made
