"""Configs, variables without names, and words of users that no tool writes: one for each branch.

`written` yields entries of the corpus.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qmath.readers.architecture.variables import snake_case
from reference.corpus import Entry, gathered
from tests.readers.builders import (
    TOLD,
    entry,
    functional,
    kernel,
    one_layer,
    quantizer,
    sequential,
    span,
    wrapped,
    write,
    write_v3,
)

__all__ = ["ONES", "made", "written"]

Told = Mapping[str, Any]
STEP, ONES = np.int32(-1), np.ones((3, 4), np.float32)
WRAPPER = "layers/quantize_wrapper_v2"


def written() -> Iterator[Entry]:
    """Yield all."""
    for config in CONFIGS:
        yield from made(partial(write, config=config, groups={"d": {"d/kernel:0": ONES}}))
    for layer in LAYERS:
        groups = {f"layers/{snake_case(layer['class_name'])}": [ONES]}
        yield from made(partial(write_v3, groups=groups, config=sequential(layer)))
    for groups, layer in STORED:
        yield from made(partial(write_v3, groups=groups, config=sequential(layer)))
    for others in ((), (RELU,)):
        told = {"d/post_activation": ("FixedQuantizer", RANGE)}
        yield from made(partial(unquantized_activation, others=others), told)
    for told in SAID:
        yield from made(with_scale, told)
    for build in (without_ranges, name_for_a_shell):
        yield from made(build)


def made(build: Callable[[Path], Any], told: Told | None = None) -> Iterator[Entry]:
    """Yield what a function writes, as an entry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        found = build(path)
        _without_times(path)
        made = gathered(str(found if isinstance(found, Path) else path), None, {}, False)
    if made is not None:
        yield made._replace(told=told or {})


def _without_times(path: Path) -> None:
    """Write an archive again, whose members have no times."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)


# ---- configs


def tensor(history: Any) -> dict[str, Any]:
    """Return Keras 3's word for what a layer takes."""
    config = {"shape": [None, 3], "keras_history": history}
    return {"class_name": "__keras_tensor__", "config": config}


def inside(*inputs: str, outputs: Sequence[Any] = ("b",)) -> dict[str, Any]:
    """Return a model for use in a model."""
    layers = [entry("InputLayer", name, batch_input_shape=[None, 3]) for name in inputs]
    layers += [entry("Activation", name, [inputs[0]], activation="relu") for name in ("b", "c")]
    return {**functional(layers, list(inputs), list(outputs)), "name": "inner"}


def model(*calls: Any, outer: Any = None, last: Any = "d") -> dict[str, Any]:
    """Return a model of an input, perhaps a model, and a layer that takes what `calls` says."""
    dense = entry("Dense", "d", units=4)
    dense["inbound_nodes"] = list(calls)
    layers = [entry("InputLayer", "x", batch_input_shape=[None, 3]), *([outer] if outer else [])]
    return functional([*layers, dense], ["x"], [last])


