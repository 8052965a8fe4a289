"""`from_keras` by attributes alone: stand-ins with the attributes of TFMOT's wrappers."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import ContradictionError, QmathError
from qmath.model import QatModel, QuantSpec
from qmath.readers.keras.live import from_keras


class Variable:
    def __init__(self, name: str, values: Any) -> None:
        self.name = f"{name}:0"
        self.values = np.asarray(values, np.float32)

    def numpy(self) -> np.ndarray:
        return self.values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]


class Dense:
    def __init__(self, name: str, *weights: Variable) -> None:
        self.name = name
        self.trainable_weights = list(weights)
        self.non_trainable_weights: list[Variable] = []
        self.activation: Any = None


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
        layer.activation = next(iter(self._quantize_activations), None)
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
        self.weights = [
            variable
            for layer in layers
            for variable in getattr(layer, "trainable_weights", getattr(layer, "weights", ()))
        ]

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
    assert set(model.tensors["d/output"].provenance.values()) == {"live quantizer, asked"}
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


class PowerOfTwo(qmath.LastValueQuantizer):
    """As it says, it is a LastValueQuantizer; what it computes is another range."""

    def __call__(self, inputs: Any, training: bool, weights: Any) -> Any:  # noqa: ARG002
        end = 2.0 ** np.ceil(np.log2(-np.asarray(weights["min_var"])))
        return qmath.fake_quant_with_min_max_vars(
            inputs, -end, end * (1 - 2.0 ** (1 - self.num_bits)), self.num_bits
        )


class Own:
    """Keeps no range and says nothing."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, inputs: Any, training: bool, weights: Any) -> Any:  # noqa: ARG002
        return self.function(np.asarray(inputs))


class OwnWithRange(Own):
    symmetric = True

    def __call__(self, inputs: Any, training: bool, weights: Any) -> Any:  # noqa: ARG002
        return qmath.fake_quant_with_min_max_vars(
            inputs, weights["min_var"], weights["max_var"], 6, narrow_range=True
        )


def rounded(x: np.ndarray) -> np.ndarray:
    return np.float32(np.clip(np.rint(x * 8), -7, 7) / 8)


def read(
    kernel: Any = None, activation: Any = None, output: Any = None, **more: Any
) -> tuple[QatModel, np.ndarray]:
    """Return a model with these quantizers, and its kernel's floats."""
    wrapper = QuantizeWrapperV2(dense(), {"kernel": kernel} if kernel else {}, activation, output)
    return from_keras(Model(wrapper), **more), wrapper.trainable_weights[0].values


@pytest.mark.parametrize("own", [PowerOfTwo(4, False, True, False), Own(rounded), OwnWithRange(0)])
def test_weights_of_the_users_own_quantizers_are_what_these_return(own: Any) -> None:
    model, values = read(own)
    tensor = model.tensors["d/kernel"]
    state = {"min_var": np.float32(-0.8), "max_var": np.float32(0.7)}
    expected = np.float32(own(values, False, state))
    np.testing.assert_array_equal(tensor.quantize().dequantize(), expected)
    assert tensor.spec.quantizer == type(own).__name__
    found = tensor.provenance["num_bits"]
    kept = isinstance(own, OwnWithRange)
    assert found == ("live quantizer, asked" if kept else "recovered from the values")
    assert tensor.spec.num_bits == (6 if kept else 4)
    assert not any("d/kernel" in note for note in model.notes)


def test_weights_that_stay_float() -> None:
    model, values = read(Own(lambda x: x))
    assert model.tensors["d/kernel"].role == "float"
    assert "d/kernel: Own changes nothing at inference; the tensor is float." in model.notes
    model, values = read(Own(lambda x: np.clip(x, np.float32(-0.1), np.float32(0.1))))
    kernel = model.tensors["d/kernel"]
    assert kernel.role == "float"
    np.testing.assert_array_equal(kernel.values, np.clip(values, np.float32(-0.1), np.float32(0.1)))
    assert any(note.startswith("d/kernel: Own clips") for note in model.notes)


