"""The ``c`` format: C99 sources of the integers, of the integer model, and a check of both.

``docs/code.md`` says what the files are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.check import check_source
from qmath.exports.c.program import Model, add_program
from qmath.exports.c.tensors import PACKINGS, Code, Names, add_tensors, check_prefix
from qmath.exports.exporter import Content, Exporter, option
from qmath.integer.profiles.fixed import constants
from qmath.integer.program import CutStep, FloatStep, Program, QuantizeStep, sources

__all__ = ["C"]

_REAL = "/* The real value of an integer, in float: (integer - zero_point) * scale. */"


class C(Exporter):
    """The ``c`` format.

    Raises
    ------
    OutputError
        The prefix is not an identifier; no weight has a width that the packing knows; the model
        has what the kernels do not.
    """

    name = "c"
    is_folder = True
    vectors = 2
    layouts = ("OI", "OWI", "OHWI", "ODHWI")  # the kernels multiply along I
    packing: str = option(
        "bytes",
        "one integer to an element, or a layout of qmath.pack; integers of a width that it does "
        "not know are written one to an element",
        PACKINGS,
    )
    prefix: str = option("model", "what all names begin with: an identifier")
    kernels: bool = option(True, "write the integer model, if there is one, with its kernels")
    arena: str = option(
        "static",
        "the memory of the model's tensors: a static array, or what model_use_arena is given",
        ("static", "caller"),
    )
    keep: str = option(
        "outputs",
        "the tensors that are there after a run: the outputs and what float layers read, or all",
        ("outputs", "all"),
    )

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._models: WeakKeyDictionary[Bundle, Model] = WeakKeyDictionary()

    def manifest(self, bundle: Bundle) -> dict[str, Any]:
        """Return the bundle's manifest with the format, its options, and what each layer costs."""
        manifest, model = super().manifest(bundle), self._models.get(bundle)
        if model is not None:
            layers = {name: cost._asdict() for name, cost in model.costs.items()}
            manifest["export"]["costs"] = {"arena": model.arena_bytes, "layers": layers}
        return manifest

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the name and the text of each source file."""
        prefix = self.prefix
        check_prefix(prefix)
        names, code, model = Names(prefix, bundle), Code(), None
        views = add_tensors(code, bundle, names, self.packing)
        if bundle.program is not None and self.kernels:
            fixed = constants(bundle.program, bundle.manifest["options"]["multiplier_bits"])
            model = add_program(
                code, bundle, fixed, names, views,
                keeps_all=self.keep == "all", is_callers=self.arena == "caller",
            )  # fmt: skip
            self._models[bundle] = model
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
        yield from self.harness(code, bundle, model)

    def harness(
        self, code: Code, bundle: Bundle, model: Model | None
    ) -> Iterator[tuple[str, Content]]:
        """Yield the file with what calls the model: a self-check."""
        head = [f"/* A check of {source.title(bundle.manifest)}", f'#include "{self.prefix}.h"']
        check = source.text([*head, *check_source(code, bundle, model)])
        yield f"{self.prefix}_test.c", check


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
    if model.has_wide_values:
        yield "#define QM_WIDE_VALUES"
    yield '#include "qmath_kernels.h"'
    yield from map(source.comment, _usage(bundle.program, model))


def _usage(program: Program, model: Model) -> Iterator[str]:
    """Say in words how to run the model, and what is not in it."""
    for run, steps in model.runs:
        setters = [model.setters[s.name] for s in steps if isinstance(s, QuantizeStep)]
        yield f"Call {', '.join(setters)} with floats, then {run}."
    floats = [step for step in program.steps if isinstance(step, FloatStep)]
    left = [step for step in floats if not isinstance(step, CutStep)]
    if left:
        yield "Not in here, because training left it float, so that it is yours to compute:"
    for step in left:
        yield f"  {step.name}, of {', '.join(sources(step))}"
    if program.cuts:
        yield "Not in here, because qmath cannot compute it, so that it is yours to compute:"
    for cut in program.cuts:
        reason = f": {cut.reason}" if cut.reason else ""
        reads = f"of {', '.join(sources(cut))}"
        if cut.behind:
            reads = f"of what follows {', '.join(cut.behind)}, whose shape is not known"
        yield f"  {cut.name} ({cut.class_name}), {reads}{reason}"
    unknown = {cut.name.removesuffix("/activation") for cut in program.cuts}
    for layer, remedy in program.float_layers.items():
        if layer in unknown:
            continue
        yield f"To have {layer} in integers: {remedy}."
