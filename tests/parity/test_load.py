"""`load` against `from_keras` and TFMOT itself, on models of many shapes, saved by Keras."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras import quantize
from tensorflow_model_optimization.python.core.quantization.keras.experimental import default_n_bit

from qmath.errors import FileFormatError, QmathError
from qmath.model import QatModel, QatTensor
from qmath.readers.keras.live import from_keras
from qmath.readers.loading import load
from tests.helpers import assert_same_bits

assert os.environ["TF_USE_LEGACY_KERAS"]
keras = tf.keras
layers = keras.layers
quantizers = tfmot.quantization.keras.quantizers
combine = tfmot.experimental.combine


@pytest.fixture(autouse=True)
def _forget_custom_objects() -> Iterator[None]:
    """Leave Keras's global registry as it was: other tests have a `MyConfig` of their own."""
    registry = keras.utils.get_custom_objects()
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)


class Template(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes named attributes and the output; its ``get_config`` returns what it is told."""

    attributes: tuple[str, ...]
    num_bits: int
    stored: dict[str, Any]
    owner: str
    settings: dict[str, bool]

    def place(self, layer: Any) -> Any:
        return getattr(layer, self.owner) if self.owner else layer

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return [
            (
                getattr(self.place(layer), name),
                quantizers.LastValueQuantizer(num_bits=self.num_bits, **self.settings),
            )
            for name in self.attributes
        ]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        for name, value in zip(self.attributes, quantize_weights, strict=True):
            setattr(self.place(layer), name, value)

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        return [
            quantizers.MovingAverageQuantizer(
                num_bits=self.num_bits, per_axis=False, symmetric=False, narrow_range=False
            )
        ]

    def get_config(self) -> dict[str, Any]:
        return self.stored

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:  # noqa: ARG003
        return cls()


def annotate(
    layer: Any,
    attributes: tuple[str, ...] = ("kernel",),
    num_bits: int = 4,
    stored: dict[str, Any] | None = None,
    owner: str = "",
    **settings: bool,
) -> Any:
    """Annotate a layer with a new class `MyConfig`, known to Keras from now on."""
    config = type(
        "MyConfig",
        (Template,),
        {
            "attributes": attributes,
            "num_bits": num_bits,
            "stored": stored or {},
            "owner": owner,
            "settings": {"per_axis": False, "symmetric": True, "narrow_range": False, **settings},
        },
    )
    keras.utils.get_custom_objects()["MyConfig"] = config
    return tfmot.quantization.keras.quantize_annotate_layer(layer, config())


def chain(*parts: Any, shape: tuple[int, ...] = (6, 6, 2)) -> Any:
    return keras.Sequential([layers.InputLayer(shape), *parts])


def custom(model: Any) -> Any:
    return tfmot.quantization.keras.quantize_apply(model)


def n_bit(num_bits: int) -> Any:
    model = chain(
        layers.Conv2D(3, 3, activation="relu"), layers.Flatten(), layers.Dense(2, activation="tanh")
    )
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    scheme = default_n_bit.default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(
        num_bits_weight=num_bits, num_bits_activation=18 - num_bits
    )
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def preserving(scheme: Any) -> Any:
    model = chain(layers.Conv2D(3, 3, name="c"), layers.Flatten(), layers.Dense(2, name="d"))
    model.set_weights([np.round(w * 2) / 2 for w in model.get_weights()])
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def residual() -> Any:
    image = keras.Input((6, 6, 2))
    left = layers.Conv2D(4, 3, padding="same", name="c")(image)
    left = layers.ReLU(6, name="r")(layers.BatchNormalization(name="b")(left))
    right = layers.SeparableConv2D(4, 3, padding="same", name="sep")(left)
    joined = layers.Concatenate(name="cat")([layers.Add(name="add")([left, right]), right])
    up = layers.Conv2DTranspose(3, 2, strides=2, activation="sigmoid", name="ct")(joined)
    pooled = layers.GlobalAveragePooling2D(name="gap")(up)
    return keras.Model(image, [layers.Dense(2, activation="softmax", name="d")(pooled), pooled])


def shared() -> Any:
    dense, flow = layers.Dense(4, activation="relu", name="d"), keras.Input((4,))
    first = dense(flow)
    second = dense(layers.ReLU(name="r")(first))
    return keras.Model(flow, layers.Add(name="a")([second, first]))


def nested() -> Any:
    inner = tfmot.quantization.keras.quantize_model(
        chain(layers.Conv2D(3, 3, padding="same", activation="relu", name="c"), shape=(6, 6, 3))
    )
    image = keras.Input((6, 6, 3))
    twice = inner(layers.BatchNormalization(name="bn")(inner(image)))
    return keras.Model(image, layers.Dense(2, name="head")(layers.Flatten()(twice)))


def fixed() -> Any:
    model = tfmot.quantization.keras.quantize_model(
        chain(layers.Dense(3, activation="relu", name="a"), layers.Dense(2, name="b"), shape=(4,))
    )
    with tfmot.quantization.keras.quantize_scope():
        return quantize.fix_input_output_range(model, num_bits=4, input_max=0.7)


def stored(num_bits: int) -> dict[str, Any]:
    return {
        "weight_quantizer": keras.utils.legacy.serialize_keras_object(
            quantizers.LastValueQuantizer(num_bits, True, True, True)
        ),
        "num_bits_output": num_bits,
    }


MODELS: dict[str, Any] = {
    "default": lambda: tfmot.quantization.keras.quantize_model(residual()),
    "shared": lambda: tfmot.quantization.keras.quantize_model(shared()),
    "nested": nested,
    "fixed": fixed,
    "clusters": lambda: preserving(
        combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
    ),
    "pruned": lambda: preserving(combine.Default8BitPrunePreserveQuantizeScheme()),
    "conv1d": lambda: custom(chain(annotate(layers.Conv1D(3, 2, name="c")), shape=(6, 2))),
    "kernel and bias": lambda: custom(
        chain(
            annotate(
                layers.Dense(3, name="d", bias_initializer="random_normal"), ("kernel", "bias"), 6
            )
        )
    ),
    "lstm": lambda: custom(
        chain(
            annotate(layers.LSTM(3, name="l"), ("kernel", "recurrent_kernel"), 5, owner="cell"),
            shape=(4, 2),
        )
    ),
    "get_config": lambda: custom(
        chain(
            annotate(
                layers.Dense(3, name="d"),
                ("kernel",),
                7,
                stored(7),
                per_axis=True,
                narrow_range=True,
            ),
            shape=(4,),
        )
    ),
    "embedding": lambda: custom(
        chain(
            annotate(layers.Embedding(5, 3, name="e"), ("embeddings",)),
            layers.Flatten(),
            shape=(4,),
        )
    ),
    **{f"{n} bits": lambda n=n: n_bit(n) for n in (2, 4, 7, 11, 16)},
    **{
        f"{n} bits by ratio": lambda n=n: custom(
            chain(annotate(layers.Conv2D(3, 3, name="c"), ("kernel",), n))
        )
        for n in range(2, 17)
    },
    **{
        f"{n} bits by ratio, per axis": lambda n=n: custom(
            chain(annotate(layers.Conv2D(3, 3, name="c"), ("kernel",), n, per_axis=True))
        )
        for n in (2, 3, 8, 13, 16)
    },
}


def train(model: Any) -> Any:
    """Move the ranges as three steps of training do."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        model(rng.uniform(0, 4, (2, *model.input_shape[1:])).astype(np.float32), training=True)
    return model


def save(model: Any, path: Path) -> QatModel:
    model.save(path, include_optimizer=False)
    return load(path)


# Models of a config that tells nothing, whose ranges could also be those of other quantizers where
# variables have no names: an activation's, or the output's.
OPEN = {"conv1d", "kernel and bias", "lstm", "get_config"} | {
    name for name in MODELS if "by ratio" in name
}


def told(model: Any) -> dict[str, Any]:
    """Return what the user can say: the quantizers of a layer with a config of the user's own."""
    found: dict[str, Any] = {}
    for prefix, wrapper in wrappers(model):
        for weight, quantizer, _ in wrapper._weight_vars:
            found[f"{prefix}{wrapper.layer.name}/*{wrapper._weight_name(weight.name)}"] = quantizer
        for quantizer in wrapper._output_quantizers:
            found["MyConfig.output"] = quantizer
    return found


def save_otherwise(model: Any, folder: Path, quantizers: Any) -> dict[str, QatModel]:
    """Save a model in the other containers of Keras, and load each."""
    whole, weights, by_name = (folder / f"other.{end}" for end in ("keras", "weights.h5", "h5"))
    model.save(whole)
    model.save_weights(weights)
    model.save_weights(by_name)
    return {
        "keras": load(whole, quantizers),
        "weights.h5": load(weights, quantizers, architecture=whole),
        "weights by name": load(by_name, quantizers, architecture=whole),
    }


def assert_same_tensors(loaded: QatModel, live: QatModel) -> None:
    assert list(loaded.tensors) == list(live.tensors)
    assert loaded.graph == live.graph is not None
    for name, tensor in loaded.tensors.items():
        assert_same_tensor(tensor, live.tensors[name])


def assert_same_tensor(tensor: QatTensor, other: QatTensor) -> None:
    assert tensor.role == other.role, tensor.name
    for mine, theirs in (
        (tensor.values, other.values),
        (tensor.min, other.min),
        (tensor.max, other.max),
    ):
        assert (mine is None) == (theirs is None), tensor.name
        if mine is not None:
            assert_same_bits(np.asarray(mine), np.asarray(theirs), tensor.name)


def assert_spec_agrees(loaded: QatModel, live: QatModel) -> None:
    """What the file says is true, and what it does not say is unknown."""
    for name, tensor in live.tensors.items():
        for field, value in vars(loaded.tensors[name].spec).items():
            assert value in (None, getattr(tensor.spec, field)), (name, field)


def wrappers(model: Any, prefix: str = "") -> Any:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from wrappers(layer, f"{prefix}{layer.name}/")
        elif hasattr(layer, "_weight_vars"):
            yield prefix, layer


@pytest.mark.parametrize("name", MODELS)
def test_file_and_live_model_agree(name: str, tmp_path: Path) -> None:
    model = train(MODELS[name]())
    loaded = save(model, tmp_path / "model.h5")
    live = from_keras(model)
    assert_same_tensors(loaded, live)
    assert_spec_agrees(loaded, live)
    quantizers = told(model) if name in OPEN else None
    if quantizers:
        with pytest.raises(FileFormatError, match="this format holds no names"):
            save_otherwise(model, tmp_path, None)
        loaded = load(tmp_path / "model.h5", quantizers)
        assert_same_tensors(loaded, live)
    for container, other in save_otherwise(model, tmp_path, quantizers).items():
        assert list(other.tensors) == list(loaded.tensors), container
        for key, tensor in other.tensors.items():
            assert_same_tensor(tensor, loaded.tensors[key])
            assert tensor.spec == loaded.tensors[key].spec, (container, key)
            assert tensor.provenance == loaded.tensors[key].provenance, (container, key)
    weights = {key: t for key, t in loaded.tensors.items() if t.role == "weight"}
    assert weights
    seen = 0
    for prefix, wrapper in wrappers(model):
        for weight, quantizer, state in wrapper._weight_vars:
            (key,) = [
                key
                for key in weights
                if key.startswith(f"{prefix}{wrapper.layer.name}/")
                and key.endswith("/" + wrapper._weight_name(weight.name))
            ]
            expected = quantizer(weight, False, weights=state).numpy()
            for tensor in (live.tensors[key], weights[key]):
                assert_same_bits(tensor.quantize().dequantize(), expected, key)
            seen += 1
    assert seen == len(weights)


@pytest.mark.parametrize("name", ["default", "nested", "lstm", "fixed", "conv1d"])
def test_names_after_loading_and_saving_again(name: str, tmp_path: Path) -> None:
    first = save(train(MODELS[name]()), tmp_path / "first.h5")
    with tfmot.quantization.keras.quantize_scope():
        again = keras.models.load_model(tmp_path / "first.h5", compile=False)
    second = save(again, tmp_path / "second.h5")
    assert_same_tensors(second, first)
    assert_same_tensors(second, from_keras(again))


@pytest.mark.parametrize("num_bits", [3, 8, 13])
def test_the_ratio_after_training_in_a_graph(num_bits: int, tmp_path: Path) -> None:
    """In a ``tf.function`` TensorFlow multiplies where it divides eagerly: an ulp apart."""
    model = MODELS[f"{num_bits} bits by ratio, per axis"]()
    model.compile("adam", "mse")
    images = np.random.default_rng(0).uniform(0, 4, (8, 6, 6, 2)).astype(np.float32)
    model.fit(images, np.zeros((8, *model.output_shape[1:])), epochs=2, verbose=0)
    kernel = save(model, tmp_path / "model.h5").tensors["c/kernel"]
    assert (kernel.spec.num_bits, kernel.provenance["num_bits"]) == (num_bits, "range ratio")


def test_never_trained(tmp_path: Path) -> None:
    """Initial ranges prove nothing: the width of a custom config stays unknown."""
    model = MODELS["4 bits by ratio"]()
    loaded, live = save(model, tmp_path / "model.h5"), from_keras(model)
    assert_same_tensors(loaded, live)
    kernel = loaded.tensors["c/kernel"]
    assert (kernel.min, kernel.max, kernel.spec.num_bits) == (-6, 6, None)
    assert "MyConfig.weights=LastValueQuantizer(num_bits=N" in str(kernel.hint)
    assert live.tensors["c/kernel"].spec.num_bits == 4


def test_a_file_that_keras_failed_to_write(tmp_path: Path) -> None:
    """Two variables of one name: Keras raises, and leaves a file that lacks tensors."""
    model = custom(chain(annotate(layers.Dense(2, name="d"), ("kernel", "kernel")), shape=(4,)))
    with pytest.raises(ValueError, match="name already exists"):
        model.save(tmp_path / "model.h5")
    with pytest.raises(FileFormatError):
        load(tmp_path / "model.h5")


def test_long_lists_of_names_are_split(tmp_path: Path) -> None:
    """Keras cuts attributes of more than 64 kB into ``layer_names0``, ``layer_names1``, …"""
    model = chain(*(layers.ReLU(name=f"{'long' * 80}_{i}") for i in range(250)))
    loaded = save(model, tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5") as file:
        assert "layer_names" not in file["model_weights"].attrs
        assert "layer_names1" in file["model_weights"].attrs
    assert loaded.graph is not None
    assert len(loaded.graph.nodes) == 251


def test_subclassed_models_and_their_own_variables() -> None:
    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body = tfmot.quantization.keras.quantize_model(
                chain(layers.Dense(3, name="d"), shape=(4,))
            )
            self.gain = self.add_weight("gain", shape=(3,))

        def call(self, inputs: Any) -> Any:
            return self.body(inputs) * self.gain

    model = Model()
    with pytest.raises(QmathError, match="not built"):
        from_keras(model)
    model(np.ones((1, 4), np.float32))
    live = from_keras(model)
    assert live.graph is None
    assert live.tensors[f"{model.body.name}/d/kernel"].spec.num_bits == 8
    assert live.tensors["top_level_model_weights/gain"].role == "float"
