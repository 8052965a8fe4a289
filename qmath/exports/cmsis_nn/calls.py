"""The arrays and parameters of a layer in C, and the call of CMSIS-NN that takes them."""

from __future__ import annotations

import numpy as np

from qmath.exports.c import source
from qmath.exports.c.tensors import CArray, Code, Names, add_integers
from qmath.exports.cmsis_nn.layers import Layer

__all__ = ["Writer"]

_ORDERS = {"conv": "OHWI", "dw_conv": "1HWC", "fc": "OI"}
_DIMS = ("input", "filter", "bias", "output")
_FUNCTIONS = {"conv": "arm_convolve_wrapper", "dw_conv": "arm_depthwise_conv_wrapper"}


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
        kernel, (source_params,) = layer.kernel, layer.kernel.inputs
        width = 4 if layer.is_s4 else 8
        shape = "x".join(map(str, layer.weights.shape))
        self.code.header.append(
            "\n"
            + source.comment(
                f"{layer.name}: {layer.kind} of {layer.source}; {kernel.weights} {shape}, "
                f"{_ORDERS[layer.kind]}, s{width}."
            )
        )
        macros = {
            "INPUT_OFFSET": -source_params.zero_point,
            "OUTPUT_OFFSET": kernel.output.zero_point,
            "ACTIVATION_MIN": kernel.output.low,
            "ACTIVATION_MAX": kernel.output.high,
            "INPUT_SCALE": source.literals(np.asarray(source_params.scale))[0],
            "OUTPUT_SCALE": source.literals(np.asarray(kernel.output.scale))[0],
        }
        names = {what: self.names.macro(layer.name, what) for what in macros}
        for what, value in macros.items():
            self.code.header.append(f"#define {names[what]} {value}")
        weights = CArray(layer.weights, width, signed=True, as_int8=True)
        packing = "nibbles" if layer.is_s4 else "bytes"
        names["weights"] = self._own(kernel.weights)
        add_integers(self.code, self.names, kernel.weights, names["weights"], weights, packing)
        for what in ("bias", "multiplier", "shift"):
            key = f"{layer.name}.{what}"
            names[what] = self._own(key)
            self.code.values(names[what], key, getattr(layer, what))
        self._call(layer, names, width)

    def _own(self, key: str) -> str:
        """Return the name of an array; of a further one under the same key, another."""
        if key in self._used or key not in self.names:
            return self.names.new(key)
        self._used.add(key)
        return self.names[key]

    def _call(self, layer: Layer, names: dict[str, str], width: int) -> None:
        """Write the functions that call CMSIS-NN, and that ask it for the size of a buffer."""
        run = self.runs[layer.name] = self.names.new(f"run/{layer.name}")
        size = self.sizes[layer.name] = self.names.new(f"buffer_size/{layer.name}")
        own = {part: self.names.of(layer.name, part) for part in ("params", *_DIMS)}
        multiplier, shift = names["multiplier"], names["shift"]
        pointers = f"(int32_t *){multiplier}, (int32_t *){shift}"  # which it does not write to
        if layer.kind != "fc":
            function = f"{_FUNCTIONS[layer.kind]}_s{width}"
            quant = f"cmsis_nn_per_channel_quant_params quant = {{\n        {pointers}}};"
            arguments = ", ".join(
                f"&{own[part]}" for part in ("params", "input", "filter", "output")
            )
            sized = f"{function}_get_buffer_size(\n        {arguments})"
        else:
            function = "arm_fully_connected_s4" if layer.is_s4 else "arm_fully_connected_wrapper_s8"
            quant = (
                f"cmsis_nn_quant_params quant = {{\n        {pointers}, {layer.multiplier.ndim}}};"
            )
            if layer.is_s4:
                values = f"*{multiplier}, *{shift}"
                quant = f"cmsis_nn_per_tensor_quant_params quant = {{\n        {values}}};"
            sized = f"arm_fully_connected_s8_get_buffer_size(&{own['filter']})"
        self.functions += [
            "",
            source.comment(layer.name),
            f"static const cmsis_nn_{layer.kind}_params {own['params']} = {{",
            *(f"    .{field} = {value}," for field, value in _parameters(layer, names).items()),
            "};",
            *(
                f"static const cmsis_nn_dims {own[part]} = {source.braces(values)};"
                for part, values in _dimensions(layer).items()
            ),
            "",
            f"static inline arm_cmsis_nn_status {run}(",
            "    const cmsis_nn_context *ctx, const int8_t *input, int8_t *output)",
            "{",
            f"    const {quant}",
            "",
            f"    return {function}(",
            f"        ctx, &{own['params']}, &quant, &{own['input']}, input,",
            f"        &{own['filter']}, {names['weights']},",
            f"        &{own['bias']}, {names['bias']}, &{own['output']}, output);",
            "}",
            "",
            f"static inline int32_t {size}(void)",
            "{",
            f"    return {sized};",
            "}",
        ]


def _parameters(layer: Layer, names: dict[str, str]) -> dict[str, str]:
    """Return the fields of the parameters."""

    def tile(values: tuple[int, ...]) -> str:
        return f"{{.w = {values[1]}, .h = {values[0]}}}"

    fields = {"input_offset": names["INPUT_OFFSET"]}
    if layer.kind == "fc":
        fields["filter_offset"] = "0"
    fields["output_offset"] = names["OUTPUT_OFFSET"]
    if layer.kind == "dw_conv":
        fields["ch_mult"] = str(layer.out_shape[2] // layer.in_shape[2])
    if layer.kind != "fc":
        fields["stride"] = tile(layer.stride)
        fields["padding"] = tile(layer.pad)
        fields["dilation"] = tile(layer.dilation)
    fields["activation"] = f"{{\n        {names['ACTIVATION_MIN']}, {names['ACTIVATION_MAX']}}}"
    return fields


def _dimensions(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Return batch or outputs, height, width and channels of what the functions take."""
    inputs, outputs = layer.in_shape[2], layer.out_shape[2]
    bias = (1, 1, 1, outputs)
    if layer.kind == "fc":
        rows = layer.in_shape[0]
        dims = (rows, 1, 1, inputs), (inputs, 1, 1, outputs), bias, (rows, 1, 1, outputs)
        return dict(zip(_DIMS, dims, strict=True))
    of_filter = (1, *layer.size, outputs)
    if layer.kind == "conv":
        of_filter = (outputs, *layer.size, layer.weights.shape[-1])
    shapes = (1, *layer.in_shape), of_filter, bias, (1, *layer.out_shape)
    return dict(zip(_DIMS, shapes, strict=True))
