"""Small models for `reference.judge`: who quantizes what, and in how far a file tells it.

Each has two dense layers (but for a GRU and a clustered convolution), a quantizer of its own for
weights, activations or outputs, calibrated ranges, and weights that moved after the ranges were
taken, so that some are clipped. `write` puts one into every container, with what it computes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from reference import models  # before TensorFlow: it sets the environment

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import qmath
from reference import judge_quantizers as own
from reference.dump import dump, kernels
from reference.zoo_models import CONTAINERS

__all__ = ["MODELS", "build", "forward", "write"]

EXAMPLES = 64

keras = tf.keras
layers = keras.layers
quantizers = tfmot.quantization.keras.quantizers
Made = Callable[[], Any]
Recipe = Callable[[], Any]


class CaseConfig(tfmot.quantization.keras.QuantizeConfig):
    """A user's config: which quantizer each role has, and what is put in place.

    Subclasses fill the attributes in. `is_set` says whether activations are put in place, `tells`
    whether ``get_config`` holds the quantizers, `after` what is done with quantized weights.
    """

    weights: Mapping[str, Made]
    activation: Sequence[Made] = ()
    output: Sequence[Made] = ()
    is_set = True
    tells = False
    after: Sequence[Callable[[Any], Any]] = ()

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        """Pair each weight with its quantizer."""
        return [(_get(layer, name), made()) for name, made in self.weights.items()]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """Pair the activation with its quantizer, if it has one."""
        return [(layer.activation, made()) for made in self.activation]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Put the quantized weights in place."""
        for path, weight in zip(self.weights, quantize_weights, strict=True):
            owner, _, name = path.rpartition(".")
            for change in self.after:
                weight = change(weight)
            setattr(_get(layer, owner) if owner else layer, name, weight)

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Put the quantized activation in place, or forget it."""
        if self.is_set:
            for activation in quantize_activations:
                layer.activation = activation

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        """Return the output's quantizer, if it has one."""
        return [made() for made in self.output]

    def get_config(self) -> dict[str, Any]:
        """Return the quantizers, or nothing."""
        if not self.tells:
            return {}
        weight = [*self.weights.values()][:1]
        roles = {"weight": weight, "activation": self.activation, "output": self.output}
        return {
            f"{role}_quantizer": {
                "class_name": type(made()).__name__,
                "config": made().get_config(),
            }
            for role, all_made in roles.items()
            for made in all_made
        }

    @classmethod
    def from_config(cls, config: Any) -> CaseConfig:  # noqa: ARG003
        """Ignore what was told: the class knows."""
        return cls()


