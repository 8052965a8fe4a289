"""The integer model in C: its constants, and functions that call the reference kernels.

Where a layer runs in float32 the model is cut: what follows is a function of its own, which starts
from the integers that whoever computes the float layer makes of its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.source import braces
from qmath.exports.c.tensors import Code, Names
from qmath.integer.profiles.exact import clamps
from qmath.integer.profiles.fixed import FixedPoint
from qmath.integer.program import (
    FloatStep,
    Linear,
    MoveStep,
    Program,
    QuantizedStep,
    QuantizeStep,
    QuantParams,
    Requantize,
    Shape,
    SoftmaxStep,
    TableStep,
    sources,
)
from qmath.kernels._nudge import is_ordinary, nudge
from qmath.kernels.quantized_tensor import QuantizedTensor

__all__ = ["Model", "add_program", "segments"]

Array = NDArray[Any]
_MOST_AXES = 4


@dataclass
class Model:
    """The C names of a program's parts.

    Attributes
    ----------
    buffers, setters : dict of str to str
        By step: the array of its integers; of those that quantize floats, the function.
    runs : list of (str, list of QuantizedStep)
        The functions that run the model, in order, and the steps of each.
    layers : dict of str to str
        By step, the function that runs it alone; quantizers of floats have their setters.
    functions, declarations : list of str
        The source's: definitions of functions, and what stands before them.
    is_wide : bool
        Whether an accumulator needs more than 32 bits.
    """

    buffers: dict[str, str] = field(default_factory=dict)
    setters: dict[str, str] = field(default_factory=dict)
    runs: list[tuple[str, list[QuantizedStep]]] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    declarations: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    is_wide: bool = False


def segments(program: Program) -> list[list[QuantizedStep]]:
    """Return the integer steps, cut where a float layer lies between them."""
    depth = dict.fromkeys(program.inputs, 0)
    found: dict[int, list[QuantizedStep]] = {}
    for step in program.steps:
        level = max((depth[name] for name in sources(step)), default=0)
        if isinstance(step, FloatStep):
            level += 1
        else:
            found.setdefault(level, []).append(step)
        depth[step.name] = level
    return [found[level] for level in sorted(found)]


def add_program(
    code: Code,
    bundle: Bundle,
    constants: Mapping[str, tuple[FixedPoint, ...]],
    names: Names,
    views: Mapping[str, str],
) -> Model:
    """Add the constants of the integer model, and write its functions."""
    assert bundle.program is not None
    model = Model()
    writer = _Writer(code, bundle, constants, names, views, model)
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
    model.declarations += [
        f"static qm_int {name}[{size}];" for name, size in writer.scratch.items()
    ]
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
        model: Model,
    ) -> None:
        assert bundle.program is not None
        self.code, self.bundle, self.constants, self.names = code, bundle, constants, names
        self.views, self.model = views, model
        self.scratch: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {step.name: step.shape for step in bundle.program.steps}
        self.quant_params = bundle.program.quant_params
        bits = [b.max() for parts in constants.values() for b in parts[0].accumulator_bits]
        model.is_wide = max(map(int, bits), default=0) > 32

    def add_buffer(self, step: QuantizedStep) -> None:
        """Add the array of a step's integers, and of floats that it quantizes, the function."""
        name = self.model.buffers[step.name] = self.names.new(step.name)
        size = math.prod(step.shape)
        shape = "x".join(map(str, step.shape)) or "a scalar"
        scale = source.literals(np.array(step.params.scale, np.float32))[0]
        self.code.header += [
            f"\n/* {source.plain(step.name)}: {shape}; real values are integers * {scale}. */",
            f"#define {self.names.macro(step.name, 'SIZE')} {size}",
            f"extern qm_int {name}[{max(size, 1)}];",
        ]
        self.model.declarations.append(f"qm_int {name}[{max(size, 1)}];")
        if isinstance(step, QuantizeStep):
            setter = self.model.setters[step.name] = self.names.new(f"set/{step.name}")
            self.code.header.append(
                f"void {setter}(const float *x); /* of {source.plain(step.source)} */"
            )
            self.model.functions.append(self._setter(step, setter, name, size))

    def add_layer(self, step: QuantizedStep) -> None:
        """Add the function that computes a step from its sources; a quantizer has its setter."""
        lines = self.lines(step)
        if lines:
            name = self.model.layers[step.name] = self.names.new(f"run/{step.name}")
            self.code.header.append(f"void {name}(void);")
            self.model.functions.append(f"void {name}(void)\n{{\n" + "\n".join(lines) + "\n}\n")

    def _setter(self, step: QuantizeStep, setter: str, buffer: str, size: int) -> str:
        params = step.params
        if params.op == "tflite":
            return _setter_of_tflite(params, setter, buffer, size)
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
        return (
            f"void {setter}(const float *x)\n{{\n"
            f"    static const qm_range range = {braces(constants)};\n\n"
            f"    qm_quantize({buffer}, x, {size}, &range);\n}}\n"
        )

    def lines(self, step: QuantizedStep) -> list[str]:
        """Return the statements of a step; a quantizer's are in its own function."""
        if isinstance(step, QuantizeStep):
            return []
        target = self.model.buffers[step.name]
        title = f"    /* {source.plain(step.name)} */"
        if isinstance(step, Requantize):
            return [title, *self._requantize(step, target)]
        origin = self.model.buffers[step.source]
        size = math.prod(step.shape)
        if isinstance(step, TableStep):
            table = self.names[f"{step.name}.table"]
            self.code.values(table, f"{step.name}.table", step.table.astype(np.int32))
            zero = self.quant_params[step.source].zero_point
            return [title, f"    qm_lookup({target}, {origin}, {size}, {table}, {zero});"]
        if isinstance(step, SoftmaxStep):
            return [title, self._softmax(step, target, origin)]
        return [title, self._move(step, target, origin)]

    def _softmax(self, step: SoftmaxStep, target: str, origin: str) -> str:
        table = self.names[f"{step.name}.exponentials"]
        self.code.values(table, f"{step.name}.exponentials", step.exponentials)
        axis = len(step.shape) + step.axis
        fields = {
            "rows": math.prod(step.shape[:axis]),
            "length": step.shape[axis],
            "distance": math.prod(step.shape[axis + 1 :]),
            "exponentials": table,
            "multiplier": step.multiplier,
            "shift": step.shift,
            "low": step.params.limits[0],
            "high": step.params.limits[1],
        }
        return f"    qm_softmax({target}, {origin}, {_struct('qm_softmax_of', fields)});"

    def _move(self, step: MoveStep, target: str, origin: str) -> str:
        before = self.shapes[step.source]
        attributes = dict(step.attributes)
        kind = attributes.pop("kind")
        if kind in ("pool_max", "pool_min"):
            first = step.params.limits[kind == "pool_min"]
            window = _window(before, step.shape, attributes)
            return f"    qm_{kind}({target}, {origin}, {window}, {first});"
        if kind == "reshape":
            return f"    qm_copy({target}, {origin}, {math.prod(step.shape)});"
        return self._rearranged(kind, step.name, before, step.shape, attributes, target, origin)

    def _rearranged(
        self,
        kind: str,
        name: str,
        before: Shape,
        after: Shape,
        attributes: Mapping[str, Any],
        target: str,
        origin: str,
    ) -> str:
        """Return the call of a padding, a crop, a repetition or a permutation."""
        before = (1,) * (len(after) - len(before)) + before
        self._check_axes(name, before)
        ones = [1] * (_MOST_AXES - len(before))
        zeros = [0] * len(ones)
        if kind == "permute":
            strides = [math.prod(before[axis:]) for axis in attributes["axes"][1:]]
            arguments: tuple[list[int], ...] = ([*ones, *after], [*zeros, *strides])
            function = "qm_permute"
        else:
            first, factors = [0] * len(before), [1] * len(before)
            if kind == "pad":
                first = [int(ends[0]) for ends in attributes["pads"]]
            elif kind == "crop":
                first = [-int(ends[0]) for ends in attributes["crops"]]
            else:
                factors[: len(attributes["size"])] = attributes["size"]
            function = "qm_place"
            arguments = ([*ones, *after], [*ones, *before], [*zeros, *first], [*ones, *factors])
        lists = ", ".join(f"(const int32_t[4]){braces(a)}" for a in arguments)
        return f"    {function}({target}, {origin}, {lists});"

    def _requantize(self, step: Requantize, target: str) -> list[str]:
        lines, sums, busy = [], [], set[str]()
        for term in step.value.terms:
            origin, shape = self.model.buffers[term.source], self.shapes[term.source]
            for op in term.ops:
                if op.kind != "reshape":
                    place = self._scratch(math.prod(op.shape), busy)
                    lines.append(self._op(op, shape, place, origin, step.name))
                    busy.discard(origin)
                    busy.add(place)
                    origin = place
                shape = op.shape
            sums.append(origin)
        constants = self._scaling(step)
        size = math.prod(step.shape)
        lines.append(
            f"    qm_requantize({target}, (const qm_int *const[]){braces(sums)}, {size}, "
            f"{constants});"
        )
        return lines

    def _scratch(self, size: int, busy: set[str]) -> str:
        """Return the name of an idle array for accumulators, of `size` or more."""
        number = 0
        while (name := f"sums_{number}") in busy:
            number += 1
        self.scratch[name] = max(self.scratch.get(name, 1), size)
        return name

    def _op(self, op: Linear, before: Shape, target: str, origin: str, step: str) -> str:
        """Return the call of one operation on accumulators."""
        if op.kind == "pool_sum":
            window = _window(before, op.shape, op.attributes)
            return f"    qm_pool_sum({target}, {origin}, {window});"
        if op.kind == "bilinear":
            given = [f"(const int32_t[]){braces(a)}" for a in (before, op.attributes["size"])]
            return f"    qm_bilinear({target}, {origin}, {', '.join(given)});"
        if op.factor is not None:
            return self._product(op, before, target, origin, step)
        if op.weights is None:
            return self._rearranged(op.kind, step, before, op.shape, op.attributes, target, origin)
        weights = self._weights(op)
        if op.kind == "dense":
            rows, outputs = math.prod(before[:-1]), op.shape[-1]
            return f"    qm_dense({target}, {origin}, {rows}, {outputs}, {weights});"
        if op.kind == "conv3d":
            plane = {key: values[1:] for key, values in op.attributes.items()}
            window = _window(before[1:], op.shape[1:], plane, op.weights.shape[1:3])
            depth = _depth(before[0], op, self._distances(op)["D"])
            return f"    qm_conv3d({target}, {origin}, {depth}, {window}, {weights});"
        window = _window(before, op.shape, op.attributes, op.weights.shape[:2])
        return f"    qm_{op.kind}({target}, {origin}, {window}, {weights});"

    def _product(self, op: Linear, before: Shape, target: str, origin: str, step: str) -> str:
        """Return the call of a product, in which either tensor may repeat along an axis."""
        assert op.factor is not None
        self._check_axes(step, op.shape)
        lists = [[1] * (_MOST_AXES - len(op.shape)) + list(op.shape)]
        for shape in (before, op.factor.shape):
            shape = (1,) * (_MOST_AXES - len(shape)) + shape
            strides = [math.prod(shape[axis + 1 :]) for axis in range(_MOST_AXES)]
            lists.append([0 if n == 1 else s for n, s in zip(shape, strides, strict=True)])
        given = ", ".join(f"(const int32_t[4]){braces(a)}" for a in lists)
        factor = self.model.buffers[op.factor.source]
        return f"    qm_multiply({target}, {origin}, {factor}, {given});"

    def _check_axes(self, name: str, shape: Shape) -> None:
        if len(shape) > _MOST_AXES:
            raise OutputError(
                f"{name}: the C kernels know arrays of up to {_MOST_AXES} axes, and this one has "
                f"{len(shape)}; export with kernels=false"
            )

    def _weights(self, op: Linear) -> str:
        """Return where an operation finds its weights in the exported array."""
        assert op.weights is not None
        record = self.bundle.tensors[op.name]
        assert isinstance(record, QuantizedTensor)
        # Along the axes of the model's own order, of which W of one dimension is the second of HW.
        own = self.bundle.manifest["tensors"][op.name]["source_layout"]
        distances = self._distances(op)
        letters = own.rjust(4, "-")[-4:]
        strides = [distances.get(letter, 0) for letter in letters]
        depth = op.weights.shape[-1 if op.kind == "conv2d_transpose" else -2]
        zero = self.names[f"{op.name}.zero_point"]
        points = zero if record.zero_point.ndim else f"(const int32_t[]){{{zero.upper()}}}"
        count, first = record.zero_point.size, 0
        if "part" in op.attributes:
            axis, start, step = op.attributes["part"]
            first = start * distances[axis]
            strides[letters.index(axis)] *= step
            if count > 1 and axis == letters[-1]:
                points, count = f"{zero} + {start}", 1
        fields: dict[str, object] = {
            "integers": f"&{self.views[op.name]}",
            "stride": braces(strides),
            "depth": depth,
            "zero_point": points,
            "zero_points": count,
        }
        if first:
            fields["first"] = first
        return _struct("qm_weights", fields)

    def _distances(self, op: Linear) -> dict[str, int]:
        """Return how far apart neighbours along each axis of an operation's weights are."""
        layout = self.bundle.manifest["tensors"][op.name]["layout"]
        record = self.bundle.tensors[op.name]
        assert isinstance(record, QuantizedTensor)
        shape = record.values.shape
        return {letter: math.prod(shape[i + 1 :]) for i, letter in enumerate(layout)}

    def _scaling(self, step: Requantize) -> str:
        """Add a step's constants; return their struct."""
        sides = self.constants[step.name]
        limits = clamps(step)
        arrays: list[Array] = [*limits]
        for fixed in sides:
            arrays += [*fixed.multipliers, fixed.addend, fixed.shift]
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        if len(shape) > 1:  # each element has its own
            shape = step.shape

        def add(key: str, array: Array, dtype: Any, shape: Shape = shape) -> str:
            name = self.names[key]
            self.code.values(name, key, np.broadcast_to(array, shape or (1,)).astype(dtype))
            return name

        self.code.header.append(f"\n/* {source.plain(step.name)}: its constants. */")
        bits = max(int(b.max()) for b in sides[0].accumulator_bits)
        macro = self.names.macro(step.name, "ACCUMULATOR_BITS")
        self.code.header.append(f"#define {macro} {bits}")
        scalings = []
        for side, fixed in zip(("", ".negative"), sides, strict=False):
            base = f"{step.name}{side}"
            single = len(fixed.multipliers) == 1
            multipliers = [
                add(f"{base}.multiplier" + ("" if single else f".{i}"), m, np.int32)
                for i, m in enumerate(fixed.multipliers)
            ]
            addend = add(f"{base}.addend", fixed.addend, np.int64)
            shift = add(f"{base}.shift", fixed.shift, np.uint8)
            pointers = ",\n            ".join(multipliers)
            scalings.append(
                f"{{\n            (const int32_t *const[]){{{pointers}}},\n"
                f"            {addend},\n            {shift}}}"
            )
        # One pair of clamps, or as many as there are of the rest.
        own = shape if any(limit.ndim for limit in limits) else ()
        low, high = (
            add(f"{step.name}.{end}", limit, np.int32, own)
            for end, limit in zip(("low", "high"), limits, strict=True)
        )
        fields = {
            "scaling": scalings[0],
            "low": low,
            "high": high,
            "clamps": math.prod(own),
            "terms": len(sides[0].multipliers),
            "period": math.prod(shape),
        }
        if len(scalings) > 1:
            fields["negative"] = f"&(qm_scaling){scalings[1]}"
        return _struct("qm_requantization", fields)


