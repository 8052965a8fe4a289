"""The ``c`` format: C99 sources of the integers, of the integer model, and a check of both.

``docs/code.md`` says what the files are for.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.check import check_source
from qmath.exports.c.program import Model, add_program
from qmath.exports.c.tensors import PACKINGS, Code, Names, add_tensors, check_prefix
from qmath.integer.profiles.profiles import constants
from qmath.integer.program import FloatStep, Program, QuantizeStep, sources

__all__ = ["VECTORS", "render"]

VECTORS = 2
_REAL = "/* The real value of an integer, in float: (integer - zero_point) * scale. */"


def render(
    bundle: Bundle, *, packing: str = "bytes", prefix: str = "model", kernels: bool = True
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the text of each source file.

    Parameters
    ----------
    bundle : Bundle
    packing : str
        ``"bytes"``, one integer to an element, or a layout of `qmath.pack`. Weights of a width
        that the layout does not know are written one to an element.
    prefix : str
        What all names begin with: an identifier.
    kernels : bool
        Write the integer model, if there is one, with its reference kernels; otherwise the arrays
        only.

    Yields
    ------
    name : str
    content : bytes

    Raises
    ------
    OutputError
        An option has another value; no weight has a width that the layout knows; the model
        has what the kernels do not.
    """
    _check(packing, prefix, kernels)
    names, code, model = Names(prefix, bundle), Code(), None
    views = add_tensors(code, bundle, names, packing)
    if bundle.program is not None and kernels:
        fixed = constants(bundle.program, bundle.manifest["options"]["multiplier_bits"])
        model = add_program(code, bundle, fixed, names, views)
    title = source.title(bundle.manifest)
    yield "qmath_integers.h", source.template("qmath_integers.h")
    yield "qmath_check.h", source.template("qmath_check.h")
    head = [f"/* The integers of {title}", _REAL, *_head(bundle, model)]
    yield f"{prefix}.h", source.header(f"{prefix}.h", head, code.header)
    own = f'#include "{prefix}.h"'
    data = [f"/* The integers of {title}", "#include <math.h>\n", own, "", *code.data]
    yield f"{prefix}_data.c", source.text(data)
    if model is not None:
        yield "qmath_kernels.h", source.template("qmath_kernels.h")
        functions = [f"/* The integer model of {title}", own, "", *model.declarations, ""]
        yield f"{prefix}.c", source.text([*functions, *model.functions])
    yield (
        f"{prefix}_test.c",
        source.text([f"/* A check of {title}", own, *check_source(code, bundle, model)]),
    )


def _check(packing: str, prefix: str, kernels: bool) -> None:
    if packing not in PACKINGS:
        raise OutputError(f"packing={packing!r}: use one of {', '.join(PACKINGS)}")
    check_prefix(prefix)
    if not isinstance(kernels, bool):
        raise OutputError(f"kernels={kernels!r}: use true or false")


def _head(bundle: Bundle, model: Model | None) -> Iterator[str]:
    """Yield what stands above the declarations."""
    if model is None:
        yield '#include "qmath_integers.h"'
        if bundle.program is None:
            yield from map(source.comment, bundle.manifest["notes"])
        return
    assert bundle.program is not None
    if model.is_wide:
        yield "#define QM_WIDE"
    yield '#include "qmath_kernels.h"'
    yield from map(source.comment, _usage(bundle.program, model))


def _usage(program: Program, model: Model) -> Iterator[str]:
    """Say in words how to run the model, and what is not in it."""
    for run, steps in model.runs:
        setters = [model.setters[s.name] for s in steps if isinstance(s, QuantizeStep)]
        yield f"Call {', '.join(setters)} with floats, then {run}: each tensor is in its array."
    floats = [step for step in program.steps if isinstance(step, FloatStep)]
    if floats:
        yield "Not in here, because training left it float, so that it is yours to compute:"
    for step in floats:
        yield f"  {step.name}, of {', '.join(sources(step))}"
    for layer, remedy in program.float_layers.items():
        yield f"To have {layer} in integers: {remedy}."
