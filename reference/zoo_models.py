"""Quantized models of every shape in every container, for ``python -m reference.zoo``.

Runs with TensorFlow 2.13 and TFMOT 0.7.5 as well as with those of the `reference` extra. All but
one are trained for two steps, so that no weight is what it was when its range was taken.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reference import models  # before TensorFlow: it sets the environment

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from reference.models import annotate, default8, n_bit

__all__ = ["CONTAINERS", "MODELS", "WeightsConfig", "last_value", "write"]

keras = tf.keras
layers = keras.layers
quantizers = tfmot.quantization.keras.quantizers
SEED = 5


class WeightsConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes weights, each by a path of attributes and a quantizer; perhaps the output, too.

    Subclasses say which. ``get_config`` returns nothing, as most users' do.
    """

    weights: dict[str, Any]
    has_output = False

    def _places(self, layer: Any) -> Iterator[tuple[Any, str, Any]]:
        for path, quantizer in self.weights.items():
            *owners, name = path.split(".")
            owner = layer
            for part in owners:
                owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
            yield owner, name, quantizer

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        """Pair each weight with its quantizer."""
        return [(getattr(owner, name), made()) for owner, name, made in self._places(layer)]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        """Leave the activations float."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Put the fake-quantized weights in the weights' places."""
        for (owner, name, _), weight in zip(self._places(layer), quantize_weights, strict=True):
            setattr(owner, name, weight)

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Do nothing: there is none."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        """Quantize the output, if so."""
        make = quantizers.MovingAverageQuantizer
        return [make(8, False, False, False)] if self.has_output else []

    def get_config(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


def last_value(num_bits: int, *, per_axis: bool = False) -> Callable[[], Any]:
    """Return what makes a symmetric quantizer."""
    return lambda: quantizers.LastValueQuantizer(num_bits, per_axis, True, False)


def by_config(layer: Any, output: bool = False, **weights: Any) -> Any:
    """Annotate a layer with a config class of its own; underscores in names are dots."""
    name = f"{layer.name.title().replace('_', '')}Config"
    paths = {path.replace("__", "."): made for path, made in weights.items()}
    config = type(name, (WeightsConfig,), {"weights": paths, "has_output": output})
    keras.utils.get_custom_objects()[name] = config
    return annotate(layer, config())


def chain(*parts: Any, shape: tuple[int, ...] = (6, 6, 2), **options: Any) -> Any:
    """Return a Sequential model."""
    return keras.Sequential([layers.InputLayer(shape, **options), *parts])


def applied(*parts: Any, shape: tuple[int, ...] = (6, 6, 2), **options: Any) -> Any:
    """Return a Sequential model, quantized as its layers are annotated."""
    return tfmot.quantization.keras.quantize_apply(chain(*parts, shape=shape, **options))


def small() -> list[Any]:
    """Return layers of a small network."""
    return [
        layers.Conv2D(3, 3, activation="relu", name="c"),
        layers.DepthwiseConv2D(2, name="dw"),
        layers.Flatten(name="f"),
        layers.Dense(2, activation="softmax", name="d"),
    ]


def functional() -> Any:
    """Return a network with branches, a sum and batch normalization."""
    image = keras.Input((6, 6, 2), name="image")
    left = layers.Conv2D(4, 3, padding="same", use_bias=False, name="c")(image)
    left = layers.ReLU(6.0, name="r")(layers.BatchNormalization(name="b")(left))
    right = layers.Conv2D(4, 1, activation="relu", name="side")(left)
    joined = layers.Concatenate(name="cat")([layers.Add(name="add")([left, right]), right])
    pooled = layers.GlobalAveragePooling2D(name="gap")(joined)
    return keras.Model(image, layers.Dense(2, activation="sigmoid", name="d")(pooled))


def unquantized() -> Any:
    """Return a float network of the layers whose ops are not named after them."""
    signal = keras.Input((6, 4), name="signal")
    x = layers.Conv1D(4, 3, padding="causal", activation="relu")(signal)
    x = layers.Conv1D(4, 3, padding="same", dilation_rate=2, name="apart")(x)
    x = layers.MaxPooling1D(2)(layers.UpSampling1D(2)(layers.ZeroPadding1D((1, 2))(x)))
    x = layers.AveragePooling1D(2, 1, padding="same")(layers.LeakyReLU(0.3)(x))
    rows = layers.Dense(6, activation="sigmoid", name="rows")(layers.Dropout(0.5)(x))
    x = layers.Permute((2, 3, 1))(layers.Reshape((3, 3, 6))(rows))
    y = layers.DepthwiseConv2D(2, dilation_rate=2, padding="same", depth_multiplier=2)(x)
    y = layers.Conv2DTranspose(3, 2, strides=2, padding="same")(layers.ReLU(1.5)(y))
    z = layers.UpSampling2D(2)(layers.Conv2D(3, 2, dilation_rate=2, padding="same")(x))
    z = layers.Subtract()([layers.BatchNormalization(scale=False)(z), y])
    z = layers.AveragePooling2D(2)(layers.ZeroPadding2D(((1, 0), (0, 2)))(z))
    flat = layers.Flatten()(
        layers.Concatenate(axis=2)([z, layers.MaxPooling2D(2, 1, padding="same")(z)])
    )
    pooled = [
        layers.GlobalMaxPooling2D()(y),
        layers.GlobalAveragePooling2D(keepdims=True)(y),
        layers.GlobalAveragePooling1D()(rows),
    ]
    flat = layers.Activation("tanh")(layers.BatchNormalization()(layers.Dense(4)(flat)))
    return keras.Model(signal, [layers.Softmax()(layers.Add()([flat, flat, flat])), *pooled])


def shared() -> Any:
    """Return a network that calls one layer twice."""
    dense, flow = layers.Dense(4, activation="relu", name="d"), keras.Input((4,))
    first = dense(flow)
    return keras.Model(flow, layers.Add(name="a")([dense(layers.ReLU(name="r")(first)), first]))


def nested(depth: int) -> Any:
    """Return a quantized model inside float ones."""
    model = default8(chain(layers.Conv2D(2, 3, padding="same", name="c")))
    for level in range(depth):
        image = keras.Input((6, 6, 2))
        x = layers.BatchNormalization(name=f"bn{level}")(model(image))
        model = keras.Model(image, x, name=f"level{level}")
    x = layers.Dense(2, name="head")(layers.Flatten()(model.output))
    return keras.Model(model.input, x) if depth == 1 else chain(model, layers.Flatten())


class Subclassed(keras.Model):
    """A quantized model and a float layer, put together by code; and a variable of its own."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.body = default8(chain(layers.Dense(3, activation="relu", name="inside"), shape=(4,)))
        self.head = layers.Dense(2, name="head")
        self.gain = self.add_weight("gain", shape=(2,), initializer="random_normal")

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Run the parts."""
        return self.head(self.body(inputs, training=training)) * self.gain


def subclassed() -> Any:
    """Return a built subclassed model."""
    model = Subclassed()
    model(np.ones((1, 4), np.float32))
    return model


def frozen() -> Any:
    """Return a network whose layer was frozen before it was quantized."""
    parts = small()
    parts[0].trainable = False
    return default8(chain(*parts))


def fixed_weight() -> Any:
    """Return a network whose kernel has a quantizer without variables."""
    fixed = lambda: quantizers.FixedQuantizer(4, -0.5, 0.5, narrow_range=False)  # noqa: E731
    return applied(
        by_config(layers.Dense(3, name="fixed"), kernel=fixed),
        by_config(layers.Dense(2, name="d"), kernel=last_value(5)),
        shape=(4,),
    )


def resaved() -> Any:
    """Return a model that was saved, loaded and trained on."""
    import tempfile

    model = trained(default8(chain(*small())))
    with tempfile.TemporaryDirectory() as folder, tfmot.quantization.keras.quantize_scope():
        model.save(f"{folder}/model.h5")
        return keras.models.load_model(f"{folder}/model.h5", compile=False)


def bits(weight: int, activation: int) -> Callable[[], Any]:
    """Return what builds a network of these widths."""
    return lambda: n_bit(weight, activation)(chain(*small()))


RNN = (4, 2)
MODELS: dict[str, Callable[[], Any]] = {
    "sequential": lambda: default8(chain(*small())),
    "functional": lambda: default8(functional()),
    "subclassed": subclassed,
    "nested": lambda: nested(1),
    "nested_twice": lambda: nested(2),
    "shared": lambda: default8(shared()),
    "unquantized": unquantized,
    "simple_rnn": lambda: applied(
        by_config(layers.SimpleRNN(3, name="rnn"), cell__kernel=last_value(6)), shape=RNN
    ),
    "lstm": lambda: applied(
        by_config(
            layers.LSTM(3, name="lstm"),
            output=True,
            cell__kernel=last_value(4),
            cell__recurrent_kernel=last_value(5),
        ),
        layers.Dense(2, name="head"),
        shape=RNN,
    ),
    "gru": lambda: applied(
        by_config(
            layers.GRU(3, name="gru"),
            cell__recurrent_kernel=last_value(4),
            cell__bias=last_value(9),
        ),
        shape=RNN,
    ),
    "stacked_rnn": lambda: applied(
        by_config(
            layers.RNN([layers.SimpleRNNCell(3), layers.LSTMCell(2)], name="rnn"),
            cell__cells__0__kernel=last_value(4),
            cell__cells__1__kernel=last_value(7),
        ),
        shape=RNN,
    ),
    "bidirectional": lambda: applied(
        by_config(
            layers.Bidirectional(layers.LSTM(3), name="both"),
            forward_layer__cell__kernel=last_value(4),
            backward_layer__cell__kernel=last_value(7),
        ),
        shape=RNN,
    ),
    "separable": lambda: default8(
        chain(layers.SeparableConv2D(4, 3, depth_multiplier=2, activation="relu", name="sep"))
    ),
    "conv1d": lambda: applied(
        by_config(layers.Conv1D(3, 2, name="c"), output=True, kernel=last_value(4)), shape=RNN
    ),
    "depthwise": lambda: applied(
        by_config(
            layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw"),
            depthwise_kernel=last_value(4, per_axis=True),
        )
    ),
    "conv2d_transpose": lambda: default8(
        chain(layers.Conv2DTranspose(3, 2, strides=2, activation="relu", name="ct"))
    ),
    "embedding": lambda: applied(
        by_config(layers.Embedding(5, 3, name="e"), embeddings=last_value(5)), shape=(4,)
    ),
    "kernel_bias": lambda: applied(
        by_config(
            layers.Dense(3, bias_initializer="random_normal", name="d"),
            kernel=last_value(6),
            bias=last_value(12),
        ),
        shape=(4,),
    ),
    "bias": lambda: applied(
        by_config(
            layers.Conv2D(3, 2, bias_initializer="random_normal", name="c"), bias=last_value(8)
        )
    ),
    **{
        f"bits{w}_{a}": bits(w, a)
        for w, a in ((2, 16), (3, 4), (4, 4), (4, 8), (8, 2), (12, 12), (16, 16))
    },
    "frozen": frozen,
    "untrained": lambda: default8(chain(*small())),
    "resaved": resaved,
    "fixed_weight": fixed_weight,
    **{name: lambda name=name: models.build(name) for name in ("every_layer", "annotated", "lazy")},
    "calls": lambda: models.build("nested"),
    "mobilenetv2": lambda: models.build("mobilenetv2"),
}
# Not trained here: their ranges and statistics are collected by `reference.models`, or they do not
# change what `untrained` is for.
UNTRAINED = {"untrained", "every_layer", "annotated", "lazy", "calls", "mobilenetv2"}


def trained(model: Any) -> Any:
    """Train two steps on noise, compiled without state of its own in the files."""
    rng = np.random.default_rng(SEED)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    shapes = [tuple(x.shape[1:]) for x in model.inputs or ()] or [(4,)]
    for _ in range(2):
        inputs = [rng.uniform(0, 4, (2, *shape)).astype(np.float32) for shape in shapes]
        outputs = model(inputs if len(inputs) > 1 else inputs[0])
        targets = [rng.normal(size=y.shape) for y in tf.nest.flatten(outputs)]
        model.train_on_batch(inputs, targets)
    return model


def build(name: str) -> Any:
    """Return a model of this name, the same in every run."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(SEED)
    model = MODELS[name]()
    return model if name in UNTRAINED else trained(model)


