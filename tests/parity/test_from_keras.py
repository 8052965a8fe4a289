"""`from_keras` against the live quantizers of models that TFMOT does not foresee."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

import qmath
from qmath.model import assumed_tensors, own_quantized
from qmath.quantizers import FixedScaleQuantizer, PowerOfTwoQuantizer
from qmath.readers.keras.live import from_keras
from qmath.readers.notes import GET_CONFIG
from qmath.readers.records import ASKED
from tests.helpers import assert_same_bits

KERAS = tfmot.quantization.keras
T = KERAS.quantizers


class Config(KERAS.QuantizeConfig):
    """Quantizes a kernel, an activation and an output as its subclasses say."""

    weights: Any = None
    activation: Any = None
    output: Any = None
    sets_activation = True

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return [(layer.kernel, self.weights())] if self.weights else []

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        return [(layer.activation, self.activation())] if self.activation else []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        if quantize_weights:
            layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        if quantize_activations and self.sets_activation:
            layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        return [self.output()] if self.output else []

    def get_config(self) -> dict[str, Any]:
        return {}


def build(**members: Any) -> Any:
    """Return a trained model of two Dense layers under one config."""
    config = type("MyConfig", (Config,), {k: _method(k, v) for k, v in members.items()})
    keras.utils.set_random_seed(0)
    with KERAS.quantize_scope({"MyConfig": config}):
        model = KERAS.quantize_apply(
            keras.Sequential(
                [keras.Input((12,))]
                + [
                    KERAS.quantize_annotate_layer(
                        keras.layers.Dense(units, activation="relu", name=name), config()
                    )
                    for name, units in (("d1", 8), ("d2", 4))
                ]
            )
        )
    x = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)
    for _ in range(3):
        model(x, training=True)
    return model, x


def _method(name: str, member: Any) -> Any:
    return staticmethod(member) if name in ("weights", "activation", "output") else member


def last(num_bits: int = 8, per_axis: bool = False) -> Any:
    return T.LastValueQuantizer(num_bits, per_axis=per_axis, symmetric=True, narrow_range=False)


def average() -> Any:
    return T.MovingAverageQuantizer(8, per_axis=False, symmetric=False, narrow_range=False)


def fixed() -> Any:
    return T.FixedQuantizer(num_bits=8, init_min=0.0, init_max=4.0, narrow_range=False)


class Snapped(T.LastValueQuantizer):
    """Snaps its range to a power of two when it is used."""

    def __init__(self, num_bits: int = 8) -> None:
        super().__init__(num_bits, per_axis=False, symmetric=True, narrow_range=False)

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:
        if training:
            super().__call__(inputs, training, weights, **kwargs)
        end = 2.0 ** tf.math.ceil(tf.math.log(-weights["min_var"]) / tf.math.log(2.0))
        ratio = 1 - 2.0 ** (1 - self.num_bits)
        return tf.quantization.fake_quant_with_min_max_vars(
            inputs, -end, end * ratio, self.num_bits
        )


class Stateless(T.Quantizer):
    """A function of the values alone."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        return self.function(inputs)

    def get_config(self) -> dict[str, Any]:
        return {}


