"""From an integer model's steps to TFLite's operators, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from qmath.containers.tflite.schema import ACTIVATIONS
from qmath.errors import OutputError, QmathError
from qmath.exports.bundle import Bundle
from qmath.exports.tflite import moves
from qmath.exports.tflite.float_layers import FloatLayers
from qmath.exports.tflite.graph import GraphBuilder, Grid, Tensor
from qmath.exports.tflite.moves import UnsupportedError
from qmath.exports.tflite.weighted import Weight, weighted
from qmath.integer.profiles.tflite_kernels import Quantization, limit_of, quantization
from qmath.integer.profiles.tflite_parts import Part, parts
from qmath.integer.program import (
    CutStep,
    MoveStep,
    Program,
    QuantizeStep,
    QuantParams,
    Requantize,
    SoftmaxStep,
    Step,
    TableStep,
    Term,
    sources,
)

__all__ = ["Settings", "Writer"]

# Operators whose options have an activation, which clamps for nothing.
_FUSE = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL")
Ends = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """What the format's options say.

    Attributes
    ----------
    narrowest : int
        How few bits a weight may be packed to: 2, 4 or 8.
    io : str
        The type of inputs and outputs, ``"FLOAT32"`` or an integer.
    batch : int
    """

    narrowest: int
    io: str
    batch: int


class Writer:
    """Writes the steps of a program.

    Attributes
    ----------
    builder : GraphBuilder
    values : dict of str to Tensor
        By step, and by input of the program.
    inputs : dict of str to Tensor
        Of the graph, by input of the program.
    weights : dict of str to list of Weight
        By tensor of the model, of operators on integers.
    float_steps : list of str
        Steps that are computed in float32, quantized ones among them.
    """

    def __init__(self, bundle: Bundle, program: Program, settings: Settings) -> None:
        self.program, self.settings = program, settings
        self.builder = GraphBuilder(step.name for step in program.steps)
        self.values: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.weights: dict[str, list[Weight]] = {}
        self.float_steps: list[str] = []
        self._floats = FloatLayers(self.builder, bundle, self.values)

    def write(self, step: Step) -> None:
        """Write a step.

        Raises
        ------
        UnsupportedError
            TFLite has no form of it.
        """
        try:
            made = self._written(step)
        except UnsupportedError as error:
            place = "" if step.name in str(error) else f", in {step.name}"
            raise UnsupportedError(f"{error}{place}", error.remedy) from None
        self.values[step.name] = self.builder.named(made, step.name)

    def _written(self, step: Step) -> Tensor:
        if isinstance(step, Requantize):
            return self._requantize(step)
        if isinstance(step, QuantizeStep):
            return self._rounded(self.values[step.source], step.name, step.params)
        if isinstance(step, MoveStep):
            return self._move(step)
        if isinstance(step, TableStep):
            return self._table(step)
        if isinstance(step, CutStep):
            why = step.reason or "qmath does not know this layer"
            what = f"the cut point {step.name} ({step.class_name}: {why})"
            raise UnsupportedError(what, moves.LEAVES)
        self.float_steps.append(step.name)
        if isinstance(step, SoftmaxStep):
            return self._rounded(self._floats.softmax(step), step.name, step.params)
        return self._floats.step(step)

    # ---- inputs

    def add_inputs(self) -> None:
        """Add the inputs: of the type asked for where one quantizer alone reads an input."""
        for name, shape in self.program.inputs.items():
            readers = [step for step in self.program.steps if name in sources(step)]
            whole, kind, grid = (self.settings.batch, *shape), self.settings.io, None
            if len(readers) != 1 or not isinstance(readers[0], QuantizeStep):
                kind = "FLOAT32"
            elif kind != "FLOAT32":
                grid = self._outside(readers[0].name, readers[0].params)
            self.values[name] = self.inputs[name] = self.builder.tensor(name, whole, kind, grid)

    def _outside(self, name: str, params: QuantParams) -> Grid:
        """Return what integers mean in the type that is asked for."""
        grid, own, asked = self.grid(name, params), kind_of(params), self.settings.io
        if asked == "UINT8" and own == "INT8":
            return Grid(grid.scale, grid.zero_point + 128)
        if asked != own:
            raise OutputError(
                f"{name} has {params.num_bits} bits, so that it is {own} in a TFLite file, and "
                f"not {asked}; give --option io={'int16' if own == 'INT16' else 'int8'}"
            )
        return grid

    def grid(self, name: str, params: QuantParams) -> Grid:
        """Return what a quantized tensor's integers mean, which TFLite has to be able to hold."""
        q = quantization(params, name)
        if kind_of(params) == "INT16" and q.zero_point:
            raise UnsupportedError(
                f"the {params.num_bits} bits of {name} with a zero point that is not in the "
                "middle: INT16 is symmetric"
            )
        return Grid(q.scale, q.zero_point)

    def output(self, step: str, name: str) -> Tensor:
        """Return what the graph gives as an output: a step's result in the type asked for."""
        x, params = self.values[step], self.program.quant_params.get(step)
        if params is None or self.settings.io == x.kind:
            return x
        if self.settings.io == "FLOAT32":
            y = self.builder.tensor(name, x.shape, "FLOAT32")
            return self.builder.op("DEQUANTIZE", [x], y, moves.version(x))
        y = self.builder.tensor(name, x.shape, self.settings.io, self._outside(step, params))
        return self.builder.op("QUANTIZE", [x], y, 2)

    # ---- steps

    def _rounded(self, x: Tensor, name: str, params: QuantParams) -> Tensor:
        """Quantize a tensor of another type."""
        kind = kind_of(params)
        if x.kind != kind:
            version = 1 if x.is_float else 2
            y = self.builder.tensor(f"{name}/QUANTIZE", x.shape, kind, self.grid(name, params))
            x = self.builder.op("QUANTIZE", [x], y, version)
        q = quantization(params, name)
        return self._clamped(name, x, (q.low, q.high), ends_of(kind))

    def _table(self, step: TableStep) -> Tensor:
        """Look a function up, as training computed it: by the integer, counted from zero."""
        x, name = self.values[step.source], step.name
        kind, grid = kind_of(step.params), self.grid(name, step.params)
        values = step.table + grid.zero_point
        table = self.builder.constant(f"{name}/table", kind, values, grid=grid)
        bits = self.program.quant_params[step.source].num_bits
        first = self.builder.constant(f"{name}/first", "INT32", 1 << (bits - 1))
        index = self.builder.tensor(f"{name}/signed", x.shape, "INT32")
        self.builder.op("CAST", [x], index)
        unsigned = self.builder.tensor(f"{name}/index", x.shape, "INT32")
        self.builder.op("ADD", [index, first], unsigned)
        y = self.builder.tensor(f"{name}/GATHER", x.shape, kind, grid)
        number = 2 if kind == "INT8" else 4
        return self.builder.op("GATHER", [table, unsigned], y, number, axis=0)

    def _move(self, step: MoveStep) -> Tensor:
        x, name = self.values[step.source], step.name
        kind, attributes = step.attributes["kind"], step.attributes
        if kind not in ("pool_max", "pool_min"):
            return moves.move(self.builder, x, name, kind, step.shape, attributes)
        if not attributes.get("global"):
            return moves.pool(self.builder, x, name, "MAX_POOL_2D", step.shape, attributes)
        axes = [1] if "rows" in attributes else range(1, len(x.shape) - 1)
        op = "REDUCE_MIN" if kind == "pool_min" else "REDUCE_MAX"
        y = moves.reduced(self.builder, x, name, op, axes, x.grid)
        return moves.reshaped(self.builder, y, name, step.shape)

    # ---- requantizations

    def _requantize(self, step: Requantize) -> Tensor:
        try:
            found = parts(step)
        except QmathError:  # TFLite has no operation for it, as this one says
            self.grid(step.name, step.params)
            self.float_steps.append(step.name)
            return self._rounded(self._floats.sum(step.value, step.name), step.name, step.params)
        names = [step.name] if len(found) == 1 else [
            f"{step.name}/part{number}" for number in range(len(found))
        ]  # fmt: skip
        made = [self._part(step, part, name) for part, name in zip(found, names, strict=True)]
        wanted = [(part.kernels[-1].output.low, part.kernels[-1].output.high) for part in found]
        xs = [x for x, _ in made]
        if len(set(wanted)) > 1:  # parts with activations of their own
            xs = [
                self._clamped(name, x, limits, ends)
                for name, (x, ends), limits in zip(names, made, wanted, strict=True)
            ]
        regions = [part.region for part in found]
        y = self._joined(step.name, list(zip(regions, xs, strict=True)))
        if len(set(wanted)) > 1:
            return y
        ends = min(low for _, (low, _) in made), max(high for _, (_, high) in made)
        return self._clamped(step.name, y, wanted[0], ends)

    def _joined(self, name: str, pieces: Sequence[tuple[Any, Tensor]]) -> Tensor:
        """Lay the pieces side by side that a concatenation, or one of another, was split into."""
        if len(pieces) == 1:
            return pieces[0][1]
        for axis in range(len(pieces[0][0])):
            spans = sorted({(region[axis].start, region[axis].stop) for region, _ in pieces})
            is_split = all(a[1] <= b[0] for a, b in pairwise(spans))
            if len(spans) < 2 or not is_split:
                continue
            groups = [
                [(r, x) for r, x in pieces if (r[axis].start, r[axis].stop) == span]
                for span in spans
            ]
            xs = [self._joined(name, group) for group in groups]
            shape = list(xs[0].shape)
            shape[axis + 1] = sum(x.shape[axis + 1] for x in xs)
            y = moves.like(self.builder, xs[0], f"{name}/CONCATENATION", shape)
            return self.builder.op("CONCATENATION", xs, y, moves.version(y), axis=axis + 1)
        raise UnsupportedError("a concatenation along several axes at once")

    def _part(self, step: Requantize, part: Part, name: str) -> tuple[Tensor, Ends]:
        """Write a part; return it, and the ends that its last operator clamps to."""
        first, last = part.kernels[0], part.kernels[-1]
        kind, output = kind_of(step.params), last.output
        grid = self.grid(step.name, step.params)
        self._check_types(part, kind)
        number, ends = fused(output, kind) if last.op in _FUSE else (0, ends_of(kind))
        if first.bias is not None:
            linear = part.terms[0].ops[0]
            y, weight = weighted(
                self.builder, self.values[part.terms[0].source], name, linear, first, number,
                self.settings.narrowest,
            )  # fmt: skip
            self.weights.setdefault(first.weights, []).append(weight)
            for move in part.moves:
                y = moves.move(self.builder, y, name, move.kind, move.shape, move.attributes)
            return y, ends
        shape = (self.settings.batch, *(span.stop - span.start for span in part.region))
        if first.op in ("AVERAGE_POOL_2D", "MEAN"):
            return self._average(part, name, grid, shape), ends
        xs = [self._source(term, name, len(shape) - 1) for term in part.terms]
        if first.op == "MUL":
            xs += [self._factor(term, name, len(shape) - 1) for term in part.terms]
        # Standing alone, tflite-micro's RELU6 leaves the scale as it is.
        op = "RELU" if first.op == "RELU6" else first.op
        y = self.builder.tensor(f"{name}/{op}", shape, kind, grid)
        options: dict[str, Any] = {}
        if op in _FUSE:
            options["fused_activation_function"] = number
        if op in ("ADD", "SUB"):
            options["pot_scale_int16"] = False
        if op == "LEAKY_RELU":
            options["alpha"] = first.slope
        if op == "RELU":
            ends = output.zero_point, ends[1]
        return self.builder.op(op, xs, y, moves.version(y), **options), ends

    def _check_types(self, part: Part, kind: str) -> None:
        for term in part.terms:
            if kind_of(term.params) != kind and part.kernels[-1].op != "QUANTIZE":
                raise UnsupportedError(
                    f"{part.kernels[-1].op} from {kind_of(term.params)} to {kind} "
                    f"({term.params.num_bits} bits of {term.source})"
                )

    def _source(self, term: Term, name: str, rank: int) -> Tensor:
        """Return a term's tensor where it has to be, as far as an operator does not broadcast."""
        x = self.values[term.source]
        for linear in term.ops:
            is_last = linear is term.ops[-1]
            if linear.kind in ("broadcast", "multiply") and is_last:  # the operator does it
                return moves.aligned(self.builder, x, name, rank)
            x = moves.move(self.builder, x, name, linear.kind, linear.shape, linear.attributes)
        return x

    def _factor(self, term: Term, name: str, rank: int) -> Tensor:
        """Return the tensor that a product's other one is multiplied by."""
        factor = term.ops[-1].factor
        assert factor is not None
        return moves.aligned(self.builder, self.values[factor.source], f"{name}/factor", rank)

    def _average(self, part: Part, name: str, grid: Grid, shape: Sequence[int]) -> Tensor:
        x, (linear,) = self.values[part.terms[0].source], part.terms[0].ops
        if part.kernels[0].op == "MEAN":
            axes = range(1, len(x.shape) - 1)
            y = moves.reduced(self.builder, x, name, "MEAN", axes, grid)
            return moves.reshaped(self.builder, y, name, shape[1:])
        x = moves.pool(self.builder, x, name, "AVERAGE_POOL_2D", linear.shape, linear.attributes)
        y = self.builder.tensor(f"{name}/QUANTIZE", shape, x.kind, grid)
        return self.builder.op("QUANTIZE", [x], y, 2)

    def _clamped(self, name: str, x: Tensor, wanted: Ends, ends: Ends) -> Tensor:
        """Clamp to the ends that are wanted, where the operator before, with its own, does not."""
        for op, end, is_needed in (
            ("MAXIMUM", wanted[0], ends[0] < wanted[0]),
            ("MINIMUM", wanted[1], ends[1] > wanted[1]),
        ):
            if is_needed:
                limit = self.builder.constant(f"{name}/{op.lower()}", x.kind, end, grid=x.grid)
                y = self.builder.tensor(f"{name}/{op}", x.shape, x.kind, x.grid)
                x = self.builder.op(op, [x, limit], y, moves.version(x))
        return x


def kind_of(params: QuantParams) -> str:
    """Return the type that holds a quantized tensor's integers."""
    return "INT8" if params.num_bits <= 8 else "INT16"


def ends_of(kind: str) -> Ends:
    """Return the lowest and the highest integer of a type."""
    limits = np.iinfo(kind.lower())
    return int(limits.min), int(limits.max)


def fused(output: Quantization, kind: str) -> tuple[int, Ends]:
    """Return the number of the activation that clamps as wanted, and the ends that it clamps to.

    It is the model's own, or one with the same ends: that of a range from 0 to 6 is RELU6.
    """
    low, high = ends_of(kind)
    if output.low != output.zero_point:
        return ACTIVATIONS["NONE"], (low, high)
    six = output.zero_point + limit_of(6, output.scale)
    if six == output.high:
        return ACTIVATIONS["RELU6"], (output.low, six)
    return ACTIVATIONS["RELU"], (output.low, high)
