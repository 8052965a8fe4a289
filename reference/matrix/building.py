"""A cell's model, live, and what a user answers when qmath asks for the settings of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reference import layer_models, models
from reference.matrix.cases import Cell

# isort: split
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_scheme,
)
from tensorflow_model_optimization.python.core.quantization.keras.experimental import default_n_bit
from tf_keras.src.saving import serialization_lib

import qmath
from qmath.quantizers import Quantizer

__all__ = ["answers", "build", "data"]

keras = tf.keras
layers = keras.layers


def build(cell: Cell) -> Any:
    """Return a cell's model, with random weights and realistic ranges."""
    if cell.scheme == "own":
        with serialization_lib.SafeModeScope(safe_mode=False):  # of a Lambda layer
            return layer_models.around(cell.case, cell.bits, cell.per_axis)
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    inputs = [layers.Input(shape, name=f"input{i}") for i, shape in enumerate(cell.case.shapes)]
    xs = [layers.Dense(x.shape[-1], name=f"before{i}")(x) for i, x in enumerate(inputs)]
    layer = cell.case.make()
    layer._name = "layer"
    x = layer(xs[0] if len(xs) == 1 else xs)
    for make in cell.case.then:
        x = make()(x)
    x = layers.Dense(3, name="after")(x)
    with serialization_lib.SafeModeScope(safe_mode=False):  # TFMOT copies its own Lambda layers
        annotated = tfmot.quantization.keras.quantize_annotate_model(keras.Model(inputs, x))
        model = tfmot.quantization.keras.quantize_apply(annotated, _scheme(cell))
    models.randomize(model)
    models.calibrate(model)
    return model


def _scheme(cell: Cell) -> Any:
    per_axis = not cell.per_axis
    if cell.scheme == "8bit":
        return default_8bit_quantize_scheme.Default8BitQuantizeScheme(disable_per_axis=per_axis)
    return default_n_bit.default_n_bit_quantize_scheme.DefaultNBitQuantizeScheme(
        disable_per_axis=per_axis, num_bits_weight=cell.bits[0], num_bits_activation=cell.bits[1]
    )


def data(cell: Cell, model: Any, count: int) -> dict[str, Any]:
    """Return data for a cell's model, by the inputs' names."""
    made = layer_models.numbers if cell.case.reads_numbers else models.data
    return made(model, count)


def answers(cell: Cell) -> Mapping[str, Quantizer] | None:
    """Return the settings that no file holds, as the config is of a class of its own."""
    if cell.scheme != "own":
        return None
    weights, values = cell.bits
    case = cell.case
    kernel = qmath.LastValueQuantizer(weights, False, True, True)
    output = qmath.MovingAverageQuantizer(values, False, False, False)
    told: dict[str, Quantizer] = {"after/kernel": kernel, "after/output": output}
    if not case.reads_numbers:
        told |= {"before*/kernel": kernel, "rounded*/output": output, "between*/output": output}
    if case.is_wrapped:
        told["layer/output"] = output
    for path in case.weights:
        name = path.rpartition(".")[2]
        told[f"layer/*{name}"] = qmath.LastValueQuantizer(weights, cell.per_axis, True, True)
    return told
