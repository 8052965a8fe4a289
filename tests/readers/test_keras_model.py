"""`from_keras` by attributes alone: stand-ins with the attributes of TFMOT's wrappers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError
from qmath.model import QuantSpec
from qmath.readers.keras.live import from_keras


class Variable:
    def __init__(self, name: str, values: Any) -> None:
        self.name = f"{name}:0"
        self.values = np.asarray(values, np.float32)

    def numpy(self) -> np.ndarray:
        return self.values


class Dense:
    def __init__(self, name: str, *weights: Variable) -> None:
        self.name = name
        self.trainable_weights = list(weights)
        self.non_trainable_weights: list[Variable] = []


class MyConfig:
    pass


class QuantizeWrapperV2(Dense):
    def __init__(
        self, layer: Dense, quantizers: dict[str, Any], activation: Any = None, output: Any = None
    ) -> None:
        super().__init__(f"quant_{layer.name}", *layer.trainable_weights)
        self.layer = layer
        self.quantize_config = MyConfig()
        self.non_trainable_weights = [Variable(f"{self.name}/optimizer_step", -1)]
        self._weight_vars = [
            (weight, quantizers[leaf], self.state(quantizers[leaf], leaf, -0.8, 0.7))
            for weight in layer.trainable_weights
            if (leaf := weight.name.split("/")[-1][:-2]) in quantizers
        ]
        self._quantize_activations = (
            [
                SimpleNamespace(
                    quantizer=activation,
                    _post_activation_vars=self.state(activation, "post_activation", 0, 3),
                )
            ]
            if activation
            else []
        )
        self._output_quantizers = [output] if output else []
        if output:
            self._output_quantizer_vars = self.state(output, "output", 0, 3)

    def state(self, quantizer: Any, name: str, low: float, high: float) -> Any:
        if not hasattr(quantizer, "symmetric"):
            return None
        state = {
            f"{end}_var": Variable(f"{self.name}/{name}_{end}", value)
            for end, value in (("min", low), ("max", high))
        }
        self.non_trainable_weights += state.values()
        return state


class QuantizeLayer(Dense):
    def __init__(self, name: str, quantizer: Any) -> None:
        super().__init__(name)
        self.quantizer = quantizer
        if hasattr(quantizer, "symmetric"):
            self.quantizer_vars = QuantizeWrapperV2.state(self, quantizer, name, 0, 1)


class Model:
    def __init__(self, *layers: Any, name: str = "model") -> None:
        self.layers = layers
        self.name = name

    def get_config(self) -> Any:
        raise NotImplementedError


def dense(name: str = "d") -> Dense:
    return Dense(
        name,
        Variable(f"{name}/kernel", np.linspace(-0.8, 0.7, 12).reshape(3, 4)),
        Variable(f"{name}/bias", np.zeros(4)),
    )


LAST = qmath.LastValueQuantizer(num_bits=4, per_axis=False, symmetric=True, narrow_range=False)
AVERAGE = qmath.MovingAverageQuantizer(
    num_bits=5, per_axis=False, symmetric=False, narrow_range=True
)
FIXED = qmath.FixedQuantizer(4, -1.0, 1.0, True)


def test_settings_are_exact() -> None:
    model = from_keras(
        Model(
            QuantizeLayer("q", qmath.AllValuesQuantizer(6, False, False, False)),
            QuantizeWrapperV2(dense(), {"kernel": LAST}, AVERAGE, AVERAGE),
            dense("e"),
        )
    )
    assert {name: tensor.role for name, tensor in model.tensors.items()} == {
        "q/output": "input",
        "d/kernel": "weight",
        "d/bias": "float",
        "d/post_activation": "activation",
        "d/output": "output",
        "e/kernel": "float",
        "e/bias": "float",
    }
    assert model.tensors["d/kernel"].spec == QuantSpec("LastValueQuantizer", 4, False, True, False)
    assert model.tensors["d/output"].spec == QuantSpec(
        "MovingAverageQuantizer", 5, False, False, True
    )
    assert set(model.tensors["d/output"].evidence.values()) == {"live quantizer"}
    assert model.tensors["q/output"].spec.num_bits == 6
    assert model.tensors["d/kernel"].quantize().num_bits == 4
    assert model.graph is None
    assert model.source == "Model"
    assert model.sha256 is None


def test_values_are_copies() -> None:
    layer = dense()
    model = from_keras(Model(QuantizeWrapperV2(layer, {"kernel": LAST})))
    layer.trainable_weights[0].values[:] = 9
    assert np.asarray(model.tensors["d/kernel"].values).max() < 1


def test_nested_models() -> None:
    inner = Model(QuantizeWrapperV2(dense(), {"kernel": LAST}), name="block")
    assert "block/d/kernel" in from_keras(Model(inner)).tensors


def test_fixed_and_no_quantizers() -> None:
    model = from_keras(
        Model(
            QuantizeLayer("q", FIXED),
            QuantizeWrapperV2(
                dense(), {"kernel": FIXED, "bias": qmath.NoQuantizer()}, FIXED, FIXED
            ),
        )
    )
    for name in ("q/output", "d/kernel", "d/post_activation", "d/output"):
        found = model.tensors[name]
        assert found.spec == QuantSpec("FixedQuantizer", 8, False, None, True, "args")
        assert (found.min, found.max) == (np.float32(-1), np.float32(1))
        assert any(note.startswith(f"{name}: FixedQuantizer(num_bits=4)") for note in model.notes)
    assert model.tensors["d/bias"].role == "float"


def test_sparsity_and_cluster_states() -> None:
    layer = QuantizeWrapperV2(dense(), {"kernel": LAST})
    extra = Variable("quant_d/cluster_centroids_tf", [1, 2])
    layer._weight_vars[0][2].update(
        cluster_centroids_tf=extra, sparsity_mask=np.ones(3), weight_name="kernel"
    )
    layer.non_trainable_weights.append(extra)
    model = from_keras(Model(layer))
    assert list(model.tensors) == ["d/kernel", "d/bias"]
    assert any("leftovers" in note for note in model.notes)


def test_quantizers_of_the_users_own() -> None:
    class Mine(qmath.LastValueQuantizer):
        def __call__(self, inputs: Any, training: bool, weights: Any) -> Any:
            raise NotImplementedError

    class Foreign:
        def get_config(self) -> dict[str, Any]:
            return {}

    class WithRange(Foreign):
        symmetric = True

    model = from_keras(
        Model(
            QuantizeWrapperV2(
                dense(),
                {"kernel": Mine(4, False, True, False), "bias": Foreign()},
                WithRange(),
                Foreign(),
            )
        )
    )
    assert model.tensors["d/kernel"].spec.num_bits == 4
    assert model.tensors["d/bias"].role == "float"
    assert model.tensors["d/post_activation"].spec.quantizer == "WithRange"
    assert not model.tensors["d/post_activation"].spec.is_complete
    assert "d/output" not in model.tensors
    for text in ("d/kernel: Mine overrides", "d/bias: Foreign is none of", "d/output: Foreign"):
        assert any(text in note for note in model.notes), model.notes


def test_what_is_refused() -> None:
    with pytest.raises(QmathError, match=r"qmath\.load"):
        from_keras("model.h5")
    unbuilt = Model(dense())
    unbuilt.built = False  # type: ignore[attr-defined]
    with pytest.raises(QmathError, match="not built"):
        from_keras(unbuilt)
    with pytest.raises(QmathError, match="two tensors are named 'd/kernel'"):
        from_keras(Model(dense(), QuantizeWrapperV2(dense(), {"kernel": LAST})))
    layer = QuantizeWrapperV2(dense(), {"kernel": LAST})
    layer._weight_vars[0][2]["min_var"].values[...] = np.nan
    with pytest.raises(QmathError, match=r"range of d/kernel is not finite"):
        from_keras(Model(layer))
    custom = Dense("c", *QuantizeWrapperV2(dense(), {"kernel": LAST}).non_trainable_weights)
    with pytest.raises(QmathError, match="layer c holds quantized layers"):
        from_keras(Model(custom))
