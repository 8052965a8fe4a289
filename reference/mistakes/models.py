"""The models in which mistakes are tried, exported as their kernels read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qmath
from qmath.model import QatModel

__all__ = ["NETWORKS", "SAMPLES", "Exports", "model_named"]

FOLDER = Path(__file__).parents[1] / "samples"
SAMPLES = ("default8", "integer4", "nbit4", "question")
# Of the tests: with the kernels that the samples do not have.
NETWORKS = ("branches", "combinations", "convolutions", "functions", "images", "signals")


def model_named(name: str) -> QatModel:
    """Return a sample, a network, a file's model, or one of `reference.models` with TensorFlow."""
    if name in SAMPLES:
        return qmath.load(FOLDER / f"{name}.h5", quantizers=_settings(name))
    if name in NETWORKS:
        from tests.exports import networks

        network: QatModel = getattr(networks, name)()
        return network
    if "." in name:
        return qmath.load(name)
    from reference import models

    return qmath.from_keras(models.build(name))


def _settings(name: str) -> dict[str, Any] | None:
    """Return what the training script says of a sample whose file does not."""
    if name not in ("integer4", "question"):
        return None
    shared: dict[str, Any] = {"num_bits": 4, "per_axis": False, "narrow_range": False}
    weights = qmath.LastValueQuantizer(symmetric=True, **shared)
    averaging = qmath.MovingAverageQuantizer(symmetric=False, **shared)
    found = {"MyConfig.weights": weights, "MyConfig.activation": averaging}
    if name == "integer4":
        found.update({"MyWeightsConfig.weights": weights, "MyOutputConfig.output": averaging})
    return found


class Exports:
    """A model's exports into a folder, with directed vectors and two whole-model ones.

    Parameters
    ----------
    model : QatModel
    folder : Path
    **options
        Of `qmath.export`, such as ``vector_bytes``.
    """

    def __init__(self, model: QatModel, folder: Path, **options: Any) -> None:
        self.model, self.folder, self.options = model, folder, options

    def arrays(self) -> Path:
        """Return the ``.npz``, for the NumPy kernel."""
        return self._export("arrays.npz", vectors=2)

    def c(self) -> Path:
        """Return the folder of C sources; weights are packed, so that unpacking counts, too."""
        return self._export("c", format="c", packing="lsb")

    def tflite(self, **options: Any) -> Path:
        """Return the ``.tflite``, with vectors."""
        return self._export("model.tflite", vectors=2, **options)

    def verilog(self) -> Path:
        """Return the folder of memories and testbenches."""
        return self._export("mem", format="mem")

    def _export(self, name: str, **options: Any) -> Path:
        place = self.folder / name
        qmath.export(self.model, place, **self.options, **options)
        return place