class Lsq(T.Quantizer):
    """Learns its scale, as LSQ does."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:  # noqa: ARG002
        start = keras.initializers.Constant(0.03)
        return {"scale": layer.add_weight(name + "_scale", (), initializer=start)}

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        scale = weights["scale"]
        return tf.clip_by_value(tf.round(inputs / scale), -8.0, 7.0) * scale

    def get_config(self) -> dict[str, Any]:
        return {}


def rounded(x: Any) -> Any:
    return tf.clip_by_value(tf.round(x * 64.0), -128.0, 127.0) / 64.0


def constant_range(x: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        x, -np.float32([0.1, 0.2, 0.3, 0.5][: x.shape[-1]] * 2)[: x.shape[-1]],
        np.float32([0.1, 0.2, 0.3, 0.5][: x.shape[-1]] * 2)[: x.shape[-1]], 5, narrow_range=True,
    )  # fmt: skip


def ternary(x: Any) -> Any:
    return tf.sign(x) * tf.cast(tf.abs(x) > 0.1, tf.float32) * tf.reduce_mean(tf.abs(x))


WEIGHTS = {
    "snapped": Snapped,
    "lsq": Lsq,
    "fixed scale": lambda: Stateless(rounded),
    "constant range per channel": lambda: Stateless(constant_range),
    "ternary": lambda: Stateless(ternary),
    "FixedQuantizer": lambda: T.FixedQuantizer(8, -0.5, 0.5, False),
    "LastValueQuantizer": last,
}


def assert_kernels_agree(model: Any, live: qmath.QatModel) -> None:
    for name in ("d1", "d2"):
        variable, quantizer, state = model.get_layer(f"quant_{name}")._weight_vars[0]
        expected = quantizer(variable, False, weights=state).numpy() + np.float32(0)
        found = live.tensors[f"{name}/kernel"]
        assert_same_bits(found.quantize().dequantize() + np.float32(0), expected, name)
        assert found.spec.quantizer == type(quantizer).__name__


@pytest.mark.parametrize("name", WEIGHTS)
def test_kernels_are_those_of_the_forward_pass(name: str, tmp_path: Path) -> None:
    model, _ = build(weights=WEIGHTS[name], activation=average)
    live = from_keras(model)
    assert_kernels_agree(model, live)
    bundle = qmath.export(live, tmp_path / "model.npz")
    assert qmath.verify(live, tmp_path / "model.npz").ok
    assert_same_bits(
        bundle.tensors["d1/kernel"].dequantize(), live.tensors["d1/kernel"].quantize().dequantize()
    )


@pytest.mark.parametrize("per_axis", [False, True])
def test_a_build_is_what_xla_makes_of_a_live_quantizer(per_axis: bool) -> None:
    model, _ = build(weights=lambda: last(8, per_axis), activation=average)
    variable, quantizer, state = model.get_layer("quant_d1")._weight_vars[0]
    for end, value in (("min_var", -6.0), ("max_var", 6.0)):  # whose zero lies between integers
        state[end].assign(np.full(state[end].shape, value, np.float32))

    def call() -> Any:
        return quantizer(variable, False, weights=state)

    for name, zero, expected in (
        ("tf", 0, call()),
        ("xla-cpu", -1, tf.function(call, jit_compile=True)()),
    ):
        live = from_keras(model, build=name)
        found = live.tensors["d1/kernel"]
        assert live.build == found.spec.build == name
        assert found.spec.quantizer == "LastValueQuantizer"
        q = found.quantize()
        assert q.zero_point.min() == q.zero_point.max() == zero
        np.testing.assert_allclose(q.dequantize(), expected, atol=1e-5)  # a step is 0.047


def test_an_old_tensorflow_is_asked_as_the_build_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build(weights=last)

    def old(_: Any, inputs: Any, training: bool, weights: Any, **__: Any) -> Any:
        assert not training
        ends = weights["min_var"].numpy(), weights["max_var"].numpy()
        x = np.asarray(inputs, np.float32)
        return tf.constant(qmath.fake_quant_with_min_max_vars(x, *ends, build="tf<2.6"))

    monkeypatch.setattr(T.LastValueQuantizer, "__call__", old)
    found = from_keras(model, build="tf<2.6").tensors["d1/kernel"]
    assert found.recovered is None
    assert set(found.provenance.values()) == {ASKED}


def test_what_a_build_leaves_open_is_a_note() -> None:
    model, _ = build(weights=lambda: Stateless(rounded))
    assert any("recovered from" in note for note in from_keras(model, build="xla-cpu").notes)
    assert not any("eagerly" in note for note in from_keras(model).notes)
    model.compile(jit_compile=True)
    assert any("XLA compiles this" in note for note in from_keras(model).notes)
    assert not any("XLA compiles" in note for note in from_keras(model, build="xla-cpu").notes)
    with pytest.raises(qmath.QmathError, match="build must be one of 'tf'"):
        from_keras(model, build="xla")


def test_a_formula_that_rounds_twice_is_refused_by_name() -> None:
    def dorefa(x: Any) -> Any:
        x = tf.tanh(x) / (2 * tf.reduce_max(tf.abs(tf.tanh(x)))) + 0.5
        return 2 * (tf.round(x * 7.0) / 7.0) - 1

    model, _ = build(weights=lambda: Stateless(dorefa))
    with pytest.raises(qmath.QmathError, match=r"d1/kernel: .*It is a Stateless of your own"):
        from_keras(model)


ACTIVATIONS = {
    "FixedQuantizer": fixed,
    "snapped": lambda: Snapped(6),
    "own": lambda: Stateless(lambda x: tf.quantization.fake_quant_with_min_max_args(x, -2, 2, 4)),
    "identity": lambda: Stateless(tf.identity),
    "MovingAverageQuantizer": average,
}


@pytest.mark.parametrize("place", ["activation", "output"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_the_forward_pass(name: str, place: str) -> None:
    model, x = build(weights=last, **{place: ACTIVATIONS[name]})
    live = from_keras(model)
    tensor = live.tensors.get("d2/output" if place == "output" else "d2/post_activation")
    assert (tensor is None) == (name == "identity")
    result = next(iter(qmath.run(live, x, profile="exact").outputs.values()))
    step = 1e-5 if tensor is None else float((tensor.max - tensor.min) / 2**tensor.spec.num_bits)
    assert np.abs(result - model(x, training=False).numpy()).max() <= 1.01 * step


def test_activation_quantizers_that_compute_otherwise_are_refused_by_name() -> None:
    model, _ = build(weights=last, activation=lambda: Stateless(tf.tanh))
    with pytest.raises(qmath.QmathError, match="d1/post_activation: its Stateless computes"):
        from_keras(model)


def test_activations_that_are_never_quantized_are_not_executed() -> None:
    model, x = build(weights=last, activation=average, sets_activation=False)
    live = from_keras(model)
    assert [name for name, tensor in live.tensors.items() if tensor.role == "activation"] == []
    assert any("Never called: the quantizers of d1/post_activation" in n for n in live.notes)
    result = next(iter(qmath.run(live, x, profile="exact").outputs.values()))
    np.testing.assert_allclose(result, model(x, training=False).numpy(), atol=1e-5)


def test_asking_changes_no_state() -> None:
    model, _ = build(weights=last, activation=average, output=average)
    before = [value.copy() for value in model.get_weights()]
    from_keras(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert old.tobytes() == new.tobytes()


@pytest.mark.parametrize("kind", ["h5", "saved_model", "checkpoint"])
def test_files_show_activations_that_are_never_quantized(kind: str, tmp_path: Path) -> None:
    for sets_activation in (False, True):
        model, _ = build(weights=last, activation=average, sets_activation=sets_activation)
        path = tmp_path / f"{sets_activation}.{kind}"
        architecture = None
        if kind == "checkpoint":
            tf.train.Checkpoint(model=model).write(str(path))
            architecture = tmp_path / "config.json"
            architecture.write_text(model.to_json())
        else:
            model.save(path, save_format="h5" if kind == "h5" else "tf")
        loaded = qmath.load(path, architecture=architecture)
        live = from_keras(model)
        assert list(loaded.tensors) == list(live.tensors)
        assert any("Never called" in note for note in live.notes) != sets_activation
        unread = "Never called" if kind != "saved_model" else "no op of the graph that serves reads"
        assert any(unread in note for note in loaded.notes) != sets_activation


class Bits(T.MovingAverageQuantizer):
    """A class of the user's own, which the file names."""

    @classmethod
    def of(cls) -> Any:
        return cls(8, per_axis=False, symmetric=False, narrow_range=False)