def _depth(before: int, op: Linear, distance: int) -> str:
    """Return a ``qm_depth`` of a convolution of three axes, whose kernel's planes lie so apart."""
    assert op.weights is not None
    strides, dilation, pads = (op.attributes[key][0] for key in ("strides", "dilation", "pads"))
    fields = {
        "in": before, "out": op.shape[0], "kernel": len(op.weights), "stride": strides,
        "dilation": dilation, "pad": pads[0], "weights": distance,
    }  # fmt: skip
    return _struct("qm_depth", fields)


def _setter_of_tflite(params: QuantParams, setter: str, buffer: str, size: int) -> str:
    """Return the function that quantizes floats as TFLite's QUANTIZE does."""
    low, high = params.limits
    numbers = np.array([params.scale, low * params.scale, high * params.scale], np.float32)
    scale, least, greatest = source.literals(numbers)
    return (
        f"void {setter}(const float *x)\n{{\n"
        "    int i;\n\n"
        f"    for (i = 0; i < {size}; ++i) {{\n"
        f"        float clamped = x[i] > {greatest} ? {greatest} : x[i];\n"
        "        volatile float steps;\n"
        "        qm_int whole;\n"
        f"        clamped = clamped >= {least} ? clamped : {least};\n"
        f"        steps = clamped / {scale};\n"
        "        whole = (qm_int)steps; /* then half away from zero */\n"
        "        steps = steps - (float)whole;\n"
        f"        {buffer}[i] = whole + (steps >= 0.5f) - (steps <= -0.5f);\n"
        "    }\n}\n"
    )


