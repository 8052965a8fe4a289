"""Verilog testbenches: a layer of the integer model, computed from its memories and compared.

Each is one Verilog-2001 module without a design under test: it reads the memories of weights,
constants and golden vectors, computes every output as the integer model defines it, in registers as
wide as that promises to be enough, and compares. It is a reference to put a design beside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from qmath.exports.bundle import Bundle
from qmath.exports.memories.words import ascii_text
from qmath.exports.output.identifiers import Identifiers
from qmath.integer.program import Linear, Requantize, Shape, Term

__all__ = ["testbenches"]

_KINDS = ("conv2d", "depthwise_conv2d", "dense")


def testbenches(
    bundle: Bundle, listed: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Yield a testbench for each layer that sums up products, if there are golden vectors.

    Parameters
    ----------
    bundle : Bundle
    listed : mapping
        By file name, what `qmath.exports.memories.words.files` returns of each memory.

    Examples
    --------
    >>> import qmath
    >>> from qmath.exports import quantize_model
    >>> from qmath.exports.memories.formats import Mem
    >>> bundle = quantize_model(qmath.load("reference/samples/default8.h5"), vectors=1)
    >>> [name for name, _ in Mem().files(bundle) if name.endswith(".v")]
    ['conv1_post_activation_tb.v', 'relu6_output_tb.v', 'dense_post_activation_tb.v']
    """
    if bundle.program is None or not bundle.vectors:
        return
    by_key = {entry["array"]: (name, entry) for name, entry in listed.items()}
    identifiers = Identifiers(bundle.keys())
    for step in bundle.program.steps:
        if isinstance(step, Requantize):
            name = identifiers.new(f"{step.name}/tb")
            lines = _Testbench(bundle, by_key, step).lines(name)
            if lines is not None:
                yield f"{name}.v", ("\n".join(lines) + "\n").encode("ascii")


class _UnsupportedError(Exception):
    """A step has an operation that the testbenches do not know."""