def pasted(**quantizers: Any) -> Any:
    """Return a model whose config has the line of the note."""
    namespace: dict[str, Any] = {}
    exec(GET_CONFIG, {}, namespace)
    return build(**quantizers, **namespace)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_pasted_config_tells_the_next_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    model, x = build(weights=last, activation=average, output=average)
    model.save(path)
    quantized = ("kernel", "post_activation", "output")
    names = {f"{layer}/{name}" for layer in ("d1", "d2") for name in quantized}
    assert set(assumed_tensors(qmath.load(path))) == names

    model, x = pasted(weights=last, activation=average, output=average)
    model.save(path)
    loaded = qmath.load(path)
    assert not assumed_tensors(loaded)
    live = from_keras(model)
    for name in names:
        assert loaded.tensors[name].spec == live.tensors[name].spec
    if suffix == "h5":  # Keras cannot load TFMOT's QuantizeLayer from the other
        config = type(model.get_layer("quant_d1").quantize_config)
        with KERAS.quantize_scope({"MyConfig": config}):
            again = keras.models.load_model(path)
        np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    qmath.export(path, tmp_path / "model.npz", strict=True)

    model, _ = pasted(weights=last, activation=average, output=Bits.of)
    model.save(path)
    assert set(assumed_tensors(qmath.load(path))) == {"d1/output", "d2/output"}