IN = ["x", 0, 0, {}]
TWICE = {**inside("a", outputs=("b", "c")), "inbound_nodes": [[IN]]}
BAD = {**inside("a", "a2"), "inbound_nodes": [[IN]]}
AWARE = {"class_name": "QuantizeAwareActivation", "config": {"activation": "softmax"}}
ANNOTATED = entry("QuantizeAnnotate", "q", layer=entry("Dense", "d", units=4))
OUTPUT_ONLY = {"quantize_config": {"class_name": "MyConfig", "config": TOLD}}
CONFIGS: tuple[Any, ...] = (
    {"class_name": "Functional", "config": {"name": "m", "layers": [entry("Dense", "d")]}},
    {"class_name": "Sequential", "config": [entry("Dense", "d", units=4)]},
    sequential(entry("Custom", "d", batch_input_shape="x")),
    model([IN], outer=BAD), model([["inner", 1, 0, {}]], outer=BAD),
    model([["inner", 0, 1, {}]], outer=TWICE), model([["inner", 0, 7, {}]], outer=TWICE),
    model({"args": [tensor(["y", 0, 0])], "kwargs": {}}),
    model({"args": [tensor(["x", 0, 0])], "kwargs": {"training": 3}}),
    model([["x", 0, 0, {"mask": 3, "other": ["_CONSTANT_VALUE", -1, 5, {}]}]]),
    model([["_CONSTANT_VALUE", -1, 5, {}]]), model([["x", 5, 0, {}]]), model(5),
    model([["x", 0, 0, 7]]), model({"args": [tensor(["x", 0, 0])], "kwargs": 7}),
    sequential(ANNOTATED),
    sequential(entry("Custom", "a", nested=[AWARE]), entry("Dense", "d", units=4)),
)  # fmt: skip
CELL = {"class_name": "LSTMCell", "config": {"name": "c", "units": 2}}
LSTM = {"class_name": "LSTM", "config": {"name": "l", "units": 2}}
LAYERS: tuple[Any, ...] = (
    entry("MultiHeadAttention", "a", num_heads=1, key_dim=2),
    entry("MultiHeadAttention", "a", num_heads=1, key_dim=2, use_bias=False),
    entry("Attention", "a", use_scale=True, score_mode="concat"), entry("Attention", "a"),
    entry("AdditiveAttention", "a"), entry("AdditiveAttention", "a", use_scale=False),
    entry("Normalization", "a"), entry("Normalization", "a", mean=1.0, variance=1.0),
    entry("RNN", "a", cell=None), entry("RNN", "a", cell=CELL),
    entry("RNN", "a", cell={"class_name": "StackedRNNCells", "config": {"cells": [None, CELL]}}),
    entry("Bidirectional", "a"), entry("Bidirectional", "a", layer=LSTM, backward_layer=LSTM),
    entry("TimeDistributed", "a"),
    entry("TimeDistributed", "a", layer={"class_name": "Dense", "config": {"name": "e"}}),
    entry("TimeDistributed", "a", layer={"class_name": "Mine", "config": {"name": "e"}}),
)  # fmt: skip

# ---- variables without names


def ends(*pairs: tuple[float, float]) -> list[Any]:
    return [np.float32(end) for pair in pairs for end in pair]


def stored(own: Any, layer: Any, **groups: Any) -> tuple[dict[str, Any], Any]:
    """Return the variables of a wrapper and of groups below it."""
    return {WRAPPER: own, **{f"{WRAPPER}/{k}": v for k, v in groups.items()}}, layer


ONE, TWO = (-0.8, 0.7), (0.0, 6.0)
DEFAULT = wrapped("d", {}, "Default8BitQuantizeConfig", units=4, use_bias=False)
RELU = {"class_name": "QuantizeAwareActivation", "config": {"activation": "relu"}}
ALIKE = wrapped("d", {}, "Default8BitQuantizeConfig", units=4, use_bias=False, activation="relu",
                other=RELU)  # fmt: skip
PLAIN = wrapped("d", units=4, use_bias=False)
CELLS = {"class_name": "StackedRNNCells", "config": {
    "name": "s", "cells": [{"class_name": "SimpleRNNCell", "config": {"name": f"c{i}", "units": 4}}
                           for i in range(12)]}}  # fmt: skip
STACK = wrapped("d", {}, class_name="RNN", cell=CELLS, activation=None)
SQUARE = np.ones((4, 4), np.float32)
LSTMS = {"class_name": "LSTM", "units": 3}
INT8 = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}
BOTH = wrapped("d", {"weight_quantizer": quantizer("Mine")}, class_name="Mine", a_activation=AWARE,
               b_activation="relu", c=[{"d_activation": "softmax"}])  # fmt: skip
