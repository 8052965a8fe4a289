import json
from dataclasses import replace
from importlib import resources

import jsonschema
import numpy as np
import pytest

from qmath import (
    MissingSettingsError,
    QatModel,
    QatTensor,
    QmathError,
    QuantizedTensor,
    export,
)
from qmath.containers.lazy_array import LazyArray
from qmath.exports.bundle import FloatTensor, QuantizedRange, quantize_model
from qmath.model import Hint
from tests.exports.models import CONV, DENSE, UNKNOWN, model, ranged, unknown, weight


def test_every_weight_has_the_integers_of_its_tensor():
    source = model()
    bundle = quantize_model(source)
    for name, tensor in source.tensors.items():
        if tensor.role == "weight":
            alone, record = tensor.quantize(), bundle.tensors[name]
            assert isinstance(record, QuantizedTensor)
            assert record.signed
            np.testing.assert_array_equal(record.values, alone.values)
            np.testing.assert_array_equal(record.dequantize(), alone.dequantize())


def test_weights_can_count_from_zero():
    plain, unsigned = quantize_model(model()), quantize_model(model(), signed=False)
    for name, tensor in model().tensors.items():
        if tensor.role == "weight":
            a, b = plain.tensors[name], unsigned.tensors[name]
            assert b.values.dtype.kind == "u"
            half = 2 ** (a.num_bits - 1)
            np.testing.assert_array_equal(b.values, a.values.astype(np.int32) + half)
            np.testing.assert_array_equal(b.dequantize(), a.dequantize())
            assert unsigned.manifest["tensors"][name]["signed"] is False


def test_activations_have_an_unsigned_zero_point():
    record = quantize_model(model()).tensors["dw/post_activation"]
    assert isinstance(record, QuantizedRange)
    assert not record.signed
    assert record.scale == np.float32(5.5 / 255)
    assert record.zero_point == 139


def test_floats_are_read_when_asked_for():
    class Lazy:
        shape, dtype = (3,), np.dtype(np.float32)
        reads = 0

        def __array__(self, dtype=None, copy=None):
            Lazy.reads += 1
            return np.zeros(3, dtype or np.float32)

    bundle = quantize_model(model(**{"conv/bias": QatTensor("conv/bias", "float", Lazy())}))
    assert Lazy.reads == 0
    assert isinstance(bundle.tensors["conv/bias"], FloatTensor)
    assert dict(bundle.arrays())["conv/bias"].shape == (3,)
    assert Lazy.reads == 1


def test_unknown_activation_is_exported_as_a_range_with_a_note():
    bundle = quantize_model(model(**{"dw/post_activation": unknown("dw/post_activation")}))
    entry = bundle.manifest["tensors"]["dw/post_activation"]
    assert entry["num_bits"] is None
    assert (entry["min"], entry["max"]) == ([-1.0], [2.0])
    assert "dw/post_activation" not in bundle.tensors
    assert "scale_bits" not in entry
    assert len(bundle.manifest["notes"]) == 2
    assert '--quantizer "MyConfig.activation=' in bundle.manifest["notes"][1]


def test_strict_refuses_unknown_activations():
    source = model(**{"dw/post_activation": unknown("dw/post_activation")})
    with pytest.raises(MissingSettingsError, match=r'dw/post_activation .*--quantizer "MyConfig'):
        quantize_model(source, strict=True)


def test_unknown_weights_are_listed_at_once():
    hints = {
        name: replace(weight(name, np.ones((2, 2), np.float32), UNKNOWN),
                      hint=Hint(f'--quantizer "{name}=X()"', "y"))
        for name in ("dense/kernel", "other/kernel")
    }  # fmt: skip
    activation = {"dw/post_activation": unknown("dw/post_activation")}
    with pytest.raises(MissingSettingsError) as caught:
        quantize_model(model(**hints, **activation))
    message = str(caught.value)
    assert '--quantizer "dense/kernel=X()" --quantizer "other/kernel=X()" (y)' in message
    assert "dw/post_activation" not in message
    assert "\n" not in message


def test_layouts_move_axes_scale_and_axis():
    plain, moved = quantize_model(model()), quantize_model(model(), layouts=["OHWI", "OI"])
    entries = moved.manifest["tensors"]
    conv, conv_plain = moved.tensors["conv/kernel"], plain.tensors["conv/kernel"]
    np.testing.assert_array_equal(conv.values, conv_plain.values.transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(conv.dequantize(), conv_plain.dequantize().transpose(3, 0, 1, 2))
    assert conv.scale.shape == conv.zero_point.shape == (5, 1, 1, 1)
    assert conv.values.flags.c_contiguous
    assert entries["conv/kernel"]["axis"] == 0
    assert entries["conv/kernel"]["layout"] == "OHWI"
    assert entries["conv/kernel"]["source_layout"] == "HWIO"
    up = moved.tensors["up/kernel"]
    np.testing.assert_array_equal(
        up.values, plain.tensors["up/kernel"].values.transpose(2, 0, 1, 3)
    )
    assert entries["up/kernel"]["source_layout"] == "HWOI"
    assert entries["dense/kernel"]["shape"] == [3, 16]
    assert entries["dw/depthwise_kernel"]["layout"] == "HWIM"
    assert entries["dw/depthwise_kernel"]["axis"] == 3
    assert entries["conv/bias"]["layout"] is None


def test_float_kernels_follow_layouts_too():
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    kernel = {"conv/kernel": QatTensor("conv/kernel", "float", values)}
    bundle = quantize_model(model(**kernel), layouts=["OHWI"])
    np.testing.assert_array_equal(
        np.asarray(bundle.tensors["conv/kernel"]), values.transpose(3, 0, 1, 2)
    )
    assert bundle.manifest["tensors"]["conv/kernel"]["shape"] == [4, 1, 2, 3]


@pytest.mark.parametrize(
    ("layouts", "words"),
    [(["OHW"], "'OHW' matches no tensor.*HWIM, HWIO, HWOI, IO"),
     (["OHWI", "NCHW"], "'NCHW' matches no tensor"),
     (["OHWI", "OIHW"], "OHWI and OIHW both apply to conv/kernel")],
)  # fmt: skip
def test_layouts_that_do_not_fit_are_refused(layouts, words):
    with pytest.raises(QmathError, match=words):
        quantize_model(model(), layouts=layouts)


def test_layout_of_a_model_without_graph_is_refused():
    with pytest.raises(QmathError, match="unknown"):
        quantize_model(replace(model(), graph=None), layouts=["OHWI"])


@pytest.mark.parametrize("name", ["dense/kernel.scale", "dense/kernel.zero_point", "manifest"])
def test_colliding_names_are_refused(name):
    extra = {name: QatTensor(name, "float", np.zeros(1, np.float32))}
    with pytest.raises(QmathError, match=rf"{name}.*is also that of"):
        quantize_model(model(**extra))


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "a\udc80b"])
def test_names_that_no_file_can_hold_are_refused(name):
    with pytest.raises(QmathError, match="characters that a file cannot hold"):
        quantize_model(model(**{name: QatTensor(name, "float", np.zeros(1, np.float32))}))