def fails(_: np.ndarray) -> np.ndarray:
    raise ZeroDivisionError("by 0")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (np.sin, r"'model': d/kernel: .* no integers of up to 16 bits.*It is a Own of your own"),
        (fails, r"d/kernel: calling its Own as inference does failed: ZeroDivisionError: by 0"),
        (lambda x: x.astype(float), r"d/kernel: its Own returns float64"),
        (lambda x: x[:1], r"d/kernel: its Own returns values of shape \(1, 4\)"),
    ],
)
def test_weights_whose_quantizers_cannot_be_followed(function: Any, message: str) -> None:
    with pytest.raises(QmathError, match=message):
        read(Own(function))


@pytest.mark.parametrize("place", ["post_activation", "output"])
def test_activations_are_asked(place: str) -> None:
    def model_of(quantizer: Any) -> QatModel:
        return read(None, *([quantizer] if place == "post_activation" else [None, quantizer]))[0]

    own = model_of(Own(lambda x: qmath.fake_quant_with_min_max_vars(x, -2.0, 1.75, 5)))
    found = own.tensors[f"d/{place}"]
    assert (found.spec.num_bits, found.spec.narrow_range, found.spec.quantizer) == (5, False, "Own")
    assert found.provenance["num_bits"] == "recovered from the values"
    with_range = model_of(OwnWithRange(0)).tensors[f"d/{place}"]
    assert (with_range.spec.num_bits, with_range.max) == (6, 3)
    assert with_range.provenance["num_bits"] == "live quantizer, asked"
    idle = model_of(Own(lambda x: x))
    assert f"d/{place}" not in idle.tensors
    assert f"d/{place}: Own changes nothing at inference; the tensor is float." in idle.notes
    assert f"d/{place}" not in model_of(qmath.NoQuantizer()).tensors
    for function in (np.tanh, lambda x: np.clip(x, -1, 1)):
        with pytest.raises(QmathError, match=f"d/{place}: its Own computes something else than"):
            model_of(Own(function))


def test_an_activation_of_other_math_than_its_class() -> None:
    class Snapped(qmath.MovingAverageQuantizer):
        def __call__(self, inputs: Any, training: bool, weights: Any) -> Any:  # noqa: ARG002
            return qmath.fake_quant_with_min_max_vars(inputs, 0.0, 4.0, self.num_bits)

    found = read(None, Snapped(5, False, False, False))[0].tensors["d/post_activation"]
    assert (found.min, found.max, found.spec.num_bits, found.spec.quantizer) == (0, 4, 5, "Snapped")


def test_an_activation_that_is_never_set_is_no_tensor() -> None:
    wrapper = QuantizeWrapperV2(dense(), {"kernel": LAST}, AVERAGE)
    wrapper.layer.activation = lambda x: x
    vars(wrapper.layer)["_inbound_nodes_value"] = [SimpleNamespace(layer=wrapper)]
    model = from_keras(Model(wrapper))
    assert list(model.tensors) == ["d/kernel", "d/bias"]
    assert any(
        note.startswith("Never called: the quantizers of d/post_act") for note in model.notes
    )
    quantized = wrapper._quantize_activations[0]
    for held in (lambda x: quantized(x), [{"a": quantized}], functools.partial(print, quantized)):
        wrapper.layer.activation = held
        assert "d/post_activation" in from_keras(Model(wrapper)).tensors


def test_quantizers_that_the_user_tells() -> None:
    told = {"d/kernel": LAST}
    assert read(LAST, quantizers=told)[0].tensors["d/kernel"].spec.num_bits == 4
    other = {"d/kernel": qmath.LastValueQuantizer(5, False, True, False)}
    with pytest.raises(ContradictionError, match="the live LastValueQuantizer says"):
        read(LAST, quantizers=other)
    model, _ = read(LAST, quantizers=other, force=True)
    assert model.tensors["d/kernel"].spec.num_bits == 5


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


@pytest.mark.parametrize("verb", [qmath.load, qmath.inspect])
def test_what_reads_files_points_to_from_keras(verb: Any) -> None:
    with pytest.raises(QmathError, match=r"a live Model; .* qmath\.from_keras\(model\)"):
        verb(Model(dense()))
