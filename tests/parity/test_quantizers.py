"""TFMOT's quantizers over sequences of training and inference steps, in every bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import qmath
from qmath.errors import QmathError
from reference import oracle
from tests.helpers import assert_same_bits, assert_same_state
from tests.strategies import any_float32, widths

batches = st.one_of(
    st.floats(-4, 4, width=32),
    st.floats(0, 6, width=32),
    st.floats(-(2.0**-123), 2.0**-123, width=32),
    any_float32,
)
ranged = st.sampled_from(["LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer"])


class TrainingRun(RuleBasedStateMachine):
    """Steps on qmath's quantizer and on TFMOT's, whose outputs and states must stay equal."""

    @initialize(
        name=ranged,
        num_bits=widths,
        per_axis=st.booleans(),
        symmetric=st.booleans(),
        narrow_range=st.booleans(),
        channels=st.integers(1, 3),
    )
    def build(self, name: str, channels: int, per_axis: bool, **config: object) -> None:
        config["per_axis"] = per_axis and name != "MovingAverageQuantizer"
        self.shape = (4, channels)
        self.quantizer = getattr(qmath, name)(**config)
        self.twin = getattr(oracle, name)(**config)
        self.state = self.quantizer.build(self.shape)
        self.twin_state = self.twin.build(self.shape)

    @rule(training=st.booleans(), data=st.data())
    def step(self, training: bool, data: st.DataObject) -> None:
        elements = data.draw(st.sampled_from([batches, st.floats(-2, 2, width=32)]))
        x = data.draw(hnp.arrays(np.float32, self.shape, elements=elements))
        output = self.quantizer(x, training, self.state)
        assert_same_bits(output, self.twin(x, training, self.twin_state), (self.quantizer, x))

    @rule(data=st.data())
    def quantize(self, data: st.DataObject) -> None:
        x = data.draw(hnp.arrays(np.float32, self.shape, elements=st.floats(-8, 8, width=32)))
        try:
            q = self.quantizer.quantize(x, self.state)
        except QmathError:
            return
        assert_same_bits(q.dequantize(), self.twin(x, False, self.twin_state), (self.quantizer, x))

    @invariant()
    def states_are_equal(self) -> None:
        if hasattr(self, "state"):
            assert_same_state(self.state, self.twin_state)


TestTrainingRun = TrainingRun.TestCase
TestTrainingRun.settings = settings(  # each example is a run of many steps
    max_examples=settings().max_examples * 3 // 10, stateful_step_count=15
)


@pytest.mark.parametrize(
    ("quantizer", "shape"),
    [
        (qmath.LastValueQuantizer(4, True, True, False), (3, 3, 2, 5)),
        (qmath.LastValueQuantizer(5, True, False, True), (7, 3)),
        (qmath.LastValueQuantizer(3, True, True, True), (6,)),
        (qmath.LastValueQuantizer(4, False, True, False), (2, 3, 4, 5, 6)),
        (qmath.MovingAverageQuantizer(4, False, False, False), (2, 8, 8, 3)),
        (qmath.AllValuesQuantizer(8, True, True, False), (4, 10)),
        (qmath.FixedQuantizer(4, -1.5, 2.0, True), (4, 10)),
        (qmath.NoQuantizer(), (4, 10)),
        (qmath.Default8BitConvWeightsQuantizer(), (3, 3, 2, 5)),
        (qmath.Default8BitConvWeightsQuantizer(), (3, 3, 5, 1)),
        (qmath.Default8BitConvTransposeWeightsQuantizer(), (3, 3, 2, 5)),
        (qmath.DefaultNBitConvWeightsQuantizer(4, 8), (3, 3, 2, 5)),
        (qmath.DefaultNBitConvTransposeWeightsQuantizer(3, 8), (3, 3, 2, 5)),
    ],
    ids=lambda value: value if isinstance(value, tuple) else type(value).__name__,
)
def test_runs_of_every_quantizer(
    quantizer: qmath.LastValueQuantizer, shape: tuple[int, ...]
) -> None:
    twin = oracle.twin(quantizer)
    state, twin_state = quantizer.build(shape), twin.build(shape)
    assert_same_state(state, twin_state)
    rng = np.random.default_rng(5)
    for step in range(40):
        x = (rng.normal(size=shape) * rng.uniform(0.1, 5)).astype(np.float32)
        training = step % 3 > 0
        assert_same_bits(quantizer(x, training, state), twin(x, training, twin_state), step)
        assert_same_state(state, twin_state)
        if not isinstance(quantizer, qmath.NoQuantizer):
            fresh = (
                quantizer.quantize(x, state)
                if state
                else qmath.FixedQuantizer(8, -1.5, 2.0, True).quantize(x)
            )
            assert_same_bits(fresh.dequantize(), twin(x, False, twin_state), step)


def test_an_empty_batch() -> None:
    for symmetric in (False, True):
        for name in ("LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer"):
            quantizer = getattr(qmath, name)(4, False, symmetric, True)
            twin = oracle.twin(quantizer)
            state, twin_state = quantizer.build((0, 3)), twin.build((0, 3))
            empty = np.zeros((0, 3), np.float32)
            assert_same_bits(quantizer(empty, True, state), twin(empty, True, twin_state))
            assert_same_state(state, twin_state)


@pytest.mark.parametrize("rank", [3, 5])
def test_per_axis_ranks_that_tfmot_cannot_train(rank: int) -> None:
    quantizer = qmath.LastValueQuantizer(4, True, True, True)
    x = np.ones((2,) * rank, np.float32)
    state = quantizer.build(x.shape)
    with pytest.raises(UnboundLocalError):
        oracle.twin(quantizer)(x, True, {k: v.copy() for k, v in state.items()})
    with pytest.raises(QmathError, match=f"rank {rank}: TFMOT knows the axes of ranks 2 and 4"):
        quantizer(x, True, state)
    assert_same_bits(quantizer(x, False, state), oracle.twin(quantizer)(x, False, state))


def test_moving_averages_per_axis_fail_in_tfmot_too() -> None:
    quantizer = qmath.MovingAverageQuantizer(4, True, False, False)
    twin, x = oracle.twin(quantizer), np.ones((2, 3), np.float32)
    assert quantizer.build(x.shape)["min_var"].shape == twin.build(x.shape)["min_var"].shape == ()
    for training in (False, True):
        with pytest.raises((AssertionError, oracle.tf.errors.InvalidArgumentError, ValueError)):
            twin(x, training, twin.build(x.shape))
        with pytest.raises(QmathError, match="build ignores per_axis"):
            quantizer(x, training, quantizer.build(x.shape))


def test_conv_transpose_quantizers_refuse_other_ranks() -> None:
    quantizer = qmath.Default8BitConvTransposeWeightsQuantizer()
    x = np.ones((2, 3), np.float32)
    with pytest.raises(oracle.tf.errors.InvalidArgumentError):
        oracle.twin(quantizer)(x, False, quantizer.build(x.shape))
    with pytest.raises(QmathError, match="rank 4, got rank 2"):
        quantizer(x, False, quantizer.build(x.shape))


@pytest.mark.slow
@given(
    widths,
    hnp.arrays(np.float32, (5,), elements=st.floats(-100, 100, width=32)),
    st.booleans(),
    st.booleans(),
)
def test_the_state_under_tf_function(
    num_bits: int, x: np.ndarray, symmetric: bool, narrow_range: bool
) -> None:
    """Grappler multiplies by the ratio's reciprocal: one ulp, for symmetric wide ranges only."""
    quantizer = qmath.LastValueQuantizer(num_bits, False, symmetric, narrow_range)
    twin = oracle.twin(quantizer)
    state, graph_state = quantizer.build(), twin.build(())
    quantizer(x, True, state)
    twin(x, True, graph_state, graph=True)
    if not symmetric or narrow_range:
        assert_same_state(state, graph_state)
        return
    reciprocal = np.float32(1 / np.float32(-((1 << num_bits) - 2) / (1 << num_bits)))
    expected = {
        "min_var": np.minimum(x.min(), np.float32(x.max() * reciprocal)),
        "max_var": state["max_var"],
    }
    if np.abs(x[x != 0]).min(initial=1) > 1e-30:
        assert_same_state(graph_state, expected)
        assert abs(graph_state["min_var"] - state["min_var"]) <= np.spacing(abs(state["min_var"]))


