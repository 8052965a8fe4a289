"""Small whole-model HDF5 files, laid out as Keras lays them out, from plain arrays."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"


def entry(class_name: str, name: str, *inbound: Any, **config: Any) -> dict[str, Any]:
    """A layer's entry in a model's config; `inbound` are the calls, each a list of names."""
    return {
        "class_name": class_name,
        "name": name,
        "config": {"name": name, **config},
        "inbound_nodes": [
            [[source, 0, 0, {}] if isinstance(source, str) else source for source in call]
            for call in inbound
        ],
    }


def quantizer(class_name: str = "LastValueQuantizer", **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": config}


# What a user's config may tell: whose the ranges are, where variables have no names.
TOLD: dict[str, Any] = {
    "weight_quantizer": quantizer(),
    "bias_quantizer": quantizer(),
    "activation_quantizer": quantizer("MovingAverageQuantizer"),
}


def wrapped(
    name: str,
    config: Mapping[str, Any] | None = None,
    config_class: str = "MyConfig",
    class_name: str = "Dense",
    activation: Any = "linear",
    **inner: Any,
) -> dict[str, Any]:
    """The entry of a layer in TFMOT's wrapper."""
    aware = {"class_name": "QuantizeAwareActivation", "config": {"activation": activation}}
    return entry(
        "QuantizeWrapperV2",
        f"quant_{name}",
        layer={"class_name": class_name, "config": {"name": name, "activation": aware, **inner}},
        quantize_config={"class_name": config_class, "config": dict(config or {})},
    )


def sequential(*layers: Any) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": list(layers)}}


def functional(layers: list[Any], inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    return {
        "class_name": "Functional",
        "config": {
            "name": "model",
            "layers": layers,
            "input_layers": [[name, 0, 0] if isinstance(name, str) else name for name in inputs],
            "output_layers": [[name, 0, 0] if isinstance(name, str) else name for name in outputs],
        },
    }


def kernel(
    minimum: Any = -0.8,
    maximum: Any = 0.7,
    name: str = "kernel",
    layer: str = "d",
    shape: tuple[int, ...] = (3, 4),
) -> dict[str, np.ndarray]:
    """The variables of a quantized weight; by default 4 bits, symmetric, wide."""
    values = np.linspace(-0.8, 0.7, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return {
        f"{layer}/{name}:0": values,
        f"quant_{layer}/{name}_min:0": np.float32(minimum),
        f"quant_{layer}/{name}_max:0": np.float32(maximum),
    }


def span(
    name: str, minimum: float = -0.1, maximum: float = 5.0, layer: str = "d"
) -> dict[str, np.ndarray]:
    """The variables of an activation's or output's range."""
    return {
        f"quant_{layer}/{name}_min:0": np.float32(minimum),
        f"quant_{layer}/{name}_max:0": np.float32(maximum),
    }


def step(layer: str = "d") -> dict[str, np.ndarray]:
    return {f"quant_{layer}/optimizer_step:0": np.int32(-1)}


def write(path: Path, config: Any, groups: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write a whole model as Keras does."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = list(groups)
        for layer, variables in groups.items():
            group = weights.require_group(layer)
            group.attrs["weight_names"] = list(variables)
            for name, values in variables.items():
                group.create_dataset(name, data=values)
    return path


def one_layer(
    path: Path,
    config: Mapping[str, Any] | None = None,
    *variables: Mapping[str, Any],
    config_class: str = "MyConfig",
    **inner: Any,
) -> Path:
    """Write a model of one wrapped layer ``d``, by default with a 4-bit kernel."""
    merged: dict[str, Any] = {}
    for item in variables or (kernel(),):
        merged |= item
    return write(
        path, sequential(wrapped("d", config, config_class, **inner)), {"quant_d": merged | step()}
    )


def write_v3(path: Path, groups: Mapping[str, Any], config: Any = None) -> Path:
    """Write variables by position, as Keras's newer format does; with a config, as a ``.keras``.

    `groups` maps the group of a layer, or of one inside it, to its variables.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_group("vars")
        for place, variables in groups.items():
            group = file.create_group(f"{place}/vars")
            for i, values in enumerate(variables):
                group[str(i)] = values
    if config is None:
        path.write_bytes(content.getvalue())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("model.weights.h5", content.getvalue())
    return path