def _get(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner


def config_class(name: str, **attributes: Any) -> type[CaseConfig]:
    """Return a config class, which Keras knows by its name."""
    title = "".join(part.title() for part in name.split("_")) + "Config"
    made = type(title, (CaseConfig,), attributes)
    keras.utils.get_custom_objects()[title] = made
    return made


def last_value(num_bits: int = 8, *, per_axis: bool = False, symmetric: bool = True) -> Made:
    """Return what makes TFMOT's quantizer of weights."""
    return lambda: quantizers.LastValueQuantizer(num_bits, per_axis, symmetric, False)


def moving_average(num_bits: int = 8) -> Made:
    """Return what makes TFMOT's quantizer of activations."""
    return lambda: quantizers.MovingAverageQuantizer(num_bits, False, False, False)


def all_values(num_bits: int) -> Made:
    """Return what makes TFMOT's quantizer of inputs."""
    return lambda: quantizers.AllValuesQuantizer(num_bits, False, False, False)


def fixed(low: float, high: float) -> Made:
    """Return what makes TFMOT's quantizer without variables."""
    return lambda: quantizers.FixedQuantizer(
        num_bits=8, init_min=low, init_max=high, narrow_range=False
    )


def dense(name: str, weight: Made | None = None, *, bias: Made | None = None, **config: Any) -> Any:
    """Return two dense layers that are quantized by the same config."""
    weights = {} if weight is None else {"kernel": weight}
    weights |= {} if bias is None else {"bias": bias}
    made = config_class(name, weights=weights, **config)
    parts = [
        models.annotate(layers.Dense(8, activation="relu", name="d1"), made()),
        models.annotate(layers.Dense(4, name="d2"), made()),
    ]
    return models.by_annotation(keras.Sequential([keras.Input((12,), name="x"), *parts]))


def gru(name: str, weight: Made) -> Any:
    """Return a GRU whose kernels are quantized, and a dense layer."""
    of_cell = {"cell.kernel": weight, "cell.recurrent_kernel": weight}
    cell, head = (
        config_class(f"{name}_{part}", weights=weights)
        for part, weights in (("cell", of_cell), ("head", {"kernel": weight}))
    )
    parts = [
        models.annotate(layers.GRU(3, name="gru"), cell()),
        models.annotate(layers.Dense(2, name="head"), head()),
    ]
    return models.by_annotation(keras.Sequential([keras.Input((4, 2), name="x"), *parts]))


def clustered() -> Any:
    """Return a model that TFMOT clustered and then trains without breaking the clusters."""
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    model = keras.Sequential(
        [
            keras.Input((6, 6, 3), name="x"),
            layers.Conv2D(4, 3, activation="relu", name="c"),
            layers.Flatten(name="f"),
            layers.Dense(3, name="d"),
        ]
    )
    start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    model = cluster.cluster_weights(model, number_of_clusters=4, cluster_centroids_init=start)
    return tfmot.quantization.keras.quantize_apply(
        tfmot.quantization.keras.quantize_annotate_model(
            tfmot.clustering.keras.strip_clustering(model)
        ),
        tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(),
    )


def _with_activation(weight: Made, **options: Any) -> Callable[[str], Any]:
    return lambda name: dense(name, weight, activation=[moving_average()], tells=True, **options)


WEIGHTS: dict[str, Made | None] = {
    "none": None, "clip": own.Clip, "fixed": fixed(-0.5, 0.5), "last": last_value(6),
    "average": moving_average(7),
}  # fmt: skip
OTHERS: dict[str, Sequence[Made]] = {
    "none": (), "clip": (own.Clip,), "fixed": (fixed(-1, 3),), "last": (last_value(5),),
    "average": (moving_average(4),),
}  # fmt: skip


def pairs() -> dict[str, Callable[[str], Any]]:
    """Return 25 models in which each two of weight, activation, output, and set or not, meet."""
    made: dict[str, Callable[[str], Any]] = {}
    for i, weight in enumerate(WEIGHTS):
        for j, activation in enumerate(OTHERS):
            output = list(OTHERS)[(i + j) % 5]
            is_set = (i + 2 * j) % 4 < 2
            name = f"{weight}_{activation}_{output}" + ("" if is_set else "_unset")
            made[name] = (
                lambda name, w=WEIGHTS[weight], a=OTHERS[activation], o=OTHERS[output], s=is_set: (
                    dense(name, w, activation=a, output=o, is_set=s)
                )
            )
    return made


MODELS: dict[str, Callable[[str], Any]] = {
    "power_of_two": lambda name: dense(name, own.PowerOfTwo),
    "power_of_two_and_activation": _with_activation(own.PowerOfTwo),
    "half_range": lambda name: dense(name, own.HalfRange),
    "constant_range": _with_activation(own.ConstantRange),
    "constant_per_channel": _with_activation(own.ConstantPerChannel),
    "constant_args": _with_activation(own.ConstantArgs),
    "fixed_weight": _with_activation(fixed(-0.5, 0.5)),
    "fixed_activation": lambda name: dense(name, last_value(), activation=[fixed(0, 4)]),
    "fixed_output": lambda name: dense(name, last_value(), output=[fixed(-4, 4)]),
    "fixed_told": lambda name: dense(name, last_value(), activation=[fixed(0, 4)], tells=True),
    "constant_activation": lambda name: dense(name, last_value(), activation=[own.ConstantRange]),
    "power_of_two_activation": lambda name: dense(
        name, last_value(), activation=[own.PowerOfTwo], tells=True
    ),
    "learned_step_activation": lambda name: dense(name, last_value(), activation=[own.LearnedStep]),
    "learned_step": _with_activation(own.LearnedStep),
    "learned_step_alone": lambda name: dense(name, own.LearnedStep),
    "dorefa": _with_activation(own.DoReFa),
    "fixed_scale": _with_activation(own.FixedScale),
    "percentile": _with_activation(own.Shrunk),
    "clip": _with_activation(own.Clip),
    "activation_never_set": lambda name: dense(
        name, last_value(), activation=[moving_average(4)], is_set=False
    ),
    "activation_never_set_told": _with_activation(last_value(), is_set=False),
    "computed_kernel": lambda name: dense(name, own.CenteredKernel),
    "computed_in_training": lambda name: dense(name, own.CenteredInTraining),
    "scaled_kernel": lambda name: dense(name, last_value(), after=[lambda w: w * 0.75]),
    "quantized_bias": lambda name: dense(name, last_value(6), bias=last_value(12)),
    "power_of_two_bias": lambda name: dense(name, last_value(6), bias=own.PowerOfTwo),
    "gru": lambda name: gru(name, last_value(5)),
    "gru_power_of_two": lambda name: gru(name, own.PowerOfTwo),
    "clustered": lambda name: clustered(),  # noqa: ARG005
    **{
        f"last_value_{bits}{'_per_axis' if per_axis else ''}": lambda name, b=bits, p=per_axis: (
            dense(name, last_value(b, per_axis=p), activation=[moving_average(b)], tells=True)
        )
        for bits in (3, 5, 8)
        for per_axis in (False, True)
    },
    **{
        f"{kind}_{bits}": lambda name, made=make, b=bits: dense(
            name, made(b), activation=[made(b)], tells=True
        )
        for kind, make in (("moving_average", moving_average), ("all_values", all_values))
        for bits in (3, 5, 8)
    },
    **pairs(),
}


def build(name: str) -> Any:
    """Return a live model of this name, the same in every run."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(7)
    model = MODELS[name](name)
    rng = np.random.default_rng(7)
    for weight in model.weights:
        if weight.name.endswith("/bias:0"):
            weight.assign(rng.normal(0, 0.2, weight.shape))
    models.calibrate(model)
    for weight in model.trainable_weights if name != "clustered" else ():
        if weight.shape.rank:
            weight.assign(weight * rng.uniform(0.8, 1.2, weight.shape))
    return model


def answers(model: Any) -> dict[str, Any]:
    """Return what a user can answer when asked: the settings of TFMOT's own quantizers.

    They are a class name and its arguments, by ``"<config class>.<role>"`` and by tensor.
    """
    found: dict[str, Any] = {}
    for layer in model.layers:
        config = getattr(layer, "quantize_config", None)
        if not isinstance(config, CaseConfig):
            continue
        places = [("weights", path, made) for path, made in config.weights.items()]
        places += [("activation", "post_activation", made) for made in config.activation]
        places += [("output", "output", made) for made in config.output]
        for role, place, made in places:
            quantizer = made()
            if type(quantizer).__module__.startswith("tensorflow_model_optimization."):
                told = type(quantizer).__name__, quantizer.get_config()
                found.setdefault(f"{type(config).__name__}.{role}", told)
                found[f"{layer.layer.name}/{place}"] = told
    return found


def forward(model: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `reference.dump` writes of a live model."""
    found = {f"kernels/{name}": array for name, array in kernels(model).items()}
    return found | dump(model, data)


def write(name: str, folder: Path, containers: Sequence[str] = tuple(CONTAINERS)) -> Any:
    """Write a model into every container that Keras can write, its data, and what it computes.

    Returns
    -------
    tf_keras.Model
        The live model.
    """
    model = build(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    failed = {}
    for container in containers:
        path = folder / container
        try:
            with redirect_stdout(StringIO()):  # model.export prints what it wrote
                CONTAINERS[container](model, str(path))
        except Exception as error:  # Keras has its own reasons
            failed[container] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    data = models.data(model, EXAMPLES)
    np.savez(folder / "data.npz", **data)
    np.savez(folder / "FORWARD.npz", **forward(model, data))
    # Last, as it says that the rest is whole.
    told = {"answers": answers(model), "failed": failed, "qmath": qmath.__version__}
    (folder / "case.json").write_text(json.dumps(told, indent=1) + "\n")
    return model