def test_nan_weights_are_refused():
    values = np.ones((16, 3), np.float32)
    tensor = replace(weight("dense/kernel", values, DENSE), values=values * np.nan)
    with pytest.raises(QmathError, match=r"dense/kernel: .*NaN"):
        quantize_model(model(**{"dense/kernel": tensor}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_of_a_file_that_are_not_finite_are_refused(value, tmp_path):
    class File:
        path = "model.h5"

        def read(self, path):  # noqa: ARG002
            return np.array([0, value], np.float32)

    bias = QatTensor("conv/bias", "float", LazyArray(File(), "bias", (2,), np.dtype(np.float32)))
    with pytest.raises(QmathError, match="conv/bias holds values that are not finite"):
        export(model(**{"conv/bias": bias}), tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", [UNKNOWN, DENSE])
def test_ranges_that_are_not_finite_are_refused(spec):
    tensor = ranged("dw/post_activation", float("nan"), 1.0, spec)
    with pytest.raises(QmathError, match=r"dw/post_activation: .*not finite"):
        quantize_model(model(**{"dw/post_activation": tensor}))


def test_manifest_counts_clipped_and_near_ties():
    values = np.float32([[-1.5, -1.0, 0.0625, 0.1], [0.875, 0.9, 0.95, 0.0]])
    tensor = QatTensor("dense/kernel", "weight", values, np.float32(-1), np.float32(0.875),
                       replace(DENSE, num_bits=4))  # fmt: skip
    entry = quantize_model(QatModel({"dense/kernel": tensor})).manifest["tensors"]["dense/kernel"]
    assert entry["clipped"] == 3
    assert entry["near_ties"] == 1
    assert (entry["min_bits"], entry["scale_bits"]) == (["0xbf800000"], ["0x3e000000"])


def test_dead_channels_have_scale_zero():
    values = np.zeros((2, 2), np.float32)
    bundle = quantize_model(QatModel({"d/kernel": weight("d/kernel", values, CONV)}))
    record = bundle.tensors["d/kernel"]
    assert not record.scale.any()
    np.testing.assert_array_equal(record.values, np.broadcast_to(record.zero_point, (2, 2)))


def test_empty_model_has_a_manifest():
    assert quantize_model(QatModel({})).manifest["tensors"] == {}


@pytest.mark.parametrize(("layouts", "signed"), [((), True), (("OHWI", "OI"), False)])
def test_manifest_fits_the_schema(layouts, signed):
    schema = json.loads((resources.files("qmath.exports") / "manifest.schema.json").read_text())
    changes = {"dw/post_activation": unknown("dw/post_activation")}
    bundle = quantize_model(model(**changes), layouts=layouts, signed=signed)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(json.loads(json.dumps(bundle.manifest, allow_nan=False)))
    broken = json.loads(json.dumps(bundle.manifest))
    del broken["tensors"]["conv/kernel"]["axis"]
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)


def test_layers_say_what_a_deployment_needs():
    manifest = quantize_model(model()).manifest
    conv = manifest["layers"][2]
    assert conv == {
        "name": "conv", "layer": "conv", "class_name": "Conv2D", "inputs": ["quantize_layer"],
        "quantize_config": "MyConfig",
        "config": {"strides": [1, 1], "activation": "relu", "scale": ["inf"]},
    }  # fmt: skip
    assert (manifest["inputs"], manifest["outputs"]) == (["image"], ["dense"])
    assert manifest["source"] == {"file": "hand made.h5", "sha256": "0" * 64}


def test_what_has_no_integers_says_why():
    with pytest.raises(QmathError, match="x: training left this tensor float"):
        QatTensor("x", "float", np.ones(3)).quantize()
    with pytest.raises(QmathError, match=r"x: the file holds its range, not its values"):
        ranged("x", -1, 1).quantize()
    with pytest.raises(QmathError, match="x: the model holds no range for it"):
        quantize_model(QatModel({"x": QatTensor("x", "activation", spec=UNKNOWN)}))


def test_what_stands_in_the_way_of_an_integer_model_is_no_assumption():
    notes = ("Assumed: that nothing quantizes conv.", "no integer model is exported: conv: odd")
    bundle = quantize_model(replace(model(), graph=None, notes=notes))
    assert bundle.obstacles == "no integer model is exported: conv: odd"