@pytest.mark.parametrize("kind", ["h5", "checkpoint"])
@pytest.mark.parametrize("name", ["lsq", "fixed scale", "ternary"])
@pytest.mark.parametrize("activation", [None, average])
def test_weights_without_a_range_are_named_in_files(
    name: str, kind: str, activation: Any, tmp_path: Path
) -> None:
    model, _ = build(weights=WEIGHTS[name], activation=activation)
    assert own_quantized(saved(model, kind, tmp_path)) == ("d1/kernel", "d2/kernel")


def test_checkpoints_show_what_is_not_quantized(tmp_path: Path) -> None:
    model, _ = build(activation=average)
    assert not own_quantized(saved(model, "checkpoint", tmp_path))
    model.save(tmp_path / "model.keras")
    told = {"MyConfig.activation": qmath.MovingAverageQuantizer(8, False, False, False)}
    assert not own_quantized(qmath.load(tmp_path / "model.keras", told))


def saved(model: Any, kind: str, folder: Path) -> qmath.QatModel:
    if kind == "h5":
        model.save(folder / "model.h5")
        return qmath.load(folder / "model.h5")
    tf.train.Checkpoint(model=model).write(str(folder / "checkpoint"))
    (folder / "config.json").write_text(model.to_json())
    return qmath.load(folder / "checkpoint", architecture=folder / "config.json")


@pytest.mark.parametrize("place", ["activation", "output"])
def test_a_fixed_quantizer_that_the_user_tells_runs_as_in_training(
    place: str, tmp_path: Path
) -> None:
    model, x = build(weights=last, **{place: fixed})
    model.save(tmp_path / "model.h5")
    told = {f"MyConfig.{place}": qmath.FixedQuantizer(8, 0.0, 4.0, False)}
    loaded, live = qmath.load(tmp_path / "model.h5", told), from_keras(model)
    assert list(loaded.tensors) == list(live.tensors)
    for name, tensor in live.tensors.items():
        assert (tensor.min, tensor.max) == (loaded.tensors[name].min, loaded.tensors[name].max)
    result = next(iter(qmath.run(loaded, x, profile="exact").outputs.values()))
    step = 4 / 255
    assert np.abs(result - model(x, training=False).numpy()).max() <= 1.01 * step


DESCRIBED = {
    "snapped": PowerOfTwoQuantizer(8),
    "lsq": FixedScaleQuantizer("kernel_scale", num_bits=4),
    "fixed scale": FixedScaleQuantizer(1 / 64, num_bits=8),
}


@pytest.mark.parametrize("kind", ["h5", "checkpoint"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_what_the_user_describes_is_what_training_used(
    name: str, kind: str, tmp_path: Path
) -> None:
    model, _ = build(weights=WEIGHTS[name])
    bare = saved(model, kind, tmp_path)
    source = tmp_path / ("model.h5" if kind == "h5" else "checkpoint")
    architecture = None if kind == "h5" else tmp_path / "config.json"
    loaded = qmath.load(source, {"MyConfig.weights": DESCRIBED[name]}, architecture=architecture)
    assert assumed_tensors(bare) or own_quantized(bare)
    assert not assumed_tensors(loaded)
    assert not own_quantized(loaded)
    for layer in ("d1", "d2"):
        variable, quantizer, state = model.get_layer(f"quant_{layer}")._weight_vars[0]
        expected = quantizer(variable, False, weights=state).numpy() + np.float32(0)
        found = loaded.tensors[f"{layer}/kernel"].quantize().dequantize()
        assert_same_bits(found + np.float32(0), expected, layer)


def test_a_config_that_keras_cannot_write_is_named_with_its_error() -> None:
    # An op of TensorFlow's has a signature, which Keras does not serialize.
    layers = [keras.layers.Dense(2), keras.layers.Lambda(tf.abs)]
    model = from_keras(keras.Sequential([keras.Input((3,)), *layers]))
    (note,) = (note for note in model.notes if "order of the layers" in note)
    assert "get_config() of a layer, or of the model, raises TypeError" in note
    assert "no Sequential or Functional" not in note
