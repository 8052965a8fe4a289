"""The arrays and parameters of a layer in C, and the functions that take them."""

from __future__ import annotations

import numpy as np

from qmath.exports.c import source
from qmath.exports.c.tensors import CArray, Code, Names, add_integers
from qmath.exports.cmsis_nn.functions import DIMENSIONS, call
from qmath.exports.cmsis_nn.records import Layer, Pool, Sum, Weighted

__all__ = ["Writer"]

_ORDERS = {"conv": "OHWI", "dw_conv": "1HWC", "transpose_conv": "OHWI", "fc": "OI"}


class Writer:
    """Writes one layer after another.

    Attributes
    ----------
    functions : list of str
        The calls.
    runs, sizes : dict of str to str
        By layer, the name of its function, and of the one that returns its buffer's size.
    """

    def __init__(self, code: Code, names: Names) -> None:
        self.code, self.names = code, names
        self.functions: list[str] = []
        self.runs: dict[str, str] = {}
        self.sizes: dict[str, str] = {}
        self._used: set[str] = set()

    def add(self, layer: Layer) -> None:
        """Add a layer."""
        what = f"{layer.name}: {layer.kind} of {' and '.join(layer.sources)}"
        if isinstance(layer, Weighted):
            shape = "x".join(map(str, layer.weights.shape))
            what += f"; {layer.key} {shape}, {_ORDERS[layer.kind]}, s{4 if layer.is_s4 else 8}"
        self.code.header.append(f"\n{source.comment(f'{what}.')}")
        macros = _macros(layer)
        names = {what: self.names.macro(layer.name, what) for what in macros}
        self.code.header += [f"#define {names[what]} {value}" for what, value in macros.items()]
        if isinstance(layer, Weighted):
            names |= self._arrays(layer)
        self._functions(layer, names)

    def _arrays(self, layer: Weighted) -> dict[str, str]:
        """Define the arrays of a layer; return their names."""
        names = {"weights": self._own(layer.key)}
        weights = CArray(layer.weights, 4 if layer.is_s4 else 8, signed=True, as_int8=True)
        packing = "nibbles" if layer.is_s4 else "bytes"
        add_integers(self.code, self.names, layer.key, names["weights"], weights, packing)
        for what in ("bias", "multiplier", "shift"):
            key = f"{layer.name}.{what}"
            names[what] = self._own(key)
            self.code.values(names[what], key, getattr(layer, what))
        return names

    def _own(self, key: str) -> str:
        """Return the name of an array; of a further one under the same key, another."""
        if key in self._used or key not in self.names:
            return self.names.new(key)
        self._used.add(key)
        return self.names[key]

    def _functions(self, layer: Layer, names: dict[str, str]) -> None:
        """Write the functions that call CMSIS-NN, and that ask it for the size of a buffer."""
        run = self.runs[layer.name] = self.names.new(f"run/{layer.name}")
        size = self.sizes[layer.name] = self.names.new(f"buffer_size/{layer.name}")
        names["size"] = size
        parts = [part for part in DIMENSIONS if part != "bias" or isinstance(layer, Weighted)]
        if not isinstance(layer, Sum):
            names["params"] = self.names.of(layer.name, "params")
            names |= {f"dims_{part}": self.names.of(layer.name, part) for part in parts}
        found = call(layer, names)
        given = ["input_1", "input_2"] if isinstance(layer, Sum) else ["input"]
        arguments = ", ".join(f"const int8_t *{name}" for name in given)
        self.functions += [
            "",
            source.comment(layer.name),
            *found.constants,
            "",
            f"static inline int32_t {size}(void)",
            "{",
            *(f"    {line}" if line else "" for line in found.size),
            "}",
            "",
            f"static inline arm_cmsis_nn_status {run}(",
            f"    const cmsis_nn_context *ctx, {arguments}, int8_t *output)",
            "{",
            *(f"    {line}" if line else "" for line in found.run),
            "}",
        ]


def _macros(layer: Layer) -> dict[str, object]:
    """Return the numbers that a layer has one of."""
    sources = [f"INPUT_{i}" for i in (1, 2)] if isinstance(layer, Sum) else ["INPUT"]
    ends = dict(zip(sources, layer.inputs, strict=True)) | {"OUTPUT": layer.output}
    macros: dict[str, object] = {
        f"{end}_OFFSET": params.zero_point if end == "OUTPUT" else -params.zero_point
        for end, params in ends.items()
    }
    macros |= {"ACTIVATION_MIN": layer.output.low, "ACTIVATION_MAX": layer.output.high}
    for end, params in ends.items():
        macros[f"{end}_SCALE"] = source.literals(np.asarray(params.scale))[0]
    if isinstance(layer, Pool | Sum) and layer.kernel is not None:
        scaled = [*sources, "OUTPUT"] if isinstance(layer, Sum) else ["OUTPUT"]
        kernel = layer.kernel
        for end, multiplier, shift in zip(scaled, kernel.multipliers, kernel.shifts, strict=True):
            macros |= {f"{end}_MULTIPLIER": int(multiplier), f"{end}_SHIFT": int(shift)}
    if isinstance(layer, Sum):
        macros["LEFT_SHIFT"] = layer.kernel.left_shift
    return macros
