"""Whose the ranges of a wrapper are, where variables have no names: told, shown, or refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath.errors import FileFormatError
from qmath.model import own_quantized
from qmath.quantizers import (
    AllValuesQuantizer,
    FixedQuantizer,
    LastValueQuantizer,
    MovingAverageQuantizer,
)
from qmath.readers.loading import load
from tests.readers.builders import quantizer, sequential, wrapped, write_v3

rng = np.random.default_rng(1)
STEP = np.int32(-1)
KERNEL = np.linspace(-0.8, 0.7, 12, dtype=np.float32).reshape(3, 4)
BIAS = np.linspace(-0.2, 0.1, 4, dtype=np.float32)
WEIGHT = LastValueQuantizer(4, False, False, False)
MOVING = MovingAverageQuantizer(8, False, False, False)
FIXED = FixedQuantizer(8, -1, 1, narrow_range=False)

Array = np.ndarray[Any, Any]


def ranges(*pairs: tuple[float, float]) -> list[Any]:
    return [np.float32(end) for pair in pairs for end in pair]


def stored(
    tmp_path: Path, own: list[Any], layer: Any = None, inner: tuple[Array, ...] = (), **groups: Any
) -> Path:
    """Write a model of one wrapped layer, by default a Dense one of a config that tells nothing."""
    prefix = "layers/quantize_wrapper_v2"
    inside = {f"{prefix}/layer{place}": values for place, values in groups.items()}
    layer = layer or wrapped("d", units=4, use_bias=bool(inner))
    content = {prefix: own, f"{prefix}/layer": [*inner], **inside}
    return write_v3(tmp_path / "model.keras", content, sequential(layer))


def owners(path: Path, quantizers: Any = None) -> dict[str, tuple[float, float]]:
    tensors = load(path, quantizers).tensors
    return {
        name.partition("/")[2]: (float(tensor.min), float(tensor.max))
        for name, tensor in tensors.items()
        if tensor.min is not None
    }


# Two ranges, of at most three quantizers.

TWO = [KERNEL, KERNEL, STEP, *ranges((-2.5, 3.5), (0, 6))]


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({"MyConfig.weights": WEIGHT, "MyConfig.activation": MOVING}, "kernel post_activation"),
        ({"MyConfig.weight": WEIGHT, "MyConfig.output": MOVING}, "kernel output"),
        ({"MyConfig.output": MOVING, "MyConfig.activation": MOVING}, "post_activation output"),
        ({"d/*": AllValuesQuantizer(8, False, False, False), "MyConfig.output": FIXED}, ""),
        ({"d/kernel": FIXED}, "post_activation output"),
    ],
)
def test_the_user_decides(tmp_path: Path, told: dict[str, Any], names: str) -> None:
    path = stored(tmp_path, TWO)
    if not names:
        with pytest.raises(FileFormatError, match=r"2 ranges do not fit .* what you say \(d/\*"):
            load(path, told)
        return
    found = dict(zip(names.split(), [(-2.5, 3.5), (0, 6)], strict=True))
    fixed = {"kernel": (-1, 1)} if "d/kernel" in told else {}
    assert owners(path, told) == fixed | found


def test_a_refusal_lists_the_ways_and_what_decides(tmp_path: Path) -> None:
    path = stored(tmp_path, TWO)
    with pytest.raises(FileFormatError) as caught:
        load(path)
    message = str(caught.value)
    for part in (
        f"{path}: model.weights.h5: d: this format holds no names, and its 2 ranges fit in 3 ways",
        "kernel, output: told by MyConfig.weights and MyConfig.output;",
        "kernel, post_activation: told by MyConfig.weights and MyConfig.activation;",
        "post_activation, output (kernel has none): told by MyConfig.activation and "
        "MyConfig.output. ",
        '--quantizer "MyConfig.weights=LastValueQuantizer(num_bits=N, ...)"',
        "save the model as .h5 or as a SavedModel",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"weight_quantizer": quantizer(), "output": quantizer()}, "kernel output"),
        ({"kernel": quantizer("FixedQuantizer")}, "post_activation output"),
        ({"act": quantizer("NoQuantizer")}, "kernel output"),
        ({"output": quantizer("Mine"), "weights": quantizer("AllValuesQuantizer")}, ""),
    ],
)
def test_quantizers_in_the_config_decide(
    tmp_path: Path, config: dict[str, Any], names: str
) -> None:
    path = stored(tmp_path, TWO, wrapped("d", config, units=4, use_bias=False))
    if names:
        assert list(owners(path)) == names.split()
        return
    with pytest.raises(FileFormatError, match="fit in 2 ways"):
        load(path)


@pytest.mark.parametrize("aware", [True, False])
def test_one_range_of_a_weight_whose_quantizer_may_keep_none(
    tmp_path: Path, *, aware: bool
) -> None:
    layer = wrapped("d", units=4, use_bias=False)
    if not aware:
        layer["config"]["layer"]["config"]["activation"] = "relu"
    path = stored(tmp_path, [KERNEL, KERNEL, STEP, *ranges((-2.5, 3.5))], layer)
    with pytest.raises(FileFormatError, match="its one range fits in 3 ways"):
        load(path)
    for role, name in (("weights", "kernel"), ("activation", "post_activation"), ("output",) * 2):
        is_called = aware or role != "activation"  # what is never called quantizes nothing
        found = owners(path, {f"MyConfig.{role}": MOVING})
        assert found == ({name: (-2.5, 3.5)} if is_called else {})


def test_what_is_sure_without_being_told(tmp_path: Path) -> None:
    assert owners(stored(tmp_path, [KERNEL, KERNEL, STEP])) == {}
    path = stored(tmp_path, [*TWO, *ranges((-1, 1))])
    assert list(owners(path)) == ["kernel", "post_activation", "output"]
    none = wrapped("d", units=4, use_bias=False, activation="NoOpActivation")
    path = stored(tmp_path, TWO, none)
    assert list(owners(path)) == ["kernel", "output"]
    fixed = {"config": {"class_name": "MyConfig", "config": {}}, "init_min": -1, "init_max": 1}
    path = stored(
        tmp_path, TWO[:-2], wrapped("d", fixed, "FixedQuantizeConfig", units=4, use_bias=False)
    )
    assert owners(path) == {"kernel": (-2.5, 3.5)}


def test_quantized_weights_without_a_range_are_noted(tmp_path: Path) -> None:
    path = stored(tmp_path, TWO)
    kept = {"MyConfig.activation": MOVING, "MyConfig.output": MOVING}
    assert own_quantized(load(path, kept)) == ("d/kernel",)
    for told in (
        kept | {"d/kernel": FIXED},
        {"MyConfig.weights": WEIGHT} | dict([*kept.items()][:1]),
    ):
        assert own_quantized(load(path, told)) == ()


# Values.


def test_two_symmetric_ranges_near_their_weights_are_theirs(tmp_path: Path) -> None:
    symmetric = [(-0.9, 0.9 * 31 / 32), (-0.15, 0.15)]
    own = [KERNEL, BIAS, KERNEL, BIAS, STEP]
    dense = wrapped("d", units=4, use_bias=True)
    path = stored(tmp_path, [*own, *ranges(*symmetric)], dense)
    assert list(owners(path)) == ["kernel", "bias"]
    for first, second in (
        (symmetric[1], symmetric[0]),  # far from them
        (symmetric[0], (-0.15, 0.1)),  # not symmetric
        (symmetric[0], (-6, 6)),  # as it was made
        (symmetric[0], (0, 0)),
    ):
        path = stored(tmp_path, [*own, *ranges(first, second)], dense)
        with pytest.raises(FileFormatError, match="fit in 6 ways"):
            load(path)


@pytest.mark.parametrize("factor", [0.6, 1.9, 0.4, 2.1])
def test_symmetric_channels_near_a_weight_are_its(tmp_path: Path, factor: float) -> None:
    """An output's range may be of channels, too."""
    reach = np.abs(KERNEL).max(0) * np.float32(factor)
    path = stored(tmp_path, [KERNEL, KERNEL, STEP, -reach, reach])
    if 0.5 < factor < 2:
        (kernel,) = (t for t in load(path).tensors.values() if t.role == "weight")
        assert np.array_equal(kernel.max, reach)
        return
    with pytest.raises(FileFormatError, match=r"\(1\) kernel: .*\(2\) output"):
        load(path)


