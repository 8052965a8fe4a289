"""Whose a range is: the same names and ranges from every container and live, or a refusal.

A grid of what a user's config can quantize, and by what: each two of the weight's, activation's and
output's quantizer meet, and of whether the activation is put in place. What TFMOT's wrapper holds
is the truth. Where variables have no names, two cells can be the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import qmath
from qmath.errors import QmathError
from qmath.model import QatModel

keras = tf.keras
layers = keras.layers
quantizers = tfmot.quantization.keras.quantizers

KINDS = ("none", "clip", "fixed", "last", "average")
# "n.h5" are weights with names, "ckpt" is TensorFlow's checkpoint.
CONTAINERS = ("h5", "keras", "weights.h5", "n.h5", "ckpt", "saved", "live")
POSITIONAL = ("keras", "weights.h5")
Ranges = dict[str, tuple[float, float]]


class Clip(quantizers.Quantizer):
    """Keeps no variables, as the one in TFMOT's own integration test."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:  # noqa: ARG002
        return keras.backend.clip(inputs, -1.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {}


MAKE: Mapping[str, Callable[[], Any]] = {
    "clip": Clip,
    "fixed": lambda: quantizers.FixedQuantizer(8, -0.5, 0.75, narrow_range=False),
    "last": lambda: quantizers.LastValueQuantizer(5, False, True, False),
    "average": lambda: quantizers.MovingAverageQuantizer(6, False, False, False),
}


class Cell(NamedTuple):
    """What quantizes the parts of a layer."""

    weight: str
    activation: str
    output: str
    is_set: bool


class GridConfig(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes as its cell says, and tells no file."""

    cell: Cell

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return [(layer.kernel, make()) for make in made(self.cell.weight)]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        return [(layer.activation, make()) for make in made(self.cell.activation)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        for weight in quantize_weights:
            layer.kernel = weight

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        for activation in quantize_activations if self.cell.is_set else ():
            layer.activation = activation

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: ARG002
        return [make() for make in made(self.cell.output)]

    def get_config(self) -> dict[str, Any]:
        return {}


def made(kind: str) -> list[Callable[[], Any]]:
    return [MAKE[kind]] if kind in MAKE else []


def pairs() -> list[Cell]:
    """Return cells in which each two choices meet."""
    return [
        Cell(weight, activation, KINDS[(i + j) % 5], (i + 2 * j) % 4 < 2)
        for (i, weight), (j, activation) in product(enumerate(KINDS), repeat=2)
    ]


EVERY = [Cell(*cell) for cell in product(KINDS, KINDS, KINDS, (True, False))]


def build(cell: Cell, *, calibrated: bool = True) -> Any:
    """Return a layer's model, after a step of training without an optimizer or before any."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    config = type("GridConfig", (GridConfig,), {"cell": cell})
    layer = layers.Dense(3, activation="relu", name="d")
    annotated = tfmot.quantization.keras.quantize_annotate_layer(layer, config())
    with tfmot.quantization.keras.quantize_scope({"GridConfig": config, "Clip": Clip}):
        model = tfmot.quantization.keras.quantize_apply(
            keras.Sequential([layers.InputLayer((4,)), annotated])
        )
    if calibrated:
        model(np.random.default_rng(3).normal(0, 2, (8, 4)).astype(np.float32), training=True)
    return model


def held(model: Any) -> Ranges:
    """Return the ranges that TFMOT's wrapper holds, by the names of their tensors."""
    (wrapper,) = (layer for layer in model.layers if hasattr(layer, "_weight_vars"))
    states = {f"d/{wrapper._weight_name(w.name)}": state for w, _, state in wrapper._weight_vars}
    for activation in wrapper._quantize_activations:
        states["d/post_activation"] = activation._post_activation_vars
    if wrapper._output_quantizers:
        states["d/output"] = wrapper._output_quantizer_vars
    return {
        name: (float(state["min_var"].numpy()), float(state["max_var"].numpy()))
        for name, state in states.items()
        if state
    }


def save(model: Any, container: str, folder: Path) -> Callable[..., QatModel]:
    """Write a model into a container; return what reads it."""
    whole = folder / "m.keras"
    if container == "live":
        return lambda **_: qmath.from_keras(model)
    if container == "saved":
        tf.saved_model.save(model, str(folder / "saved"))
        return lambda **given: qmath.load(folder / "saved", **given)
    if container in ("h5", "keras"):
        path = folder / f"m.{container}"
        model.save(path)
        return lambda **given: qmath.load(path, **given)
    model.save(whole)
    path = folder / f"w.{container}"
    model.save_weights(path)
    return lambda **given: qmath.load(path, architecture=whole, **given)


def differences(found: QatModel, wanted: Ranges, cell: Cell) -> Iterator[str]:
    """Yield where names or ranges are not those that Keras holds.

    Fixed quantizers may be read, where a file has their ops; and an activation that is never put in
    place may be left out.
    """
    read = {
        name: (float(tensor.min), float(tensor.max))
        for name, tensor in found.tensors.items()
        if name.startswith("d/") and tensor.min is not None
    }
    roles = zip(("d/kernel", "d/post_activation", "d/output"), cell, strict=False)
    may = {name: (-0.5, 0.75) for name, kind in roles if kind == "fixed"}
    if cell.output == "fixed" and any("may be d/output" in note for note in found.notes):
        may["d/post_activation"] = may["d/output"]  # a graph alone cannot tell them
    for name in {**wanted, **read}:
        optional = name in may or (name == "d/post_activation" and not cell.is_set)
        if name in read and read[name] not in (may.get(name), wanted.get(name)):
            yield f"{name} has the range {read[name]}, and Keras {wanted.get(name)}"
        elif name not in read and not optional:
            yield f"{name} has no range"


def told(cell: Cell) -> dict[str, Any]:
    """Return what the user can say of quantizers that keep ranges."""
    roles = zip(("weights", "activation", "output"), cell, strict=False)
    own = {
        "last": qmath.LastValueQuantizer(5, False, True, False),
        "average": qmath.MovingAverageQuantizer(6, False, False, False),
    }
    return {f"GridConfig.{role}": own[kind] for role, kind in roles if kind in own}


def outcome(model: Any, cell: Cell, container: str, folder: Path) -> str:
    """Read a cell from a container: ``right``, ``refused``, or what is wrong."""
    load, wanted = save(model, container, folder), held(model)
    try:
        wrong = "; ".join(differences(load(), wanted, cell))
    except QmathError as error:
        if container == "live" and "its Clip computes something else" in str(error):
            return "refused"
        if container not in POSITIONAL or "this format holds no names" not in str(error):
            raise
        # The training script's own quantizers decide.
        return "; ".join(differences(load(quantizers=told(cell)), wanted, cell)) or "refused"
    return wrong or "right"


def expected(cell: Cell, container: str) -> str:
    """Return what is to come of a cell: where nothing holds names, all ranges or none are sure."""
    if container == "live":  # which asks what is called
        called = (cell.output, cell.activation if cell.is_set else "none")
        return "refused" if "clip" in called else "right"
    kept = sum(kind in ("last", "average") for kind in cell[:3])
    most = 2 + (cell.weight != "none")
    return "right" if container not in POSITIONAL or kept in (0, most) else "refused"


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=() if cell in pairs() else pytest.mark.nightly, id="-".join(
            [*cell[:3], "set" if cell.is_set else "unset"]))
        for cell in EVERY
    ],
)  # fmt: skip
def test_names_and_ranges(cell: Cell, tmp_path: Path) -> None:
    model = build(cell)
    found = {container: outcome(model, cell, container, tmp_path) for container in CONTAINERS}
    assert found == {container: expected(cell, container) for container in CONTAINERS}


def test_each_two_choices_meet() -> None:
    choices = [KINDS, KINDS, KINDS, (True, False)]
    for one, other in combinations(range(4), 2):
        met = {(cell[one], cell[other]) for cell in pairs()}
        assert met == set(product(choices[one], choices[other]))


def content(path: Path) -> dict[str, bytes]:
    """Return all that a ``.keras`` file holds of a model."""
    with zipfile.ZipFile(path) as archive:
        held = {"config": archive.read("config.json")}
        weights = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights) as file:
        file.visititems(
            lambda name, item: (
                held.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return held


def test_two_models_can_be_one_file(tmp_path: Path) -> None:
    """So no reader can tell an activation that is never put in place from the output."""
    unset = Cell("last", "average", "none", is_set=False)
    output = Cell("last", "none", "average", is_set=False)
    contents = []
    for cell in (unset, output):
        build(cell, calibrated=False).save(tmp_path / "m.keras")
        contents.append(content(tmp_path / "m.keras"))
    assert contents[0] == contents[1]