class _Testbench:
    """One testbench under construction."""

    def __init__(
        self, bundle: Bundle, listed: Mapping[str, tuple[str, dict[str, Any]]], step: Requantize
    ) -> None:
        assert bundle.program is not None
        self.bundle, self.listed, self.step = bundle, listed, step
        self.shapes = {s.name: s.shape for s in bundle.program.quantized}
        self.declarations: list[str] = []
        self.reads: list[str] = []
        directed = bundle.manifest.get("directed", {"steps": {}})
        self.keys: dict[str, Any] = directed["steps"].get(step.name, {})

    def lines(self, name: str) -> list[str] | None:
        """Return the module, ``None`` if it has an operation that no testbench is made of."""
        terms = self.step.value.terms
        if not any(op.weights is not None for term in terms for op in term.ops):
            return None
        try:
            sums = [self._sum(i, term) for i, term in enumerate(terms)]
            results = self._results(len(sums))
        except _UnsupportedError:
            return None
        height, width, channels = _spatial(self.step.shape)
        self._memory("expected", self.keys.get("expected", f"vectors/{self.step.name}"))
        count = len(self.bundle.vectors[self.keys.get("expected", f"vectors/{self.step.name}")])
        size = math.prod(self.step.shape)
        told = self._purposes(count * size, channels)
        text = ascii_text(self.step.name)
        quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
        return [
            f"// {text} of the integer model against its golden vectors. In this folder:",
            f"//   iverilog -o {name}.vvp {name}.v && vvp {name}.vvp",
            f"module {name};",
            *(f"  {line}" for line in self.declarations),
            "  reg signed [63:0] y;",
            "  integer n, row, column, channel, at, ky, kx, ci, iy, ix, index, a, b, wrong;",
            "  initial begin",
            *(f"    {line}" for line in self.reads),
            "    wrong = 0;",
            f"    for (n = 0; n < {count}; n = n + 1)",
            f"    for (row = 0; row < {height}; row = row + 1)",
            f"    for (column = 0; column < {width}; column = column + 1)",
            f"    for (channel = 0; channel < {channels}; channel = channel + 1) begin",
            f"      at = (row * {width} + column) * {channels} + channel;",
            *(f"      {line}" for lines in sums for line in lines),
            *(f"      {line}" for line in results),
            f"      failed[n * {size} + at] = y !== expected[n * {size} + at];",
            f"      if (failed[n * {size} + at]) begin",
            "        wrong = wrong + 1;",
            '        if (wrong <= 10) $display("vector %0d, row %0d, column %0d, channel %0d: %0d, '
            'not %0d", n, row, column, channel, y, '
            f"expected[n * {size} + at]);",
            "      end",
            "    end",
            f'    if (wrong == 0) $display("PASS {quoted}: {count * size} integers");',
            "    else begin",
            f'      $display("FAIL {quoted}: %0d integers differ", wrong);',
            *(f"      {line}" for line in told),
            "    end",
            "    $finish;",
            "  end",
            "endmodule",
        ]

    def _purposes(self, elements: int, channels: int) -> list[str]:
        """Return the lines that say which purposes of the elements fail, and which never do."""
        self.declarations.append(f"reg failed [0:{max(elements, 1) - 1}];")
        count = len(self.bundle.vectors[self.keys["tags"]]) if self.keys else 0
        if not count:
            return []
        self._memory("tags", self.keys["tags"])
        purposes = self.bundle.manifest["directed"]["purposes"]
        self.declarations += [
            f"reg [{len(purposes) - 1}:0] bits;",
            "integer purpose, wrong_ones, all_ones, first;",
            f"reg [{8 * max(map(len, purposes))}:1] name;",
        ]
        names = (f'{i}: name = "{purpose}";' for i, purpose in enumerate(purposes))
        return [
            f"for (purpose = 0; purpose < {len(purposes)}; purpose = purpose + 1) begin",
            "  case (purpose)",
            *(f"    {line}" for line in names),
            "  endcase",
            "  wrong_ones = 0; all_ones = 0;",
            f"  for (n = 0; n < {count}; n = n + 1) begin",
            "    bits = tags[n * 2 + 1];",
            "    if (bits[purpose]) begin",
            "      all_ones = all_ones + 1;",
            "      if (failed[tags[n * 2]]) begin",
            "        if (wrong_ones == 0) first = tags[n * 2];",
            "        wrong_ones = wrong_ones + 1;",
            "      end",
            "    end",
            "  end",
            '  if (wrong_ones > 0) $display("  %0s: %0d of %0d wrong, the first in channel %0d", '
            f"name, wrong_ones, all_ones, first % {channels});",
            '  else if (all_ones > 0) $display("  %0s: never wrong", name);',
            "end",
        ]

    def _memory(self, name: str, key: str) -> dict[str, Any]:
        """Declare and read a memory under the name that it has in the module."""
        file, entry = self.listed[key]
        signed = entry["encoding"] == "two's complement" and entry["values_per_word"] == 1
        kind = "reg signed" if signed else "reg"
        self.declarations.append(
            f"{kind} [{entry['width'] - 1}:0] {name} [0:{entry['depth'] - 1}];"
        )
        self.reads.append(f'$readmemh("{file}", {name});')
        return entry

    def _sum(self, number: int, term: Term) -> list[str]:
        """Return the lines that compute a term's accumulator, ``sum_<number>``."""
        if len(term.ops) > 1 or any(op.kind not in _KINDS for op in term.ops):
            raise _UnsupportedError
        shape = self.shapes[term.source]
        suffix = "" if len(self.step.value.terms) == 1 else f".{number}"
        bits = self.bundle.constants[f"{self.step.name}.accumulator_bits{suffix}"].max()
        self.declarations.append(f"reg signed [{bits - 1}:0] sum_{number};")
        given = self.keys.get("inputs", {}).get(term.source, f"vectors/{term.source}")
        self._memory(f"source_{number}", given)
        height, width, depth = _spatial(shape)
        size, zero_point = math.prod(shape), term.params.zero_point
        if not term.ops:
            if shape != self.step.shape:
                raise _UnsupportedError
            return [
                f"a = source_{number}[n * {size} + at];",
                f"sum_{number} = a - {zero_point};",
            ]
        (op,) = term.ops
        entry, weight = self._weight(number, op)
        axes = dict(zip(entry["layout"], entry["shape"], strict=True))
        inputs = axes["I"]
        channel = "ci"
        if op.kind == "depthwise_conv2d":
            inputs, channel = 1, f"channel / {axes['M']}"
        elif inputs < depth:  # grouped
            channel = f"channel / {axes['O'] * inputs // depth} * {inputs} + ci"
        strides, dilation = (op.attributes.get(key, (1, 1)) for key in ("strides", "dilation"))
        pads = [pair[0] for pair in op.attributes.get("pads", ((0, 0), (0, 0)))]
        return [
            f"sum_{number} = 0;",
            f"for (ky = 0; ky < {axes.get('H', 1)}; ky = ky + 1)",
            f"for (kx = 0; kx < {axes.get('W', 1)}; kx = kx + 1) begin",
            f"  iy = row * {strides[0]} + ky * {dilation[0]} - {pads[0]};",
            f"  ix = column * {strides[1]} + kx * {dilation[1]} - {pads[1]};",
            f"  if (iy >= 0 && iy < {height} && ix >= 0 && ix < {width})",
            f"    for (ci = 0; ci < {inputs}; ci = ci + 1) begin",
            f"      a = source_{number}[n * {size} + (iy * {width} + ix) * {depth} + {channel}];",
            *(f"      {line}" for line in weight),
            f"      sum_{number} = sum_{number} + (a - {zero_point}) * b;",
            "    end",
            "end",
        ]

    def _weight(self, number: int, op: Linear) -> tuple[dict[str, Any], list[str]]:
        """Return a weight's manifest entry, and the lines that set ``b`` to one of its integers."""
        entry = self.bundle.manifest["tensors"][op.name]
        listed = self._memory(f"weights_{number}", op.name)
        count, bits = listed["values_per_word"], entry["num_bits"]
        zero_points = self._memory(f"weights_zero_{number}", f"{op.name}.zero_point")
        multiplier = entry["shape"][entry["layout"].index("M")] if "M" in entry["layout"] else 1
        letters = {"H": "ky", "W": "kx", "I": "ci", "O": "channel", "M": f"channel % {multiplier}"}
        if op.kind == "depthwise_conv2d":
            letters["I"] = f"channel / {multiplier}"
        index, stride = [], 1
        for letter, size in zip(entry["layout"][::-1], entry["shape"][::-1], strict=True):
            index.append(f"{letters[letter]} * {stride}" if stride > 1 else letters[letter])
            stride *= size
        along = letters[entry["source_layout"][-1]] if zero_points["depth"] > 1 else "0"
        kind = "reg signed" if entry["signed"] else "reg"
        self.declarations.append(f"{kind} [{bits - 1}:0] weight_{number};")
        return entry, [
            f"index = {' + '.join(index[::-1])};",
            f"weight_{number} = weights_{number}[index / {count}] >> index % {count} * {bits};",
            f"b = weight_{number};",
            f"b = b - weights_zero_{number}[{along}];",
        ]

    def _results(self, terms: int) -> list[str]:
        """Return the lines that round and clamp: ``y`` is the unsigned integer then."""
        name = self.step.name
        if f"{name}.shift_only.shift" in self.bundle.constants:
            bias = self._constant("bias", f"{name}.shift_only.bias")
            shift = self._constant("shift", f"{name}.shift_only.shift")
            return [f"y = sum_0 + {bias};", f"y = y >>> {shift};", *self._clamps()]
        shift = self._constant("shift", f"{name}.shift")
        lines = [self._total("", terms)]
        if f"{name}.negative.shift" in self.bundle.constants:
            negative = self._constant("negative_shift", f"{name}.negative.shift")
            lines += [
                f"if (y < (64'sd1 <<< ({shift} - 1))) begin",
                f"  {self._total('negative_', terms)}",
                f"  y = y >>> {negative};",
                f"end else y = y >>> {shift};",
            ]
        else:
            lines.append(f"y = y >>> {shift};")
        return [*lines, *self._clamps()]

    def _clamps(self) -> list[str]:
        """Return the lines that clamp ``y``, and count it from 0."""
        lines = []
        for end, sign in (("low", "<"), ("high", ">")):
            limit = self._constant(end, f"{self.step.name}.{end}")
            lines.append(f"if (y {sign} {limit}) y = {limit};")
        return [*lines, f"y = y + {self.step.params.zero_point};"]

    def _total(self, side: str, terms: int) -> str:
        key = f"{self.step.name}.{side.replace('_', '.')}"
        parts = []
        for i in range(terms):
            multiplier = f"{key}multiplier.{i}" if terms > 1 else f"{key}multiplier"
            parts.append(f"sum_{i} * {self._constant(f'{side}multiplier_{i}', multiplier)}")
        return f"y = {' + '.join(parts)} + {self._constant(f'{side}addend', f'{key}addend')};"

    def _constant(self, name: str, key: str) -> str:
        """Declare a memory of constants, and return the one that counts for an output."""
        shape = tuple(self._memory(name, key)["shape"])
        if math.prod(shape) == 1:
            return f"{name}[0]"
        if shape == self.step.shape[-1:]:
            return f"{name}[channel]"
        if shape == self.step.shape:
            return f"{name}[at]"
        raise _UnsupportedError


def _spatial(shape: Shape) -> tuple[int, int, int]:
    """Return a shape as rows, columns and channels."""
    if len(shape) > 3:
        raise _UnsupportedError
    height, width, channels = (1, 1, 1, *shape)[-3:]
    return height, width, channels