# ---- what Keras says that a model holds


def expected(model: Any) -> dict[str, np.ndarray]:
    """Return every tensor with its range, as Keras and TFMOT hold them.

    Keys are ``<number>|<layer path>|<leaf>|<part>``; the leaf is the variable's own name, or
    ``post_activation`` and the like; the part is ``values``, ``min`` or ``max``.
    """
    found: dict[str, np.ndarray] = {}
    seen: set[int] = set()

    def add(path: str, leaf: str, values: Any, low: Any = None, high: Any = None) -> None:
        number = len({key.partition("|")[0] for key in found})
        for part, value in (("values", values), ("min", low), ("max", high)):
            if value is not None:
                found[f"{number}|{path}|{leaf}|{part}"] = np.asarray(value)

    def leaf(variable: Any) -> str:
        return variable.name.split(":")[0].split("/")[-1]

    def floats(path: str, variables: Any) -> None:
        for variable in variables:
            if id(variable) not in seen:
                seen.add(id(variable))
                add(path, leaf(variable), variable)

    def ranged(path: str, name: str, values: Any, state: Any, quantizer: Any) -> None:
        if state and "min_var" in state:
            add(path, name, values, state["min_var"], state["max_var"])
            seen.update(id(state[end]) for end in ("min_var", "max_var"))
        elif isinstance(quantizer, quantizers.FixedQuantizer):
            ends = quantizer.get_config()
            add(path, name, values, np.float32(ends["init_min"]), np.float32(ends["init_max"]))

    for path, layer in walk(model, ""):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if hasattr(layer, "_weight_vars"):
            inner, path = layer.layer, f"{path}{layer.layer.name}"
            for weight, quantizer, state in layer._weight_vars:
                ranged(path, leaf(weight), weight, state, quantizer)
                seen.add(id(weight))
            for activation in layer._quantize_activations:
                for place in ("pre_activation", "post_activation"):
                    state = getattr(activation, f"_{place}_vars", None)
                    if state is not None:
                        ranged(path, place, None, state, activation.quantizer)
            for quantizer in layer._output_quantizers:
                ranged(path, "output", None, layer._output_quantizer_vars, quantizer)
            seen.add(id(layer.optimizer_step))
            floats(path, [*inner.weights, *layer.weights])
        elif hasattr(layer, "quantizer_vars"):
            ranged(f"{path}{layer.name}", "output", None, layer.quantizer_vars, layer.quantizer)
        else:
            floats(f"{path}{layer.name}", layer.weights)
    floats("top_level_model_weights", model._trainable_weights + model._non_trainable_weights)
    return found


def walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a model and of the models inside it, each with the path before it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from walk(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix, layer


# ---- writing

CONTAINERS: dict[str, Callable[[Any, str], object]] = {
    "config.json": lambda model, path: Path(path).write_text(model.to_json()),
    "whole.h5": lambda model, path: model.save(path),
    "names.h5": lambda model, path: model.save_weights(path),
    "model.keras": lambda model, path: model.save(path),
    "model.weights.h5": lambda model, path: model.save_weights(path),
    "checkpoint": lambda model, path: model.save_weights(f"{path}/ckpt"),
    "keras_saved": lambda model, path: model.save(path, save_format="tf"),
    "tf_saved": lambda model, path: tf.saved_model.save(model, path),
    "exported": lambda model, path: model.export(path),
}


def write(name: str, folder: Path, containers: list[str]) -> dict[str, str]:
    """Write a model to every container that Keras can write it to, and what it should hold.

    Returns
    -------
    dict of str to str
        What Keras said of each container that it could not write.
    """
    model = build(name)
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "expected.npz", **expected(model))
    failed = {}
    for container in containers:
        path = folder / container
        try:
            CONTAINERS[container](model, str(path))
        except Exception as error:
            failed[container] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / "failed.json").write_text(json.dumps(failed, indent=1) + "\n")
    return failed