def test_the_ulp_under_tf_function_is_real() -> None:
    quantizer = qmath.LastValueQuantizer(4, False, True, False)
    twin, different = oracle.twin(quantizer), 0
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = rng.normal(size=3).astype(np.float32)
        eager, graph = twin.build(()), twin.build(())
        twin(x, True, eager)
        twin(x, True, graph, graph=True)
        different += int(eager["min_var"] != graph["min_var"])
    assert different


@pytest.mark.parametrize(
    "name", ["LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer"]
)
def test_config_and_equality(name: str) -> None:
    ours, theirs = (
        getattr(qmath, name)(4, False, True, False),
        getattr(oracle, name)(4, False, True, False),
    )
    assert ours.get_config() == theirs.get_config()
    assert type(ours).from_config(ours.get_config()) == ours
    assert ours != getattr(qmath, name)(5, False, True, False)


def test_conv_quantizers_survive_their_config() -> None:
    for ours in (
        qmath.Default8BitConvWeightsQuantizer(),
        qmath.Default8BitConvTransposeWeightsQuantizer(),
        qmath.DefaultNBitConvWeightsQuantizer(5, 7),
        qmath.DefaultNBitConvTransposeWeightsQuantizer(5),
    ):
        twin = oracle.twin(ours)
        config = ours.get_config()
        assert config == twin.get_config()
        with pytest.raises(TypeError):
            twin.tfmot_class.from_config(config)
        assert type(ours).from_config(config) == ours
        last_value = qmath.LastValueQuantizer(**config)
        assert ours == last_value
        assert last_value == ours
        assert twin.tfmot == oracle.LastValueQuantizer(**config).tfmot
        with pytest.raises(QmathError, match="does not have the settings"):
            type(ours).from_config({**config, "symmetric": False})
