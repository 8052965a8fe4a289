"""The integer model in C: its tensors in one arena, and functions that call the kernels.

Where a layer runs in float32 the model is cut: what follows is a function of its own, which starts
from the integers that whoever computes the float layer makes of its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.arena import Buffer, plan
from qmath.exports.c.constants import add_scaling
from qmath.exports.c.costs import Cost, multiplications, ram_bytes, table
from qmath.exports.c.functions import Body, array, struct, tensor
from qmath.exports.c.lifetimes import Lifetimes, segments
from qmath.exports.c.source import braces
from qmath.exports.c.tensors import Code, Names
from qmath.exports.c.terms import Kernels, Operand, Place, has_wide_values
from qmath.integer.profiles.fixed import FixedPoint
from qmath.integer.program import (
    QuantizedStep,
    QuantizeStep,
    Requantize,
    Shape,
    SoftmaxStep,
    TableStep,
    Term,
)
from qmath.kernels._nudge import is_ordinary, nudge

__all__ = ["Model", "add_program"]


@dataclass
class Model:
    """The C names of a program's parts.

    Attributes
    ----------
    buffers, setters : dict of str to str
        By step: the function that says where its integers are; of those that quantize floats, the
        function that does.
    types : dict of str to str
        By step, the C type of its integers.
    runs : list of (str, list of QuantizedStep)
        The functions that run the model, in order, and the steps of each.
    layers : dict of str to str
        By step, the function that runs it alone; quantizers of floats have their setters.
    functions, declarations : list of str
        The source's: definitions of functions, and what stands before them.
    is_wide, has_wide_values : bool
        Whether an accumulator needs more than 32 bits, and what is multiplied more than 16.
    use, size : str
        The function that is given the arena, of ``arena=caller``, else empty; the macro of how many
        bytes it needs.
    arena : tuple of Buffer
        What lies in the arena, and when.
    arena_bytes : int
    costs : dict of str to Cost
        By step.
    """

    buffers: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    setters: dict[str, str] = field(default_factory=dict)
    runs: list[tuple[str, list[QuantizedStep]]] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    declarations: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    is_wide: bool = False
    has_wide_values: bool = False
    use: str = ""
    size: str = ""
    arena: tuple[Buffer, ...] = ()
    arena_bytes: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)

    def dtype(self, step: str) -> np.dtype[np.unsignedinteger[Any]]:
        """Return the type of a step's integers."""
        return np.dtype(self.types[step].removesuffix("_t"))


def add_program(
    code: Code,
    bundle: Bundle,
    constants: Mapping[str, tuple[FixedPoint, ...]],
    names: Names,
    views: Mapping[str, str],
    *,
    keeps_all: bool = False,
    is_callers: bool = False,
) -> Model:
    """Add the constants of the integer model, and write its functions.

    With `keeps_all` no tensor shares its bytes with another. With `is_callers` the arena is not a
    static array, but memory that the caller gives.
    """
    assert bundle.program is not None
    lifetimes = Lifetimes(bundle.program, keeps_all)
    writer = _Writer(code, bundle, constants, names, views, lifetimes)
    model = writer.model
    parts = segments(bundle.program)
    for number, steps in enumerate(parts, 1):
        for step in steps:
            writer.add_buffer(step)
        run = names.new("run" if len(parts) == 1 else f"run_{number}")
        model.runs.append((run, steps))
        code.header.append(f"void {run}(void);")
        for step in steps:
            writer.add_layer(step)
        body = [f"    {model.layers[step.name]}();" for step in steps if step.name in model.layers]
        model.functions.append(f"void {run}(void)\n{{\n" + "\n".join(body) + "\n}\n")
    writer.add_arena(is_callers)
    writer.add_costs()
    return model


