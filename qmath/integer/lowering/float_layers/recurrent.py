"""Recurrent layers, forwards, backwards and both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qmath.integer.lowering.float_layers.layer import (
    Call,
    Computation,
    Float64Array,
    function_named,
)

__all__ = ["bidirectional", "of_cell", "recurrent"]

Function = Callable[[Float64Array], Float64Array]
# From the inputs of all steps, times the kernel, and the state, to the state and the output.
Step = Callable[[Float64Array, "State"], "State"]
State = tuple[Float64Array, ...]

_GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
_CELLS = {f"{name}Cell": name for name in _GATES}
_MERGES: Mapping[str, Callable[[Float64Array, Float64Array], Float64Array]] = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": np.add,
    "ave": lambda a, b: (a + b) / 2,
    "mul": np.multiply,
}


def recurrent(call: Call) -> Computation | None:
    """Return Keras's SimpleRNN, GRU or LSTM from a state of zeros, without a mask."""
    return _layer(call, call.node.class_name)


def of_cell(call: Call) -> Computation | None:
    """Return Keras's RNN of one of its own cells."""
    cell = call.config.get("cell")
    if not isinstance(cell, Mapping) or cell.get("class_name") not in _CELLS:
        return None
    inner = call.within("", {**_config(cell), **call.config})
    return _layer(inner, _CELLS[cell["class_name"]])


def bidirectional(call: Call) -> Computation | None:
    """Return two recurrent layers, of which the second goes backwards, with both outputs merged."""
    forward, backward = call.config.get("layer"), call.config.get("backward_layer")
    mode = call.config.get("merge_mode", "concat")
    if not isinstance(forward, Mapping) or mode not in _MERGES:
        return None
    configs = [_config(forward), {**_config(forward)}]
    configs[1]["go_backwards"] = not configs[0].get("go_backwards")
    if isinstance(backward, Mapping):
        configs[1] = _config(backward)
    classes = [str(entry.get("class_name")) for entry in (forward, backward or forward)]
    heads = {key.split("/")[0] for key in call.weights}
    paths = [[f"{head}/" for head in heads if head.startswith(way)] for way in _WAYS]
    if any(len(path) != 1 for path in paths):
        return None
    first, second = (
        _layer(call.within(path[0], config), class_name)
        for path, config, class_name in zip(paths, configs, classes, strict=True)
    )
    if first is None or second is None or first.shape != second.shape:
        return None
    merge, has_steps = _MERGES[mode], len(first.shape) > 1
    apply, apply_backwards = first.apply, second.apply

    def both(x: Float64Array) -> Float64Array:
        found = apply_backwards(x)
        return np.asarray(merge(apply(x), found[:, ::-1] if has_steps else found))

    factor = 2 if mode == "concat" else 1
    return Computation(both, (*first.shape[:-1], first.shape[-1] * factor))


_WAYS = ("forward_", "backward_")


def _config(entry: Mapping[str, Any]) -> dict[str, Any]:
    config = entry.get("config")
    return dict(config) if isinstance(config, Mapping) else {}


def _layer(call: Call, class_name: str) -> Computation | None:
    config, kernel = call.config, call.weight("kernel")
    state_kernel, bias = call.weight("recurrent_kernel"), call.weight("bias")
    shape = call.shapes[0]
    if (
        class_name not in _GATES
        or kernel is None
        or state_kernel is None
        or len(call.shapes) != 1
        or len(shape) != 2
        or any(config.get(key) for key in ("return_state", "stateful", "time_major"))
    ):
        return None
    units = len(state_kernel)
    wide = _GATES[class_name] * units
    if kernel.shape != (shape[1], wide) or state_kernel.shape != (units, wide):
        return None
    activation = function_named(config.get("activation", "tanh"))
    inner = function_named(config.get("recurrent_activation", "sigmoid"))
    if activation is None or inner is None:
        return None
    step, before = _step(class_name, config, state_kernel, bias, activation, inner)
    is_whole, is_turned = bool(config.get("return_sequences")), bool(config.get("go_backwards"))

    def apply(x: Float64Array) -> Float64Array:
        gates = (x[:, ::-1] if is_turned else x) @ kernel + before
        state: State = (np.zeros((len(x), units)),) * 2
        made = []
        for t in range(gates.shape[1]):
            state = step(gates[:, t], state)
            made.append(state[0])
        return np.stack(made, axis=1) if is_whole else made[-1]

    return Computation(apply, (shape[0], units) if is_whole else (units,))


def _step(
    class_name: str,
    config: Mapping[str, Any],
    kernel: Float64Array,
    bias: Float64Array | None,
    activation: Function,
    inner: Function,
) -> tuple[Step, Float64Array]:
    """Return what goes from one step to the next, and the bias of what it takes."""
    units = len(kernel)
    none = np.zeros(kernel.shape[1])
    if class_name == "SimpleRNN":
        return (lambda x, s: (activation(x + s[0] @ kernel), s[1])), none if bias is None else bias
    if class_name == "LSTM":

        def lstm(x: Float64Array, state: State) -> State:
            i, f, c, o = np.split(x + state[0] @ kernel, 4, axis=1)
            cell = inner(f) * state[1] + inner(i) * activation(c)
            return inner(o) * activation(cell), cell

        return lstm, none if bias is None else bias
    if config.get("reset_after", True):
        before, after = (none, none) if bias is None else bias

        def gru(x: Float64Array, state: State) -> State:
            x_z, x_r, x_h = np.split(x, 3, axis=1)
            z, r, h = np.split(state[0] @ kernel + after, 3, axis=1)
            z, r = inner(x_z + z), inner(x_r + r)
            return z * state[0] + (1 - z) * activation(x_h + r * h), state[1]

        return gru, before

    def old_gru(x: Float64Array, state: State) -> State:
        x_z, x_r, x_h = np.split(x, 3, axis=1)
        z, r = np.split(state[0] @ kernel[:, : 2 * units], 2, axis=1)
        z, r = inner(x_z + z), inner(x_r + r)
        h = activation(x_h + (r * state[0]) @ kernel[:, 2 * units :])
        return z * state[0] + (1 - z) * h, state[1]

    return old_gru, none if bias is None else bias
