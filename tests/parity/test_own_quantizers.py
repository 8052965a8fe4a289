"""SavedModels of quantizers as users write them: tensors are what TensorFlow's layers compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import models  # before TensorFlow: it sets the environment

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import qmath

keras = tf.keras
quantizers = tfmot.quantization.keras.quantizers
F = np.float32
NO_RANGE = "quantized by its own config"

# ---- what a user's __call__ computes of the inputs and of min_var and max_var


def power_of_two(x: Any, low: Any, _: Any) -> Any:
    end = 2.0 ** tf.math.ceil(tf.math.log(-low) / tf.math.log(2.0))
    return tf.quantization.fake_quant_with_min_max_vars(x, -end, end * 127 / 128)


def half_range(x: Any, low: Any, high: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_vars(x, low * 0.5, high * 0.5, 6)


def constant_range(x: Any, *_: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_vars(x, -1.0, 1.0, num_bits=3)


def per_channel(x: Any, *_: Any) -> Any:
    ends = tf.constant([0.25 + 0.125 * i for i in range(x.shape[-1])])
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(x, -ends, ends, 4)


def from_the_weights(x: Any, *_: Any) -> Any:
    end = tf.reduce_max(tf.abs(x))
    return tf.quantization.fake_quant_with_min_max_vars(x, -end, end, 5)


def from_the_channels(x: Any, *_: Any) -> Any:
    end = tf.reduce_max(tf.abs(x), axis=list(range(len(x.shape) - 1)))
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(x, -end, end, 5, True)


def args(x: Any, *_: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_args(x, -0.75, 0.75, num_bits=5)


def learned_step(x: Any, low: Any, _: Any) -> Any:
    scale = -low / 7.3
    return tf.round(tf.clip_by_value(x / scale, -8.0, 7.0)) * scale


def floor_and_half(x: Any, *_: Any) -> Any:
    return tf.floor(x * 16.0 + 0.5) / 16.0


def per_channel_step(x: Any, *_: Any) -> Any:
    scale = tf.reduce_max(tf.abs(x), axis=list(range(len(x.shape) - 1)), keepdims=True) / 7.0
    return tf.round(x / scale) * scale


def where(x: Any, *_: Any) -> Any:
    return tf.where(x > 0.1, 0.25, tf.where(x < -0.1, -0.25, 0.0))


def and_dequantize(x: Any, low: Any, high: Any) -> Any:
    return tf.quantization.quantize_and_dequantize_v2(x, low, high, num_bits=5, range_given=True)


def and_dequantize_data(x: Any, low: Any, high: Any) -> Any:
    return tf.quantization.quantize_and_dequantize_v2(x, low, high, num_bits=4)


def and_dequantize_v3(x: Any, low: Any, high: Any) -> Any:
    return tf.raw_ops.QuantizeAndDequantizeV3(
        input=x, input_min=low, input_max=high, num_bits=6, range_given=True
    )


def centered(x: Any, low: Any, high: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_vars(x - tf.reduce_mean(x), low, high)


def symbolic(x: Any, low: Any, high: Any) -> Any:
    """Choose by a tensor, as a model does whose learning phase is an input of its functions."""
    end = tf.where(tf.abs(low) > high, tf.abs(low), high)
    return tf.quantization.fake_quant_with_min_max_vars(x, -end, end, 7)


def dorefa(x: Any, *_: Any) -> Any:
    squeezed = tf.tanh(x)
    unit = squeezed / (2 * tf.reduce_max(tf.abs(squeezed))) + 0.5
    return 2 * (tf.round(unit * 15.0) / 15.0) - 1


def clip(x: Any, *_: Any) -> Any:
    return tf.clip_by_value(x, -0.2, 0.2)


RIGHT = (power_of_two, half_range, constant_range, per_channel, from_the_weights,
         from_the_channels, args, learned_step, floor_and_half, per_channel_step, and_dequantize,
         and_dequantize_data, and_dequantize_v3, centered, symbolic)  # fmt: skip
NAMED = (where, dorefa, clip)


class Own(quantizers.LastValueQuantizer):
    """TFMOT's quantizer of weights, but for what it computes."""

    computes: Callable[..., Any]

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=True, narrow_range=False)

    def __call__(self, inputs: Any, training: Any, weights: Any, **options: Any) -> Any:
        if training:
            super().__call__(inputs, training, weights, **options)
        return type(self).computes(inputs, weights["min_var"], weights["max_var"])

    def get_config(self) -> dict[str, Any]:
        return {}


class OwnConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes the kernel, the activation, or both."""

    weight: Callable[[], Any] | None = None
    activation: Callable[[], Any] | None = None

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return [(layer.kernel, type(self).weight())] if type(self).weight else []

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        return [(layer.activation, type(self).activation())] if type(self).activation else []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        for weight in quantize_weights:
            layer.kernel = weight

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        for activation in quantize_activations:
            layer.activation = activation

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        return []

    def get_config(self) -> dict[str, Any]:
        return {}


def own(computes: Callable[..., Any]) -> Callable[[], Any]:
    return type("Own", (Own,), {"computes": staticmethod(computes)})


def last_value() -> Any:
    return quantizers.LastValueQuantizer(8, False, True, False)


def moving_average() -> Any:
    return quantizers.MovingAverageQuantizer(8, False, False, False)


def build(weight: Any, activation: Any) -> Any:
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    config = type("Config", (OwnConfig,), {"weight": weight, "activation": activation})
    keras.utils.get_custom_objects()["Config"] = config
    dense = keras.layers.Dense(5, activation="relu", name="d")
    conv = keras.layers.Conv1D(4, 3, activation="relu", name="c")
    parts = [models.annotate(conv, config()), keras.layers.Flatten(name="f"),
             models.annotate(dense, config())]  # fmt: skip
    model = models.by_annotation(keras.Sequential([keras.Input((8, 3), name="x"), *parts]))
    for seed in range(3):
        model(models.images((8, 3), 20, seed), training=True)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Return what writes a model as a SavedModel, with its config, and exported without."""

    def write(model: Any) -> list[Path]:
        folder = tmp_path_factory.mktemp("saved")
        model.save(str(folder / "keras"), save_format="tf", include_optimizer=False)
        model.export(str(folder / "exported"))
        return [folder / "keras", folder / "exported"]

    return write


def kernels(model: Any) -> dict[str, Any]:
    """What the layers of a live model compute with."""
    found = {}
    for name in ("c", "d"):
        layer = model.get_layer(f"quant_{name}")
        ((variable, quantizer, ranges),) = layer._weight_vars
        found[f"{name}/kernel"] = quantizer(variable, False, weights=ranges).numpy()
    return found


def reconstructed(tensor: Any) -> Any:
    q = tensor.quantize()
    return (q.values.astype(np.int32) - q.zero_point).astype(F) * q.scale


@pytest.mark.parametrize("computes", RIGHT, ids=lambda f: f.__name__)
def test_weights(saved: Callable[..., list[Path]], tmp_path: Path, computes: Any) -> None:
    model = build(own(computes), moving_average)
    data = models.images((8, 3), 20, 1)
    expected = model(data, training=False).numpy()
    for path in saved(model):
        loaded = qmath.load(path)
        for name, kernel in kernels(model).items():
            tensor = loaded.tensors[name]
            assert tensor.role == "weight"
            assert tensor.spec.is_complete
            # -0.0 is what an integer cannot tell from 0.0.
            np.testing.assert_array_equal(reconstructed(tensor), kernel, name)
        assert not [note for note in loaded.notes if NO_RANGE in note]
        output = tmp_path / f"{path.name}.npz"
        qmath.export(loaded, output)
        assert qmath.verify(path, output).ok
        if loaded.graph is not None:
            (found,) = qmath.run(loaded, data, profile="exact").outputs.values()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("computes", NAMED, ids=lambda f: f.__name__)
