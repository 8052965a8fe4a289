"""The integer model as a QONNX graph: every value an integer, every ``Quant`` of scale 1.

Between two quantizers are a convolution or a product, an addition of whole numbers, a
multiplication, and the floor of a ``Quant`` node: what an FPGA's datapath has. ``docs/onnx.md``
has the details.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.onnx import moves, windows
from qmath.exports.onnx.fixed_types import MOST_BITS, exact, fixed_type, scaling
from qmath.exports.onnx.graph import GraphBuilder, Value, arranged
from qmath.exports.onnx.hls4ml_names import layer_names
from qmath.exports.onnx.network import Network, check_exportable
from qmath.integer.bounds import accumulator_bits, channel_intervals
from qmath.integer.profiles.exact import clamps
from qmath.integer.profiles.fixed import constants
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
    Term,
    sources,
)

__all__ = ["DOMAIN", "build"]

DOMAIN = "qonnx.custom_op.general"
_LAYOUTS = {
    "conv2d": "HWIO", "depthwise_conv2d": "HWIM", "conv2d_transpose": "HWOI", "conv3d": "DHWIO",
    "dense": "IO",
}  # fmt: skip
_MOVES = ("reshape", "broadcast", "permute", "pad", "crop", "upsample")
Precision = dict[str, str]


class _UnsupportedError(Exception):
    """Nothing in the graph's words is a part of a step."""


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
    left = [step.name for step in program.steps if not writer.written(step)]
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
        self.ends: dict[str, tuple[int, int]] = {}
        self.integers: dict[str, dict[str, Any]] = {}
        self.precisions: dict[str, Precision] = {}
        self._weights: dict[int, str] = {}

    # ---- steps

    def written(self, step: Step) -> bool:
        """Write a step, or tell that it is one of the functions after the last integers.

        Raises
        ------
        OutputError
            The step is neither.
        """
        read = [name for name in sources(step) if name not in self.program.inputs]
        try:
            if not all(name in self.values or name in self.unsigned for name in read):
                raise _UnsupportedError("what it reads is not in the graph")
            if isinstance(step, QuantizeStep) and not read:
                self._input(step)
            elif isinstance(step, Requantize):
                self._requantized(step)
            elif isinstance(step, MoveStep):
                self._moved(step)
            else:
                raise _UnsupportedError("it is no integer arithmetic of sums")
        except _UnsupportedError as error:
            is_function = isinstance(step, FloatStep) and step.is_function
            if is_function or isinstance(step, (TableStep, SoftmaxStep, MoveStep, QuantizeStep)):
                return False
            raise OutputError(
                f"{step.name}: arithmetic=integer has no form of it ({error}); export to qonnx "
                "without it, or to mem or c"
            ) from None
        return True

    def _input(self, step: QuantizeStep) -> None:
        if step.source in self.inputs:
            raise OutputError(
                f"{step.source}: two quantizers read it, so that arithmetic=integer has no one "
                "integer input; export to qonnx without it"
            )
        x = Value(self.builder.unique(step.source), step.shape)
        self.inputs[step.source] = x
        params = step.params
        name = self._quant(x.name, step.name, params.num_bits, signed=False, rounding="ROUND")
        self.precisions[x.name] = self._result(0, (1 << params.num_bits) - 1)
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
        bias = _whole(-zero_point if op == "Sub" else zero_point)
        self.precisions[made.name] = {"bias": fixed_type(bias), **self._result(*ends)}
        return made

    def relative(self, name: str) -> Value:
        """Return a step's integers from the zero point."""
        if name not in self.values:
            step: Any = self.program.step(name)
            x = self._shifted(step, self.unsigned[name], "Sub", self.ends[name])
            if step.params.zero_point:  # else QONNX's tools take what follows for floats
                bits = int(accumulator_bits(*step.params.limits))
                given = f"{name}/relative"
                x = replace(x, name=self._quant(x.name, given, bits, signed=True, rounding="ROUND"))
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
        kind, x = step.attributes["kind"], self.relative(step.source)
        before = len(self.builder.nodes)
        if kind == "pool_max" and "rows" not in step.attributes:
            x = moves.pooled(self.builder, x, step.name, "Max", step.attributes, step.shape)
        elif kind in _MOVES:
            linear = Linear(kind, step.apply, step.shape, attributes=step.attributes)
            x = moves.moved(self.builder, x, step.name, linear)
        else:
            raise _UnsupportedError(f"the kind {kind}")
        self.values[step.name] = x
        for node in self.builder.nodes[before:]:
            self.precisions[node.name] = self._result(*step.params.limits)

    def _requantized(self, step: Requantize) -> None:
        positive, *negative = self.constants[step.name]
        if negative:
            raise _UnsupportedError("a leaky ReLU")
        params = step.params
        numbers = scaling(positive, params.zero_point)
        total, ends = None, (_whole(0), _whole(0))
        rests = [_whole(0)] * (len(step.value.terms) - 1) + [numbers.rest]
        for term, multiplier, bias, rest in zip(
            step.value.terms, numbers.multipliers, numbers.biases, rests, strict=True
        ):
            x, interval = self._sum(step, term), channel_intervals(term)
            part, of_part = self._affine(step, x, interval, multiplier, bias, rest)
            ends = (ends[0] + of_part[0], ends[1] + of_part[1])
            total = part if total is None else self._added(step, total, part, ends)
        assert total is not None
        low, high = (np.asarray(end, np.int64) for end in clamps(step))
        name = self._quant(
            total.name, step.name, params.num_bits, signed=False, rounding="FLOOR"
        )  # fmt: skip
        made = replace(total, name=name)
        low_end, high_end = low + params.zero_point, high + params.zero_point
        if low_end.max() > 0 or high_end.min() < (1 << params.num_bits) - 1:
            made = self._clamped(step, made, low_end, high_end)
        self._made(step, made, (int(low.min()), int(high.max())))

    def _clamped(self, step: Requantize, x: Value, low: Any, high: Any) -> Value:
        """Clamp where the width of the quantizer does not: hls4ml has no form of it."""
        if low.ndim or high.ndim:
            raise _UnsupportedError("limits of channels")
        ends = [
            self.builder.constant(f"{step.name}/{key}", float(end))
            for key, end in (("low", low), ("high", high))
        ]
        made = self.builder.layer("Clip", [x, *ends], step.name)
        self.precisions[made.name] = self._result(int(low), int(high))
        return made

    # ---- sums

    def _sum(self, step: Requantize, term: Term) -> Value:
        x = self.relative(term.source)
        for number, op in enumerate(term.ops, 1):
            before = len(self.builder.nodes)
            x = self._linear(step, op, x)
            low, high = channel_intervals(dataclasses.replace(term, ops=term.ops[:number]))
            result = self._result(int(low.min()), int(high.max()))
            for node in self.builder.nodes[before:]:
                if node.op_type != "Quant":
                    is_sum = node.op_type in ("Conv", "ConvTranspose", "MatMul")
                    self.precisions[node.name] = (
                        {"accum": result["result"], **self._weight_type(op), **result}
                        if is_sum
                        else result
                    )
        return x

    def _weight_type(self, op: Linear) -> Precision:
        weights = np.ones(1) if op.weights is None else np.asarray(op.weights)
        ends = (_whole(int(end)) for end in (weights.min(), weights.max()))
        return {"weight": fixed_type(*ends), "bias": fixed_type(_whole(0))}  # which there is not

    def _linear(self, step: Requantize, op: Linear, x: Value) -> Value:
        if op.kind in _MOVES:
            return moves.moved(self.builder, x, step.name, op)
        if op.kind == "multiply":
            assert op.factor is not None
            return self._product(step, op, x, self.relative(op.factor.source))
        if op.kind == "pool_sum":
            return self._pooled(step, op, x)
        if op.kind not in _LAYOUTS:
            raise _UnsupportedError(f"the kind {op.kind}")
        layout, weights = _LAYOUTS[op.kind], np.asarray(op.weights)
        if op.kind == "dense":
            kernel = self._weight(op, weights)
            given = self.builder.channels_last(x)
            return self.builder.layer("MatMul", [given, kernel], step.name, op.shape)
        if len(x.shape) == 2:  # a signal
            layout, weights = layout[1:], weights[0]
        kernel = self._weight(op, arranged(weights, layout))
        x = self.builder.channels_first(x)
        if op.kind == "conv2d_transpose":
            attributes = windows.of_transposed(op, x)
            return self.builder.layer(
                "ConvTranspose", [x, kernel], step.name, op.shape, **attributes
            )
        attributes = windows.of_convolution(op, x)
        return self.builder.layer("Conv", [x, kernel], step.name, op.shape, **attributes)

    def _product(self, step: Requantize, op: Linear, x: Value, factor: Value) -> Value:
        rank = len(op.shape)
        both = [
            moves.unsqueezed(self.builder, self.builder.channels_last(y), step.name, rank)
            for y in (x, factor)
        ]
        return self.builder.layer("Mul", both, step.name, op.shape)

    def _pooled(self, step: Requantize, op: Linear, x: Value) -> Value:
        """Sum up windows as a convolution with ones, which is exact in every tool."""
        x = self.builder.channels_first(x)
        *spatial, channels = x.shape
        is_global = bool(op.attributes.get("global"))
        size = spatial if is_global else windows.last(op.attributes["size"], x)
        plain: dict[str, Any] = {"strides": size, "pads": [(0, 0)] * len(size)}
        of_window = plain if is_global else op.attributes
        kernel = self._weight(op, np.ones((channels, 1, *size)))
        kept = (*[1] * len(size), channels) if is_global else op.shape
        made = self.builder.layer(
            "Conv", [x, kernel], step.name, kept, kernel_shape=size,
            strides=windows.last(of_window["strides"], x), dilations=[1] * len(size),
            pads=windows.of_pads(of_window["pads"], x), group=channels,
        )  # fmt: skip
        if kept == op.shape:
            return made
        # The order of axes of length 1 does not matter.
        flat = Linear("reshape", op.apply, op.shape)
        return moves.moved(self.builder, replace(made, channels_first=False), step.name, flat)

    def _weight(self, op: Linear, values: NDArray[Any]) -> str:
        """Return the name of an operation's integers, in ONNX's order of axes."""
        if op.weights is None or id(op.weights) not in self._weights:
            tensor = op.name or "ones"
            integers = self.builder.constant(f"{tensor}/integers", values)
            least, most = int(values.min()), int(values.max())
            needed = int(accumulator_bits(least, most))
            held = self.bundle.weights[op.name].num_bits if op.name in self.bundle.weights else 2
            made = self._quant(
                integers, f"{tensor}/quantized", max(needed, held), signed=True, rounding="ROUND"
            )
            if op.weights is None:
                return made
            self._weights[id(op.weights)] = made
        return self._weights[id(op.weights)]

    # ---- what follows a sum

    def _affine(
        self, step: Requantize, x: Value, interval: Any, multiplier: Any, bias: Any, rest: Any
    ) -> tuple[Value, tuple[Any, Any]]:
        """Return ``(x + bias) * multiplier + rest``, and the ends of what it can be."""
        low, high = (np.asarray(_fractions(end)) for end in interval)
        if any(bias.ravel()):
            low, high = low + bias, high + bias
            result = {"result": fixed_type(low, high)}
            types = {"bias": fixed_type(bias), **result}
            if self._is_by_channel(x, bias):  # hls4ml adds by channel only so
                one = _whole(1)
                x = self._normalized(step, x, one, bias, {"scale": fixed_type(one), **types})
            else:
                x = self._each(step, "Add", x, bias, types)
        both = np.stack(np.broadcast_arrays(low * multiplier, high * multiplier)) + rest
        ends = both.min(0), both.max(0)
        # Products in between have the fractions of multipliers, even where their ends have not.
        grain = _fractions([Fraction(1, max(v.denominator for v in array.ravel()))
                            for array in (multiplier, rest)])  # fmt: skip
        result = {"result": fixed_type(*ends, grain)}
        types = {"scale": fixed_type(multiplier), "bias": fixed_type(rest)}
        if self._is_by_channel(x, multiplier, rest):
            return self._normalized(step, x, multiplier, rest, types | result), ends
        product = {"scale": types["scale"], "result": fixed_type(*both - rest, *ends, grain)}
        x = self._each(step, "Mul", x, multiplier, product)
        if any(rest.ravel()):
            x = self._each(step, "Add", x, rest, {"bias": types["bias"], **result})
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

    def _quant(self, x: str, wanted: str, num_bits: int, *, signed: bool, rounding: str) -> str:
        name = wanted if wanted in self.program.quant_params else self.builder.unique(wanted)
        names = {
            key: self.builder.constant(f"{wanted}/{key}", value)
            for key, value in (("scale", 1.0), ("zeropt", 0.0), ("bitwidth", float(num_bits)))
        }
        self.builder.nodes.append(self.builder.onnx.helper.make_node(
            "Quant", [x, *names.values()], [name], name=name, domain=DOMAIN,
            signed=int(signed), narrow=0, rounding_mode=rounding,
        ))  # fmt: skip
        return name

    def _result(self, low: int, high: int) -> Precision:
        return {"result": fixed_type(_whole(low), _whole(high))}


def _whole(number: int) -> NDArray[np.object_]:
    return _fractions(number)


def _fractions(values: Any) -> NDArray[np.object_]:
    """Return whole numbers, or fractions, as an array of fractions."""
    given = np.asarray(values, object)
    made = np.empty(given.size, object)
    made[:] = [v if isinstance(v, Fraction) else Fraction(int(v)) for v in given.ravel()]
    return made.reshape(given.shape)
