"""The C sources of a program, and of the functions that run its parts on a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle, fitting, quantize_model
from qmath.exports.c.exporter import C
from qmath.exports.c.lifetimes import segments
from qmath.exports.c.program import Model
from qmath.exports.c.tensors import Code
from qmath.exports.exporter import Content
from qmath.integer.describe import arrays
from qmath.integer.profiles.fixed import constants
from qmath.integer.program import FloatStep, Program, QuantizedStep, QuantizeStep, sources
from qmath.model import QatModel

__all__ = ["Source", "exported", "source_of"]

_HEAD = """\
/* Runs the integer model on a batch: each example through the model's own functions. */
#if defined __FAST_MATH__ || defined __ASSOCIATIVE_MATH__ || defined __RECIPROCAL_MATH__ \\
    || __FINITE_MATH_ONLY__ || __FLT_EVAL_METHOD__
#error "floats are not computed as IEEE 754 says; leave such options out of CC, or name another"
#endif
#define QM_BLOCK 256
#include "model_data.c"
#include "model.c"
#include <string.h>

#define RUN __attribute__((visibility("default"))) void

/* A tensor of an earlier part, of this example. */
#define GET(tensor, type, number, size) \\
    memcpy(tensor(), (const type *)integers[number] + v * (size), (size) * sizeof(type));

#define PUT(tensor, type, number, size) \\
    if (integers[number]) \\
        memcpy((type *)integers[number] + v * (size), tensor(), (size) * sizeof(type));
"""


@dataclass(frozen=True)
class Source:
    """C sources, and how to call them.

    Attributes
    ----------
    files : dict of str to bytes
        By name.
    main : str
        The file that includes the others.
    functions : list of str
        Of each part of the program between float layers, in order:
        ``void f(size_t count, const float *const *floats, void *const *integers)``.
    floats, integers : list of str
        What the pointers are: floats that are quantized, and the steps; a null one is left out.
    """

    files: dict[str, bytes]
    main: str
    functions: list[str]
    floats: list[str]
    integers: list[str]


class _Batched(C):
    """The ``c`` format with functions for batches in the place of the self-check."""

    main = "qmath_engine.c"

    def harness(
        self,
        code: Code,  # noqa: ARG002
        bundle: Bundle,
        model: Model | None,
    ) -> Iterator[tuple[str, Content]]:
        """Yield the file of these functions."""
        assert bundle.program is not None
        assert model is not None
        calls = _Calls(bundle.program, model)
        parts = [calls.function(number) for number in range(len(model.runs))]
        yield self.main, "\n".join([_HEAD, *parts]).encode("ascii")


def exported(model: QatModel, program: Program, multiplier_bits: int) -> Bundle:
    """Return what is exported of a model, with a program whose shapes the data may have told.

    Raises
    ------
    QmathError
        The model cannot be exported.
    """
    layouts = fitting(model, C.layouts)
    bundle = quantize_model(model, layouts=layouts, multiplier_bits=multiplier_bits)
    fixed = constants(program, multiplier_bits)
    return replace(bundle, program=program, constants=arrays(program, fixed))


def source_of(bundle: Bundle) -> Source:
    """Return the sources of a bundle's program.

    Raises
    ------
    OutputError
        It has what the C export does not cover.
    """
    program = bundle.program
    assert program is not None
    if program.cuts:
        raise OutputError(f"it has cut points: {', '.join(cut.name for cut in program.cuts)}")
    files = {}
    for name, content in _Batched().files(bundle):
        assert isinstance(content, bytes)
        files[name] = content
    functions = [_function(number) for number in range(len(segments(program)))]
    return Source(files, _Batched.main, functions, _floats(program), _integers(program))


def _function(number: int) -> str:
    return f"qmath_engine_{number}"


def _floats(program: Program) -> list[str]:
    steps = (step for step in program.steps if isinstance(step, QuantizeStep))
    return [*dict.fromkeys(step.source for step in steps)]


def _integers(program: Program) -> list[str]:
    return [step.name for step in program.steps if not isinstance(step, FloatStep)]


class _Calls:
    """Writes the function of one part after another."""

    def __init__(self, program: Program, model: Model) -> None:
        self._model = model
        self._steps = {s.name: s for s in program.steps if not isinstance(s, FloatStep)}
        self._floats, self._integers = _floats(program), _integers(program)

    def function(self, number: int) -> str:
        """Return the function of a part: it gets what it reads, and puts what each step makes."""
        _, steps = self._model.runs[number]
        own = {step.name for step in steps}
        lines = []
        for name in dict.fromkeys(name for step in steps for name in sources(step)):
            if name in self._steps and name not in own:
                lines.append(self._copy("GET", self._steps[name]))
        # Floats first: what is quantized later could take the place of a layer's result.
        for step in sorted(steps, key=lambda step: not isinstance(step, QuantizeStep)):
            if isinstance(step, QuantizeStep):
                at = f"floats[{self._floats.index(step.source)}] + v * {math.prod(step.shape)}"
                lines.append(f"{self._model.setters[step.name]}({at});")
            else:
                lines.append(f"{self._model.layers[step.name]}();")
            # At once, as a later layer may take its place.
            lines.append(self._copy("PUT", step))
        body = "".join(f"        {line}\n" for line in lines)
        return (
            f"RUN {_function(number)}(size_t count, const float *const *floats, "
            f"void *const *integers)\n{{\n    size_t v;\n\n"
            f"    for (v = 0; v < count; ++v) {{\n{body}    }}\n}}\n"
        )

    def _copy(self, macro: str, step: QuantizedStep) -> str:
        number, size = self._integers.index(step.name), math.prod(step.shape)
        tensor, kind = self._model.buffers[step.name], self._model.types[step.name]
        return f"{macro}({tensor}, {kind}, {number}, {size})"