def test_weights_that_are_no_integers(saved: Callable[..., list[Path]], computes: Any) -> None:
    model = build(own(computes), None)
    for path in saved(model):
        loaded = qmath.load(path)
        for name in ("c/kernel", "d/kernel"):
            assert loaded.tensors[name].role == "float"
            assert [n for n in loaded.notes if n.startswith(f"{name}: {NO_RANGE}")], loaded.notes


FIXED = (power_of_two, half_range, constant_range, args, symbolic)


@pytest.mark.parametrize("computes", FIXED, ids=lambda f: f.__name__)
def test_activations(saved: Callable[..., list[Path]], computes: Any) -> None:
    model = build(last_value, own(computes))
    data = models.images((8, 3), 20, 1)
    expected = model(data, training=False).numpy()
    for path in saved(model):
        loaded = qmath.load(path)
        assert {n for n, t in loaded.tensors.items() if t.role == "activation"} == {
            "c/post_activation", "d/post_activation"
        }  # fmt: skip
        assert loaded.graph is not None
        (found,) = qmath.run(loaded, data, profile="exact").outputs.values()
        step = float(loaded.tensors["d/post_activation"].max) / 2
        assert np.mean(found != expected) < 0.02  # of near-ties, by the order of a float32 sum
        assert np.abs(found - expected).max() <= step
        assert not [note for note in loaded.notes if NO_RANGE in note]


@pytest.mark.parametrize(
    "computes", [learned_step, floor_and_half, and_dequantize, clip, from_the_weights],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_activations_that_qmath_does_not_run(
    saved: Callable[..., list[Path]], computes: Any
) -> None:
    model = build(last_value, own(computes))
    for path in saved(model):
        notes = qmath.load(path).notes
        for layer in ("c", "d"):
            name = f"{layer}/post_activation: {NO_RANGE}"
            assert [note for note in notes if note.startswith(name)], notes


def test_branches_that_train_are_left_out(tmp_path: Path) -> None:
    """A function that trains or not, as a tensor says, whose range training updates."""

    class Layer(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.random.normal((3, 2), seed=1), name="kernel")
            self.low, self.high = (
                tf.Variable(x, name=n) for x, n in ((-0.5, "low"), (0.75, "high"))
            )

        @tf.function(input_signature=[tf.TensorSpec((None, 3)), tf.TensorSpec((), tf.bool)])
        def __call__(self, x: Any, training: Any) -> Any:
            def train() -> Any:
                self.low.assign(tf.reduce_min(self.kernel))
                return tf.quantization.fake_quant_with_min_max_vars(self.kernel, self.low, 9.0, 4)

            def infer() -> Any:
                return tf.quantization.fake_quant_with_min_max_vars(
                    self.kernel, self.low, self.high, 4
                )

            return {"y": tf.cond(training, lambda: x @ train(), lambda: x @ infer())}

    layer = Layer()
    tf.saved_model.save(layer, str(tmp_path), signatures=layer.__call__)
    loaded = qmath.load(tmp_path)
    (tensor,) = [t for t in loaded.tensors.values() if t.role == "weight"]
    assert (float(tensor.min), float(tensor.max), tensor.spec.num_bits) == (-0.5, 0.75, 4)


def test_one_weight_with_two_ranges(tmp_path: Path) -> None:
    class Layer(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.random.normal((3, 3), seed=1), name="kernel")

        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def __call__(self, x: Any) -> Any:
            x = x @ tf.quantization.fake_quant_with_min_max_args(self.kernel, -1, 1, 8)
            return {"y": x @ tf.quantization.fake_quant_with_min_max_args(self.kernel, -2, 2, 4)}

    layer = Layer()
    tf.saved_model.save(layer, str(tmp_path), signatures=layer.__call__)
    with pytest.raises(qmath.errors.FileFormatError, match=r"Args of 8 bits.*Args of 4 bits") as e:
        qmath.load(tmp_path)
    assert "FakeQuant(" not in str(e.value)
