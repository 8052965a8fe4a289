"""What qmath's quantizers refuse, and the traps they reproduce and explain."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError, QmathWarning


def test_the_state_is_updated_in_place() -> None:
    quantizer = qmath.LastValueQuantizer(4, True, True, True)
    state = quantizer.build((2, 3))
    low = state["min_var"]
    assert low.tolist() == [-6, -6, -6]
    quantizer(np.float32([[1, 2, 3], [-4, 0, 1]]), True, state)
    assert state["min_var"] is low
    assert low.tolist() == [-4, -2, -3]


def test_initial_states() -> None:
    for name, limit in (
        ("LastValueQuantizer", 6),
        ("MovingAverageQuantizer", 6),
        ("AllValuesQuantizer", 0),
    ):
        state = getattr(qmath, name)(8, False, False, False).build((3, 4))
        assert (state["min_var"], state["max_var"]) == (-limit, limit)
        assert state["min_var"].dtype == np.float32
    assert qmath.LastValueQuantizer(8, True, True, True).build((3, None))["min_var"].shape == ()


def test_fixed_quantizer_ignores_num_bits_and_says_so() -> None:
    quantizer = qmath.FixedQuantizer(4, -1.0, 1.0, False)
    assert quantizer.get_config()["num_bits"] == 4
    assert len(np.unique(quantizer(np.linspace(-2, 2, 1000)))) > 200
    with pytest.warns(QmathWarning, match="FixedQuantizer ignores num_bits"):
        assert quantizer.quantize([0.5]).num_bits == 8


def test_all_values_ignores_per_axis() -> None:
    quantizer = qmath.AllValuesQuantizer(8, True, False, False)
    state = quantizer.build((2, 3))
    quantizer(np.float32([[1, 2, 3]]), True, state)
    assert state["max_var"].shape == ()
    assert quantizer.quantize([[1.0, 2.0, 3.0]], state).axis is None


def test_refusals() -> None:
    quantizer = qmath.LastValueQuantizer(4, False, True, True)
    with pytest.raises(QmathError, match=r"needs min_var and max_var, got \['min_var'\]"):
        quantizer([1.0], False, {"min_var": np.float32(0)})
    per_axis = qmath.LastValueQuantizer(4, True, True, True)
    with pytest.raises(
        QmathError, match=r"cannot store a range of shape \(4,\) in min_var of shape \(3,\)"
    ):
        per_axis(np.ones((2, 4), np.float32), True, per_axis.build((2, 3)))
    with pytest.raises(QmathError, match="known last dimension"):
        qmath.Default8BitConvWeightsQuantizer().build(())
    with pytest.raises(QmathError, match="between 2 and 16"):
        qmath.LastValueQuantizer(99, False, True, True)([1.0], False, quantizer.build())


def test_quantizers_compare_by_kind_and_settings() -> None:
    a = qmath.LastValueQuantizer(4, False, True, True)
    assert a == qmath.LastValueQuantizer(4, False, True, True)
    assert a != qmath.MovingAverageQuantizer(4, False, True, True)
    assert a != "LastValueQuantizer"
    assert qmath.NoQuantizer() == qmath.NoQuantizer.from_config({})
    assert (
        repr(a)
        == "LastValueQuantizer(num_bits=4, per_axis=False, symmetric=True, narrow_range=True)"
    )
    with pytest.raises(TypeError):
        hash(a)


@pytest.mark.parametrize("name", ["LastValueQuantizer", "MovingAverageQuantizer"])
@pytest.mark.parametrize("state", [None, 3, [], {"min_var": np.float32(0)}])
def test_what_is_no_state_is_refused(name: str, state: object) -> None:
    quantizer = getattr(qmath, name)(4, False, True, True)
    for training in (False, True):
        with pytest.raises(QmathError, match="state needs min_var and max_var, got"):
            quantizer([0.5], training, state)
    with pytest.raises(QmathError, match="state needs min_var and max_var, got"):
        quantizer.quantize([0.5], state)


@pytest.mark.parametrize("end", [-1.0, np.float64(-1), np.array(-1.0), np.array(-1), [-1.0]])
def test_training_needs_a_state_to_update(end: object) -> None:
    quantizer = qmath.LastValueQuantizer(4, False, True, True)
    with pytest.raises(QmathError, match="min_var must be a float32 array"):
        quantizer([0.5], True, {"min_var": end, "max_var": np.float32(1)})


def test_a_signalling_nan_is_as_quiet_as_any() -> None:
    quantizer = qmath.LastValueQuantizer(8, False, True, False)
    state = quantizer.build()
    inputs = np.full(3, 0x7F800001, np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer(inputs, True, state)
    assert np.isnan(state["min_var"])


@pytest.mark.parametrize(
    "quantizer",
    [
        qmath.Default8BitConvWeightsQuantizer(),
        qmath.Default8BitConvTransposeWeightsQuantizer(),
        qmath.DefaultNBitConvWeightsQuantizer(4),
        qmath.DefaultNBitConvTransposeWeightsQuantizer(4),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_the_defaults_are_made_of_their_own_config_alone(quantizer: qmath.Quantizer) -> None:
    config = quantizer.get_config()
    assert type(quantizer).from_config(config) == quantizer
    with pytest.raises(QmathError, match="does not have the settings"):
        type(quantizer).from_config({**config, "narrow_range": False})


def test_ranks_that_tfmot_cannot_train_are_refused() -> None:
    per_axis = qmath.LastValueQuantizer(4, True, True, True)
    with pytest.raises(QmathError, match="cannot train on inputs of rank 3"):
        per_axis(np.ones((2, 3, 4), np.float32), True, per_axis.build((2, 3, 4)))
    transposed = qmath.Default8BitConvTransposeWeightsQuantizer()
    with pytest.raises(QmathError, match="has rank 4, got rank 2"):
        transposed(np.ones((2, 3), np.float32), True, transposed.build((2, 3)))


def test_a_moving_average_per_axis_is_refused() -> None:
    quantizer = qmath.MovingAverageQuantizer(4, True, False, False)
    with pytest.raises(QmathError, match="cannot run: TFMOT's build ignores per_axis"):
        quantizer(np.ones((2, 3), np.float32), True, quantizer.build((2, 3)))


def test_a_fixed_quantizer_of_8_bits_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert qmath.FixedQuantizer(8, -1.0, 1.0, False).quantize([0.5]).num_bits == 8
