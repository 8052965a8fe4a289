"""The integer model as a QONNX graph: every value an integer, every ``Quant`` of scale 1.

Between two quantizers are a convolution or a product, an addition of whole numbers, a
multiplication, and the floor of a ``Quant`` node: what an FPGA's datapath has. ``docs/onnx.md``
has the details.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.onnx import moves
from qmath.exports.onnx.fixed_types import (
    MOST_BITS,
    exact,
    fixed_type,
    fractions,
    result,
    scaling,
    whole,
)
from qmath.exports.onnx.graph import GraphBuilder, Value
from qmath.exports.onnx.hls4ml_names import layer_names
from qmath.exports.onnx.integer_sums import MOVES, Sums, UnsupportedError, quant
from qmath.exports.onnx.network import Network, check_exportable
from qmath.integer.bounds import accumulator_bits, channel_intervals
from qmath.integer.profiles.exact import clamps
from qmath.integer.profiles.fixed import FixedPoint, constants
from qmath.integer.program import (
    FloatStep,
    Linear,
    MoveStep,
    Program,
    QuantizeStep,
    Requantize,
    SoftmaxStep,
    Step,
    TableStep,
    sources,
)

__all__ = ["build"]

Precision = dict[str, str]


def build(
    onnx: Any, bundle: Bundle, opsets: Mapping[str, int], *, options: dict[str, Any], batch: int
) -> Network:
    """Write a model's integer arithmetic as a graph.

    Parameters
    ----------
    onnx : module
    bundle : Bundle
    opsets : mapping of str to int
        Version of each domain.
    options : dict
        As they were given to the format.
    batch : int
        How many examples the network takes.

    Raises
    ------
    OutputError
        The model has no integer model, or a part that the graph has no form of.
    """
    check_exportable(bundle, "qonnx")
    program = bundle.program
    assert program is not None  # checked
    bits = min(bundle.manifest["options"]["multiplier_bits"], MOST_BITS)
    writer = _Writer(onnx, bundle, program, bits)
    for step in program.steps:
        writer.write(step)
    left = writer.left
    outputs = list(dict.fromkeys(writer.output(n) for name in program.outputs for n in
                                 _reached(program, name, left)))  # fmt: skip
    shapes = {value.name: value.shape for value in outputs}
    builder = writer.builder
    given = {value.name: value.shape for value in writer.inputs.values()}
    model = builder.model("qmath", given, shapes, opsets, batch)
    names: dict[str, Any] = {
        "inputs": {name: value.name for name, value in writer.inputs.items()},
        "outputs": list(shapes),
        "integers": writer.integers,
    }
    if left:
        names["left"] = left
    return Network(
        model,
        {
            "format": "qonnx",
            "options": options,
            "names": names,
            "multiplier_bits": bits,
            "hls4ml": layer_names(builder.nodes, list(given), writer.precisions),
        },
    )


def _reached(program: Program, name: str, left: Sequence[str]) -> list[str]:
    """Return a step, or, if it is not in the graph, those in the graph that it is made of."""
    if name not in left:
        return [name]
    return [n for source in sources(program.step(name)) for n in _reached(program, source, left)]


class _Writer:
    """Writes one step after another.

    Attributes
    ----------
    values, unsigned : dict of str to Value
        By step, its integers from the zero point, and as TensorFlow counts them; either may be
        missing until it is read.
    left : list of str
        Steps that are not in the graph.
    ends : dict of str to (int, int)
        By step, the least and greatest of its integers from the zero point.
    precisions : dict of str to dict
        By node, the types of its numbers.
    """

    def __init__(self, onnx: Any, bundle: Bundle, program: Program, bits: int) -> None:
        self.builder = GraphBuilder(onnx, [*bundle.keys(), *program.quant_params])
        self.bundle, self.program = bundle, program
        self.constants = constants(program, bits)
        self.inputs: dict[str, Value] = {}
        self.values: dict[str, Value] = {}
        self.unsigned: dict[str, Value] = {}
        self.left: list[str] = []
        self.ends: dict[str, tuple[int, int]] = {}
        self.integers: dict[str, dict[str, Any]] = {}
        self.precisions: dict[str, Precision] = {}
        self.sums = Sums(self.builder, bundle, self.precisions, self.relative)

    # ---- steps

    def write(self, step: Step) -> None:
        """Write a step, or leave it: it may be one of the functions after the last integers.

        Raises
        ------
        OutputError
            The step is neither.
        """
        read = [name for name in sources(step) if name not in self.program.inputs]
        try:
            if not all(name in self.values or name in self.unsigned for name in read):
                raise UnsupportedError(f"it follows {self.left[0]}, which has none")
            if isinstance(step, QuantizeStep) and not read:
                self._input(step)
            elif isinstance(step, Requantize):
                self._requantized(step)
            elif isinstance(step, MoveStep):
                self._moved(step)
            else:
                raise UnsupportedError("it is no integer arithmetic of sums")
        except UnsupportedError as error:
            is_function = isinstance(step, FloatStep) and step.is_function
            if is_function or isinstance(step, (TableStep, SoftmaxStep, MoveStep, QuantizeStep)):
                self.left.append(step.name)
                return
            raise OutputError(
                f"{step.name}: arithmetic=integer has no form of it ({error}); export to qonnx "
                "without it, or to mem or c"
            ) from None

    def _input(self, step: QuantizeStep) -> None:
        if step.source in self.inputs:
            raise OutputError(
                f"{step.source}: two quantizers read it, so that arithmetic=integer has no one "
                "integer input; export to qonnx without it"
            )
        x = Value(self.builder.unique(step.source), step.shape)
        self.inputs[step.source] = x
        params = step.params
        name = quant(
            self.builder, x.name, step.name, params.num_bits, signed=False, rounding="ROUND"
        )
        self.precisions[x.name] = result(0, (1 << params.num_bits) - 1)
        self._made(step, replace(x, name=name), params.limits)

    def _made(self, step: Any, unsigned: Value, ends: tuple[int, int]) -> None:
        """Keep the integers of a step: as TensorFlow counts them, and from the zero point."""
        self.integers[step.name] = {
            "name": unsigned.name, "channels_first": unsigned.channels_first
        }  # fmt: skip
        self.unsigned[step.name] = unsigned
        self.ends[step.name] = ends

    def _shifted(self, step: Any, x: Value, op: str, ends: tuple[int, int]) -> Value:
        zero_point = step.params.zero_point
        if not zero_point:
            return x
        constant = self.builder.constant(f"{step.name}/zero_point", float(zero_point))
        made = self.builder.layer(op, [x, constant], step.name)
        bias = whole(-zero_point if op == "Sub" else zero_point)
        self.precisions[made.name] = {"bias": fixed_type(bias), **result(*ends)}
        return made

    def relative(self, name: str) -> Value:
        """Return a step's integers from the zero point."""
        if name not in self.values:
            step: Any = self.program.step(name)
            x = self._shifted(step, self.unsigned[name], "Sub", self.ends[name])
            if step.params.zero_point:  # else QONNX's tools take what follows for floats
                bits = int(accumulator_bits(*step.params.limits))
                given = f"{name}/relative"
                x = replace(
                    x, name=quant(self.builder, x.name, given, bits, signed=True, rounding="ROUND")
                )
            self.values[name] = x
        return self.values[name]

    def output(self, name: str) -> Value:
        """Return a step's integers as TensorFlow counts them, channels last."""
        if name not in self.unsigned:
            step: Any = self.program.step(name)
            ends = (step.params.low, step.params.high)
            self.unsigned[name] = self._shifted(step, self.values[name], "Add", ends)
        return self.builder.channels_last(self.unsigned[name])

    def _moved(self, step: MoveStep) -> None:
        kind = step.attributes["kind"]
        is_pool = kind == "pool_max" and "rows" not in step.attributes
        if not is_pool and kind not in MOVES:
            raise UnsupportedError(f"the kind {kind}")
        x = self.relative(step.source)
        before = len(self.builder.nodes)
        if is_pool:
            x = moves.pooled(self.builder, x, step.name, "Max", step.attributes, step.shape)
        else:
            linear = Linear(kind, step.apply, step.shape, attributes=step.attributes)
            x = moves.moved(self.builder, x, step.name, linear)
        self.values[step.name] = x
        for node in self.builder.nodes[before:]:
            self.precisions[node.name] = result(*step.params.limits)

    def _requantized(self, step: Requantize) -> None:
        positive, *negative = self.constants[step.name]
        params = step.params
        sums = [self.sums.sum(step, term) for term in step.value.terms]
        rounding = "ROUND" if negative else "FLOOR"
        if negative:
            total = self._leaky(step, sums, positive, negative[0])
        else:
            total = self._total(step, sums, positive, params.zero_point)
        low, high = (np.asarray(end, np.int64) for end in clamps(step))
        name = quant(
            self.builder, total.name, step.name, params.num_bits, signed=False, rounding=rounding,
            is_reserved=True,
        )  # fmt: skip
        made = replace(total, name=name)
        low_end, high_end = low + params.zero_point, high + params.zero_point
        if low_end.max() > 0 or high_end.min() < (1 << params.num_bits) - 1:
            made = self._clamped(step, made, low_end, high_end)
        self._made(step, made, (int(low.min()), int(high.max())))

    def _total(
        self, step: Requantize, sums: Sequence[Value], fixed: FixedPoint, zero_point: int
    ) -> Value:
        """Return what is to be rounded down."""
        numbers = scaling(fixed, zero_point)
        total, ends = None, (whole(0), whole(0))
        rests = [whole(0)] * (len(sums) - 1) + [numbers.rest]
        for term, x, multiplier, bias, rest in zip(
            step.value.terms, sums, numbers.multipliers, numbers.biases, rests, strict=True
        ):
            part, of_part = self._affine(step, x, channel_intervals(term), multiplier, bias, rest)
            ends = (ends[0] + of_part[0], ends[1] + of_part[1])
            total = part if total is None else self._added(step, total, part, ends)
        assert total is not None
        return total

    def _leaky(
        self, step: Requantize, sums: Sequence[Value], positive: FixedPoint, negative: FixedPoint
    ) -> Value:
        """Return the positive part and the negative one, each rounded down, as a sum.

        Where one of them counts, the other is rounded to 0: their signs are alike up to the errors
        of their constants, which are below the half that both hold.
        """
        activation = step.value.activation
        assert activation is not None  # else there are no negative constants
        error = negative.error + positive.error * float(np.max(activation.slope))
        if np.min(activation.slope) < 0 or error >= 0.5:
            raise UnsupportedError(
                "a leaky ReLU of a negative slope, or of too narrow multipliers for its sums"
            )
        bits = step.params.num_bits
        parts = {}
        for side, fixed in (("positive", positive), ("negative", negative)):
            x = self._total(step, sums, fixed, 0)
            signed = side == "negative"
            name = quant(self.builder, x.name, f"{step.name}/{side}", bits + signed, signed=signed,
                         rounding="FLOOR")  # fmt: skip
            parts[side] = replace(x, name=name)
        minus = self.builder.constant(f"{step.name}/minus", -1.0)
        up = self.builder.layer("Mul", [parts["negative"], minus], step.name)
        below = self.builder.layer("Relu", [up], step.name)
        total = self.builder.layer("Sub", [parts["positive"], below], step.name)
        most = 1 << bits
        self.precisions[up.name] = result(-most, most) | {"scale": "ap_fixed<2,2>"}
        self.precisions[below.name] = result(0, most)
        self.precisions[total.name] = result(-most, most)
        return self._shifted(step, total, "Add", (-most, 2 * most))

    def _clamped(self, step: Requantize, x: Value, low: Any, high: Any) -> Value:
        """Clamp where the width of the quantizer does not: hls4ml has no form of it."""
        if low.ndim or high.ndim:
            raise UnsupportedError("limits of channels")
        ends = [
            self.builder.constant(f"{step.name}/{key}", float(end))
            for key, end in (("low", low), ("high", high))
        ]
        made = self.builder.layer("Clip", [x, *ends], step.name)
        self.precisions[made.name] = result(int(low), int(high))
        return made

    # ---- what follows a sum

    def _affine(
        self, step: Requantize, x: Value, interval: Any, multiplier: Any, bias: Any, rest: Any
    ) -> tuple[Value, tuple[Any, Any]]:
        """Return ``(x + bias) * multiplier + rest``, and the ends of what it can be."""
        low, high = (np.asarray(fractions(end)) for end in interval)
        if any(bias.ravel()):
            low, high = low + bias, high + bias
            made = {"result": fixed_type(low, high)}
            types = {"bias": fixed_type(bias), **made}
            if self._is_by_channel(x, bias):  # hls4ml adds by channel only so
                one = whole(1)
                x = self._normalized(step, x, one, bias, {"scale": fixed_type(one), **types})
            else:
                x = self._each(step, "Add", x, bias, types)
        *products, rests = np.broadcast_arrays(low * multiplier, high * multiplier, rest)
        both = np.stack(products)
        ends = both.min(0) + rests, both.max(0) + rests
        # Products in between have the fractions of multipliers, even where their ends have not.
        grain = fractions([Fraction(1, max(v.denominator for v in array.ravel()))
                            for array in (multiplier, rest)])  # fmt: skip
        made = {"result": fixed_type(*ends, grain)}
        types = {"scale": fixed_type(multiplier), "bias": fixed_type(rest)}
        if self._is_by_channel(x, multiplier, rest):
            return self._normalized(step, x, multiplier, rest, types | made), ends
        product = {"scale": types["scale"], "result": fixed_type(both, *ends, grain)}
        x = self._each(step, "Mul", x, multiplier, product)
        if any(rest.ravel()):
            x = self._each(step, "Add", x, rest, {"bias": types["bias"], **made})
        return x, ends

    def _is_by_channel(self, x: Value, *constants: Any) -> bool:
        """Whether a batch normalization can apply constants."""
        is_first = x.channels_first or len(x.shape) == 1
        return is_first and max(array.ndim for array in constants) <= 1

    def _each(
        self, step: Requantize, op: str, x: Value, values: Any, precision: Precision
    ) -> Value:
        """Add or multiply by constants, of channels or of the whole value."""
        numbers = exact(values, step.name)
        if numbers.ndim > 1 or (numbers.ndim == 1 and x.channels_first):
            numbers = numbers.reshape(1, *(1,) * (len(x.shape) - numbers.ndim), *numbers.shape)
            numbers = np.moveaxis(numbers, -1, 1) if x.channels_first else numbers
        constant = self.builder.constant(f"{step.name}/{op}/constant", numbers)
        made = self.builder.layer(op, [x, constant], step.name)
        self.precisions[made.name] = precision
        return made

    def _normalized(
        self, step: Requantize, x: Value, multiplier: Any, rest: Any, precision: Precision
    ) -> Value:
        """Multiply and add by channel, as a batch normalization of mean 0 and variance 1."""
        channels = x.shape[-1]
        vectors = {
            "multiplier": exact(multiplier, step.name), "rest": exact(rest, step.name),
            "mean": np.float32(0), "variance": np.float32(1),
        }  # fmt: skip
        names = [
            self.builder.constant(f"{step.name}/{key}", np.broadcast_to(vector, channels))
            for key, vector in vectors.items()
        ]
        made = self.builder.layer("BatchNormalization", [x, *names], step.name, epsilon=0.0)
        self.precisions[made.name] = precision
        return made

    def _added(self, step: Requantize, total: Value, part: Value, ends: tuple[Any, Any]) -> Value:
        if total.channels_first != part.channels_first:
            total, part = (self.builder.channels_first(x) for x in (total, part))
        made = self.builder.layer("Add", [total, part], step.name)
        self.precisions[made.name] = {"result": fixed_type(*ends)}
        return made