class _Writer:
    """Writes one step after another."""

    def __init__(
        self,
        code: Code,
        bundle: Bundle,
        constants: Mapping[str, tuple[FixedPoint, ...]],
        names: Names,
        views: Mapping[str, str],
        lifetimes: Lifetimes,
    ) -> None:
        assert bundle.program is not None
        self.code, self.constants, self.names = code, constants, names
        self.lifetimes = lifetimes
        self.steps = {step.name: step for step in bundle.program.quantized}
        self.places: dict[str, str] = {}
        self.flash: dict[str, int] = {}
        self.arena_name = names.new("arena")
        self.kernels = Kernels(bundle, names, views, self.operand)
        bits = [b.max() for parts in constants.values() for b in parts[0].accumulator_bits]
        self.model = Model(
            is_wide=max(map(int, bits), default=0) > 32,
            has_wide_values=has_wide_values(bundle.program),
        )

    def operand(self, name: str) -> Operand:
        """Return a quantized tensor as a kernel reads it."""
        step = self.steps[name]
        size = _bytes(step)
        text = tensor(self.arena_name, self.places[name], size, step.params.zero_point)
        return Operand(text, step.shape)

    def add_buffer(self, step: QuantizedStep) -> None:
        """Add a step's integers to the arena, and of floats that it quantizes, the function."""
        model, params = self.model, step.params
        get = model.buffers[step.name] = self.names.new(step.name)
        size, width = math.prod(step.shape), _bytes(step)
        kind = model.types[step.name] = f"uint{8 * width}_t"
        shape = "x".join(map(str, step.shape)) or "a scalar"
        scale = source.literals(np.array(params.scale, np.float32))[0]
        place = self._add_place(step.name, size, width)
        real = f"(integers - {params.zero_point}) * {scale}"
        self.code.header += [
            f"\n/* {source.plain(step.name)}: {shape}; real values are {real}. */",
            f"#define {self.names.macro(step.name, 'SIZE')} {size}",
            f"{kind} *{get}(void);",
        ]
        address = f"{self.arena_name} + {place}"
        address = f"({kind} *)({address})" if width > 1 else address
        model.functions.append(f"{kind} *{get}(void)\n{{\n    return {address};\n}}\n")
        if isinstance(step, QuantizeStep):
            setter = model.setters[step.name] = self.names.new(f"set/{step.name}")
            self.code.header.append(
                f"void {setter}(const float *x); /* of {source.plain(step.source)} */"
            )
            model.functions.append(self._setter(step, setter))

    def _add_place(self, name: str, size: int, width: int, step: str = "") -> str:
        """Add bytes to the arena, for a tensor or while a step runs; return where they begin."""
        place = self.places[name] = self.names.new(f"at/{name}")
        first, last = self.lifetimes[step or name]
        if step:
            first = last = self.lifetimes.time(step)
        self.model.arena += (Buffer(place, max(size, 1) * width, width, first, last),)
        return place

    def add_layer(self, step: QuantizedStep) -> None:
        """Add the function that computes a step from its sources; a quantizer has its setter."""
        if isinstance(step, QuantizeStep):
            return
        body, before = Body(), set(self.code.sizes)
        self._add_step(body, step)
        self.flash[step.name] = self._flash(step, before)
        name = self.model.layers[step.name] = self.names.new(f"run/{step.name}")
        self.code.header.append(f"void {name}(void);")
        self.model.functions.append(body.text(f"void {name}(void)"))

    def _flash(self, step: QuantizedStep, before: set[str]) -> int:
        """Return the bytes of a step's constants, which are new, and of its weights."""
        sizes = self.code.sizes
        keys = set(sizes) - before
        if isinstance(step, Requantize):
            weights = {op.name for term in step.value.terms for op in term.ops if op.name}
            keys |= {key for name in weights for key in (name, f"{name}.zero_point")}
        return sum(sizes.get(key, 0) for key in keys)

    def _setter(self, step: QuantizeStep, setter: str) -> str:
        params = step.params
        if params.op == "tflite":
            return self._setter_of_tflite(step, setter)
        if params.build != "tf":
            raise OutputError(
                f"{step.name}: the exported C quantizes floats as the build 'tf' does, not as "
                f"{params.build!r}; export with kernels=false, or load the model without a build"
            )
        low, high = np.float32(params.min), np.float32(params.max)
        nudged = nudge(low, high, params.num_bits, params.low == 1)
        if not is_ordinary(nudged):
            raise OutputError(
                f"{step.name}: the range [{params.min:g}, {params.max:g}] is so narrow that "
                "subnormal numbers count, which C treats differently; export with kernels=false"
            )
        divides = params.op == "vars"
        factor = nudged.scale if divides else nudged.inverse
        numbers = np.stack([nudged.min, nudged.max, factor, nudged.quant_zero])
        constants = [*source.literals(numbers), int(divides)]
        body = Body()
        kept = body.static("qm_range", braces(constants), "range")
        out = body.local("qm_tensor", self.operand(step.name).tensor, "out")
        body.statements.append(f"qm_quantize(&{out}, x, {math.prod(step.shape)}, &{kept});")
        return body.text(f"void {setter}(const float *x)")

    def _setter_of_tflite(self, step: QuantizeStep, setter: str) -> str:
        """Return the function that quantizes floats as TFLite's QUANTIZE does."""
        low, high = step.params.limits
        numbers = np.array([1, low, high], np.float32) * np.float32(step.params.scale)
        scale, least, greatest = source.literals(numbers)
        body = Body()
        out = body.local("qm_tensor", self.operand(step.name).tensor, "out")
        body.statements += [
            "size_t i;\n",
            f"for (i = 0; i < {math.prod(step.shape)}; ++i) {{",
            f"    float clamped = x[i] > {greatest} ? {greatest} : x[i];",
            "    volatile float steps;",
            "    qm_int whole;",
            f"    clamped = clamped >= {least} ? clamped : {least};",
            f"    steps = clamped / {scale};",
            "    whole = (qm_int)steps; /* then half away from zero */",
            "    steps = steps - (float)whole;",
            f"    qm_set(&{out}, i, whole + (steps >= 0.5f) - (steps <= -0.5f));",
            "}",
        ]
        return body.text(f"void {setter}(const float *x)")

    def _add_step(self, body: Body, step: QuantizedStep) -> None:
        """Add the statements of a step; a quantizer's are in its own function."""
        assert not isinstance(step, QuantizeStep)
        out = body.local("qm_tensor", self.operand(step.name).tensor, "out")
        if isinstance(step, Requantize):
            terms = [self._term(body, term, step) for term in step.value.terms]
            constants = add_scaling(self.code, self.names, body, step, self.constants[step.name])
            given = body.local("qm_term", array(terms), "terms", True)
            body.statements.append(
                f"qm_requantize(&{out}, {given}, {_block(step.shape)}, &{constants});"
            )
        elif isinstance(step, TableStep):
            table = self.names[f"{step.name}.table"]
            self.code.values(table, f"{step.name}.table", step.table.astype(np.int32))
            given = body.local("qm_tensor", self.operand(step.source).tensor, "in")
            body.statements.append(
                f"qm_lookup(&{out}, &{given}, {math.prod(step.shape)}, {table});"
            )
        elif isinstance(step, SoftmaxStep):
            given = body.local("qm_tensor", self.operand(step.source).tensor, "in")
            of = body.static("qm_softmax_of", self._softmax(step), "softmax")
            body.statements.append(f"qm_softmax(&{out}, &{given}, &{of});")
        else:
            self._move(body, self.kernels.move(body, step), out)

    def _softmax(self, step: SoftmaxStep) -> str:
        table = self.names[f"{step.name}.exponentials"]
        self.code.values(table, f"{step.name}.exponentials", step.exponentials)
        axis = len(step.shape) + step.axis
        return struct({
            "rows": math.prod(step.shape[:axis]),
            "length": step.shape[axis],
            "distance": math.prod(step.shape[axis + 1 :]),
            "exponentials": table,
            "multiplier": step.multiplier,
            "shift": step.shift,
            "low": step.params.limits[0],
            "high": step.params.limits[1],
        })  # fmt: skip

    def _move(self, body: Body, place: Place, out: str) -> None:
        given = body.local("qm_term", place.term, "move")
        body.statements.append(f"qm_move(&{out}, &{given}, {_block(place.shape)});")

    def _term(self, body: Body, term: Term, step: Requantize) -> str:
        """Return a term's kernel; what it reads is computed before, if it is no tensor."""
        operand = self.operand(term.source)
        place = self.kernels.same(operand, step.shape)
        waits = False
        for op in term.ops:
            if op.kind == "reshape":
                operand = operand._replace(shape=op.shape)
                if waits:
                    operand, waits = self._kept(body, place, step, op.shape), False
                continue
            if waits:
                operand = self._kept(body, place, step, place.shape)
            place, waits = self.kernels.linear(body, op, operand, step.name), True
        return (place if waits else self.kernels.same(operand, step.shape)).term

    def _kept(self, body: Body, place: Place, step: Requantize, shape: Shape) -> Operand:
        """Compute accumulators; return where they are, in another shape."""
        number = sum(name.startswith(f"{step.name}/sums") for name in self.places)
        name, size = f"{step.name}/sums_{number}", 8 if self.model.is_wide else 4
        at = self._add_place(name, math.prod(place.shape), size, step.name)
        text = tensor(self.arena_name, at, size, 0)
        self._move(body, place, body.local("qm_tensor", text, "sums"))
        return Operand(text, shape)

    def add_costs(self) -> None:
        """Say what each step costs."""
        model, shapes = self.model, {name: step.shape for name, step in self.steps.items()}
        for name, step in self.steps.items():
            sides = self.constants.get(name, ())
            bits = [b.max() for side in sides for b in side.accumulator_bits]
            model.costs[name] = Cost(
                ram_bytes(model.arena, self.lifetimes.time(name)),
                self.flash.get(name, 0),
                multiplications(step, shapes),
                max(map(int, bits), default=0),
            )
        self.code.header += ["", *table(model.costs, model.arena_bytes)]

    def add_arena(self, is_callers: bool) -> None:
        """Add the memory, and where each tensor is in it."""
        model, arena = self.model, self.arena_name
        places, model.arena_bytes = plan(model.arena)
        alignment = max((buffer.alignment for buffer in model.arena), default=1)
        size = model.size = self.names.macro("arena", "BYTES")
        words = f"({size} + {alignment - 1}) / {alignment}"
        kind = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}[alignment]
        if is_callers:
            model.use = self.names.new("use_arena")
            model.declarations.append(f"static uint8_t *{arena};\n")
            model.functions.insert(
                0, f"void {model.use}(void *arena)\n{{\n    {arena} = (uint8_t *)arena;\n}}\n"
            )
            used = [f"void {model.use}(void *arena); /* aligned to {alignment}; call it first */"]
        else:
            model.declarations += [
                f"static {kind} memory[{words}];",
                f"static uint8_t *const {arena} = (uint8_t *)memory;\n",
            ]
            used = []
        self.code.header += [
            "\n/* The memory of all tensors. */", f"#define {size} {model.arena_bytes}", *used,
        ]  # fmt: skip
        lines = ",\n    ".join(
            f"{name} = {at}" for name, at in sorted(places.items(), key=lambda x: x[1])
        )
        model.declarations.append(
            "/* Where each tensor begins; those of different times may share bytes. */\n"
            f"enum {{\n    {lines}\n}};"
        )


def _bytes(step: QuantizedStep) -> int:
    """Return how many bytes an integer of a step's output takes."""
    return 1 if step.params.num_bits <= 8 else 2


def _block(shape: Shape) -> str:
    """Return the number of pixels and of channels."""
    return f"{math.prod(shape[:-1])}, {shape[-1] if shape else 1}"