STORED: tuple[tuple[dict[str, Any], Any], ...] = (
    stored([ONES, STEP, *ends(ONE, ONE, ONE, ONE)], DEFAULT),
    stored([ONES, STEP, *ends((0.5, 1.0))], PLAIN),
    stored([ONES.astype("f8"), STEP, *ends(ONE, TWO)], PLAIN),
    stored([ONES, STEP, *ends(*[TWO] * 12)], wrapped("d", class_name="Dense", units=4,
           use_bias=False, **{f"a{i}_activation": "relu" for i in range(12)})),
    stored([ONES, ONES, ONES, ONES[0, 0], ONES[0, 0], ONES, STEP, *ends(ONE), np.int32([[1, 2]])],
           PLAIN),
    stored([ONES, np.ones((), np.float32), np.ones((), np.float32), ONES, STEP,
            np.int32([[1, 2]]), *ends(ONE)], PLAIN),
    stored([np.float32(1), np.float32(1), ONES, STEP, np.int32([1, 2]), *ends(ONE)], PLAIN),
    stored([STEP, *ends(TWO)], BOTH), stored([STEP, *ends(TWO, TWO)], BOTH),
    stored([STEP, *ends(TWO, TWO, TWO)], BOTH),
    stored([ONES, STEP, *ends(ONE)], PLAIN, other=[ONES]),
    stored([ONES, STEP, *ends(ONE)], PLAIN, **{"layer/other": [ONES]}),
    stored([ONES, STEP, *ends(ONE, TWO, TWO)], ALIKE),
    *(stored([ONES, SQUARE, ONES[0], *[SQUARE, SQUARE, ONES[0]] * 11, STEP, *ends(*[ONE] * 36)],
             wrapped("d", {}, name, "RNN", cell=CELLS, activation=None))
      for name in ("Default8BitQuantizeConfig", "Default8BitQuantizeConfigRNN")),
    stored([SQUARE, STEP, *ends(ONE)], STACK),
    stored([SQUARE] * 36 + [STEP, *ends(*[ONE] * 36)], STACK),
    stored([ONES, STEP, *ends(*[ONE] * 3)], wrapped("d", {}, "Default8BitQuantizeConfigRNN",
           class_name="LSTM", recurrent_activation=AWARE, activation=AWARE, units=1)),
    stored([np.ones((3, 12), np.float32), STEP, *ends(ONE)], wrapped("d", OUTPUT_ONLY,
           "OutputOnlyConfig", units=12, use_bias=False)),
    stored([ONES, STEP], wrapped("d", {"quantize_config": None}, "OutputOnlyConfig", units=4,
           use_bias=False)),
    ({"layers/dense": [ONES], "layers/dense/inner": [ONES]},
     entry("Dense", "d", units=4, dtype=INT8)),
    ({"layers/dense": [ONES, ONES[0]], "layers/extra": []}, entry("Dense", "d", units=4)),
)  # fmt: skip

# ---- what the user says


def with_scale(path: Path) -> None:
    variables = kernel() | span("post_activation") | {"d/scale:0": np.float32(0.1)}
    one_layer(path, {}, variables, {"d/bias:0": np.zeros(4, np.float32), "d/big:0": np.float64(1)})


def own(name: str, *arguments: Any) -> tuple[str, dict[str, Any]]:
    """Return one of qmath's own quantizers."""
    fields = {"PowerOfTwoQuantizer": ("num_bits",), "FixedScaleQuantizer": ("scale",)}
    return name, dict(zip(fields.get(name, ()), arguments, strict=True))


POWER, FIXED, NONE = "PowerOfTwoQuantizer", "FixedScaleQuantizer", "NoQuantizer"
RANGE = {"num_bits": 8, "init_min": -1.0, "init_max": 1.0, "narrow_range": False}
SAID: tuple[Told, ...] = (
    {"d/kernel": own(POWER, 4)}, {"d/bias": own(POWER, 4)}, {"d/k*": own(FIXED, 0.1)},
    {"d/post_activation": own(FIXED, 0.1)}, {"d/kernel": own(FIXED, "scale")},
    {"d/kernel": own(FIXED, "d/scale")}, {"d/kernel": own(FIXED, "nowhere")},
    {"d/kernel": own(FIXED, 0.1), "d/k*": own(POWER, 4)},
    {"MyConfig.outputs": own(FIXED, 0.1)},
    {"d/output": ("FixedQuantizer", RANGE)}, {"d/bias": ("FixedQuantizer", RANGE)},
    {"d/kernel": (NONE, {})}, {"d/post_activation": (NONE, {})},
    {"d/kernel": ("Quantizer", {})},
    {"d/kernel": ("AllValuesQuantizer", {"num_bits": 8, "per_axis": False, "symmetric": False,
                                         "narrow_range": False})},
)  # fmt: skip


def without_ranges(path: Path) -> None:
    """Write a layer of which a config quantizes the output alone."""
    values = {"d/kernel:0": ONES}
    one_layer(path, OUTPUT_ONLY, values, config_class="OutputOnlyConfig")


def name_for_a_shell(path: Path) -> None:
    """Write a layer whose name has to be quoted."""
    name = "d'e"
    write(path, sequential(wrapped(name)), {f"quant_{name}": kernel(layer=name)})


def unquantized_activation(path: Path, others: Sequence[Any]) -> None:
    """Write a layer whose activation was put nowhere, unless among these."""
    layer = wrapped("d", {})
    layer["config"]["layer"]["config"] |= {"activation": "relu", "others": list(others)}
    write(path, sequential(layer), {"quant_d": kernel()})