def _window(
    before: Shape, after: Shape, attributes: Mapping[str, Any], kernel: Sequence[int] = ()
) -> str:
    """Return a ``qm_window``; what has one dimension has a height of 1."""
    if len(before) > 3:  # of a global pool: all positions are one column
        before = (math.prod(before[:-1]), 1, before[-1])
    in_shape = _spatial(before)
    if attributes.get("global"):
        kernel, strides, first = in_shape[:2], (1, 1), (0, 0)
        out_shape: Shape = (1, 1, in_shape[2])
    else:
        out_shape = _spatial(after)
        kernel = kernel or attributes["size"]
        strides = attributes["strides"]
        first = tuple(ends[0] for ends in attributes.get("pads", attributes.get("crops")))
    dilation = attributes.get("dilation", (1, 1))
    lists = {
        "in": in_shape,
        "out": out_shape,
        "kernel": kernel,
        "stride": strides,
        "dilation": dilation,
        "pad": first,
    }
    return _struct("qm_window", {name: braces(values) for name, values in lists.items()})


def _struct(kind: str, fields: Mapping[str, object]) -> str:
    """Return the address of a struct of this kind."""
    lines = ",\n        ".join(f".{name} = {value}" for name, value in fields.items())
    return f"&({kind}){{\n        {lines}}}"


def _spatial(shape: Shape) -> Shape:
    return (1,) * (3 - len(shape)) + tuple(shape)