def test_one_symmetric_number_near_a_weight_may_be_chance(tmp_path: Path) -> None:
    path = stored(tmp_path, [KERNEL, KERNEL, STEP, *ranges((-0.8, 0.7))])
    with pytest.raises(FileFormatError, match="fits in 3 ways"):
        load(path)


@pytest.mark.parametrize("ends", [(0.5, 2), (-2, -0.5)])
def test_scales_are_no_range(tmp_path: Path, ends: tuple[float, float]) -> None:
    """Two variables of quantizers that keep one each, as learned scales."""
    path = stored(tmp_path, [KERNEL, KERNEL, STEP, *ranges(ends)])
    with pytest.raises(FileFormatError, match="0 is not between them"):
        load(path, {"MyConfig.weights": WEIGHT})


# Several activations.


def recurrent(**inner: Any) -> Any:
    return wrapped("l", class_name="LSTM", units=1, use_bias=False, **inner)


def test_activations_of_one_name(tmp_path: Path) -> None:
    kernels = {"/cell": [KERNEL, KERNEL[:1]]}
    both = recurrent(activation="tanh", recurrent_activation="sigmoid")
    own = [KERNEL, KERNEL[:1], STEP, *ranges((0, 1), (0, 2))]
    path = stored(tmp_path, own, both, **kernels)
    with pytest.raises(FileFormatError, match=r"pre_activation, output: .* activation, activation"):
        load(path)
    assert list(owners(path, {"MyConfig.output": MOVING})) == ["pre_activation", "output"]
    with pytest.raises(FileFormatError, match="several of its activations"):
        load(path, {"MyConfig.output": FIXED})


@pytest.mark.parametrize("activation", ["gelu", "swish"])
def test_activations_that_are_quantized_twice(tmp_path: Path, activation: str) -> None:
    dense = wrapped("d", units=4, use_bias=False, activation=activation)
    told = {"MyConfig.activation": MOVING}
    one = stored(tmp_path, TWO[:-2], dense)
    if activation == "swish":
        assert list(owners(one, told)) == ["post_activation"]
        return
    with pytest.raises(FileFormatError, match="1 range does not fit"):
        load(one, told)
    assert list(owners(stored(tmp_path, TWO, dense), told)) == ["pre_activation", "post_activation"]


# Weights.


def test_a_weight_that_was_never_put_in_place(tmp_path: Path) -> None:
    """The inner layer still has it, and its quantizer keeps a range."""
    own = [KERNEL, BIAS, KERNEL, STEP, *ranges((-0.8, 0.7), (0, 6), (0, 6))]
    path = stored(tmp_path, own, wrapped("d", units=4, use_bias=True), (KERNEL, BIAS))
    assert list(owners(path)) == ["kernel", "post_activation", "output"]


def stack(tmp_path: Path, cells: int, ends: int, *, known: bool) -> Path:
    """A stack of cells, of each of which one kernel of the same shape is quantized."""
    names = [f"c{i}" for i in range(cells)]
    config = {"cells": [
        {"class_name": "SimpleRNNCell", "config": {"name": n, "units": 2, "use_bias": False}}
        for n in names
    ]}  # fmt: skip
    layer = wrapped(
        "r", class_name="RNN", activation=None,
        cell={"class_name": "StackedRNNCells", "config": {"name": "stack", **config}},
    )  # fmt: skip
    kernels = rng.normal(size=(2 * cells, 2, 2)).astype(np.float32)
    groups = {
        f"/cell/cells/simple_rnn_cell{f'_{i}' if i else ''}": [kernels[2 * i + 1]]
        for i in range(cells)
    }
    own = [*(kernels if known else ()), *kernels[::2], STEP, *ranges(*[(-1, 2)] * ends)]
    return stored(tmp_path, own, layer, **groups)


def test_ranges_without_number_are_counted_and_refused(tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(FileFormatError, match=r"in \d+ ways; save the model"):
        load(stack(tmp_path, 12, 6, known=True))
    with pytest.raises(FileFormatError, match="in more than a million ways; save the model"):
        load(stack(tmp_path, 40, 20, known=True))
    with pytest.raises(FileFormatError, match="leave open which"):
        load(stack(tmp_path, 3, 3, known=False))
    with pytest.raises(FileFormatError, match=r"leave open which|more than 10000 ways"):
        load(stack(tmp_path, 40, 20, known=False))
    assert time.process_time() - start < 20
