"""Against a stand-in for CMSIS-NN; the header in ``cmsis_nn`` says what it takes over from it."""

from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath import OutputError
from qmath.exports.bundle import quantize_model
from qmath.exports.cmsis_nn.exporter import CmsisNn
from qmath.exports.cmsis_nn.layers import layers
from qmath.exports.cmsis_nn.vectors import expected
from qmath.exports.writing import export
from tests.exports import networks
from tests.exports.compiling import compiled, needs_compiler, run
from tests.exports.models import model

WITH_STAND_IN = ("-DQM_WITH_CMSIS_NN", f"-I{Path(__file__).parent / 'cmsis_nn'}")
SAMPLES = "reference/samples"


LIKE_MVE = (*WITH_STAND_IN, "-DNN_LIKE_MVE")  # where the caller sums up a dense layer's weights


def checked(place) -> str:
    """Compile an export's check with the layers, and run it; return its output."""
    status, output = run(compiled(place, options=WITH_STAND_IN))
    assert status == 0, output
    assert run(compiled(place, options=LIKE_MVE)) == (0, output)
    return output


@needs_compiler
@pytest.mark.parametrize("sample", ["default8", "nbit4"])
def test_samples(tmp_path, sample):
    pytest.importorskip("h5py")
    place = tmp_path / "out"
    export(f"{SAMPLES}/{sample}.h5", place, format="cmsis-nn", vectors=3)
    assert run(compiled(place)) == (0, "ok: 12 arrays\n")
    assert checked(place) == "3 layers, 3 vectors, double rounding\nok: 12 arrays\n"
    assert qmath.verify(f"{SAMPLES}/{sample}.h5", place).ok
    text = (place / "model_layers.h").read_text()
    width = 4 if sample == "nbit4" else 8
    assert f"arm_convolve_wrapper_s{width}(" in text
    assert f"arm_depthwise_conv_wrapper_s{width}(" in text
    assert ("arm_fully_connected_s4(" in text) == (width == 4)


@pytest.mark.once
@needs_compiler
@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("weight_bits", [8, 4, 3])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_geometries(tmp_path, channels, weight_bits, bits):
    of = networks.layers(channels, weight_bits=weight_bits, bits=bits)
    place = tmp_path / "out"
    bundle = export(of, place, format="cmsis-nn", vectors=2)
    found, _ = layers(bundle.program)
    assert len(found) == 14 + (channels % 2 == 0)
    assert {layer.is_s4 for layer in found} == ({False} if weight_bits == 8 else {False, True})
    results = expected(bundle, found, "double")[1].values()
    assert all(np.unique(result).size > 3 for result in results)  # not saturated
    assert f"{len(found)} layers, 2 vectors" in checked(place)


@needs_compiler
@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("channels", [3, 4])
def test_pools_and_sums(tmp_path, channels, bits):
    of = networks.pools_and_sums(channels, bits=bits)
    place = tmp_path / "out"
    bundle = export(of, place, format="cmsis-nn", vectors=2)
    found, others = layers(bundle.program)
    assert not others
    kinds = [layer.kind for layer in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "conv": 2, "avgpool": 2, "max_pool": 3, "add": 3, "transpose_conv": 7
    }  # fmt: skip
    results = expected(bundle, found, "double")[1].values()
    assert all(np.unique(result).size > 3 for result in results)  # not saturated
    assert f"{len(found)} layers, 2 vectors" in checked(place)


def test_which_transposed_convolutions_it_computes():
    """CMSIS-NN leaves rows out that no kernel reaches, and has no dilation."""
    net = networks.Network(5, 4, 3, is_symmetric=True)
    start, more = net.nodes[-1].name, {"per_axis": False, "ends": (-5.13, 6.07)}
    options = (
        ({"padding": "same"}, True),
        ({"output_padding": 1, "padding": "same"}, True),
        ({"output_padding": 1}, False),
        ({"strides": (1, 1), "dilation_rate": 2}, False),
        ({"strides": (1, 4)}, False),  # its buffer is too small
    )
    for config, _ in options:
        kernel = (3, 3, 4, 3)
        net.add("Conv2DTranspose", start, kernel=kernel, **{"strides": (2, 2), **config}, **more)
    names = [node.name for node in net.nodes[2:]]
    found, others = layers(quantize_model(net.model(*names)).program)
    taken = [f"{name}/output" for name, (_, has) in zip(names, options, strict=True) if has]
    assert [layer.name for layer in found] == taken
    assert set(others.values()) == {"CMSIS-NN computes no transposed convolution of this geometry"}


def test_what_is_moved_before_it_is_added():
    net = networks.Network(4, 4, 2)
    start = net.nodes[-1].name
    rows = net.add("AveragePooling2D", start, pool_size=(1, 4), ends=(-0.8, 0.9))
    net.add("Add", start, rows, ends=(-1.9, 2.3))
    found, others = layers(quantize_model(net.model()).program)
    assert [layer.kind for layer in found] == ["avgpool"]
    assert others == {"add3/output": f"{rows}/output is moved (broadcast) before it is added"}


def test_where_packed_weights_would_be_misread():
    """CMSIS-NN's general depthwise kernel for 4 bits wants an even number of channels."""
    for channels in (3, 4):
        found, _ = layers(quantize_model(networks.layers(channels, weight_bits=4)).program)
        for layer in found:
            if layer.kind == "dw_conv":
                is_general = layer.window.dilation != (1, 1) or layer.out_shape[2] > channels
                assert layer.is_s4 == (channels == 4 or not is_general)


def test_weights_are_ordered_signed_and_packed():
    of = networks.layers(4, weight_bits=4)
    bundle = quantize_model(of, vectors=1)
    found, _ = layers(bundle.program)
    first = found[0]
    integers = of.tensors["conv2d2/kernel"].quantize().values
    np.testing.assert_array_equal(first.weights, integers.transpose(3, 0, 1, 2))
    text = dict(CmsisNn().files(bundle))["model_data.c"].decode()
    body = text.split("const int8_t model_conv2d2_kernel[90] = {")[1].split("}")[0]
    packed = np.array([int(number) for number in body.replace(",", " ").split()])
    flat = first.weights.ravel()
    np.testing.assert_array_equal(packed & 15, flat[::2] & 15)
    np.testing.assert_array_equal(packed >> 4, flat[1::2])


@needs_compiler
def test_a_negative_gamma_turns_the_weights(tmp_path):
    net = networks.Network(5, 5, 2, is_symmetric=True)
    net.add("Conv2D", kernel=(3, 3, 2, 3))
    name = net.add("BatchNormalization", epsilon=1e-3)
    for key, values in {"gamma": [1, -2, 0], "beta": [1, 0, 1], "moving_mean": [0, 1, 0],
                        "moving_variance": [1, 1, 2]}.items():  # fmt: skip
        net.tensors.append(qmath.QatTensor(f"{name}/{key}", "float", np.float32(values)))
    net.add("ReLU", ends=(0.0, 8.0))
    (layer,), _ = layers(quantize_model(net.model()).program)
    integers = next(t for t in net.tensors if t.role == "weight").quantize().values
    signed = integers.astype(int) * [1, -1, 0]
    np.testing.assert_array_equal(layer.weights, signed.transpose(3, 0, 1, 2))
    export(net.model(), tmp_path / "out", format="cmsis-nn")
    checked(tmp_path / "out")


CHANGES = {
    "padding": (".padding = {.w = 1", ".padding = {.w = 0", "conv2d2/output"),
    "sums of weights": ("_size_dense15_output() > 0)", "_size_dense15_output() < 0)", "dense15"),
    "a buffer that is too small": (
        "{\n    return arm_conv",
        "{\n    return -8 + arm_conv",
        "status",
    ),
}


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found(tmp_path, change):
    place = tmp_path / "out"
    export(networks.layers(2, weight_bits=8), place, format="cmsis-nn")
    text = (place / "model_layers.h").read_text()
    before, after, named = CHANGES[change]
    assert before in text
    (place / "model_layers.h").write_text(text.replace(before, after, 1))
    status, output = run(compiled(place, options=LIKE_MVE))
    assert status == 1
    assert named in output.splitlines()[0]


@needs_compiler
def test_columns_that_no_window_reaches(tmp_path):
    """CMSIS-NN's kernel for one row and MVE takes the last column for padding, if it is told."""
    net = networks.Network(8, 4, is_symmetric=True)
    net.add("Conv1D", kernel=(3, 4, 2), strides=(2,), ends=(-4.3, 5.1))
    export(net.model(), tmp_path / "out", format="cmsis-nn")
    checked(tmp_path / "out")
    text = (tmp_path / "out" / "model_layers.h").read_text()
    assert "_output_input = {1, 1, 7, 4};" in text


@needs_compiler
def test_parts_of_a_concatenation(tmp_path):
    net = networks.Network(5, 5, 2, is_symmetric=True)
    start = net.nodes[-1].name
    parts = [net.add("Conv2D", start, kernel=(3, 3, 2, n)) for n in (2, 3)]
    pool = {"pool_size": (3, 3), "strides": (1, 1)}
    parts += [net.add("AveragePooling2D", start, **pool), net.add("Add", parts[0], parts[0])]
    net.add("Concatenate", *parts[:3], axis=-1, ends=(-6.1, 5.2))
    export(net.model(), tmp_path / "out", format="cmsis-nn")
    assert "3 layers" in checked(tmp_path / "out")


def test_what_is_not_in_it_is_named():
    bundle = quantize_model(networks.images(bits=6, weight_bits=4))
    header = dict(CmsisNn().files(bundle))["model.h"].decode()
    assert "Not in here: leakyrelu6/output: TFLite has no operation for a leaky ReLU of" in header
    assert "Not in here: permute9: moves integers" in header


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        (model(), {}, r"needs an integer model, and there is none; notes: .*a note"),
        (networks.images(bits=16, weight_bits=16), {}, "nothing in this model is a layer of CMSIS"),
        (networks.layers(2, weight_bits=8), {"rounding": "up"}, "is not one of double, single"),
        (networks.layers(2, weight_bits=8), {"prefix": "2"}, "prefix='2'"),
    ],
)
def test_refusals(tmp_path, of, options, message):
    with pytest.raises(OutputError, match=message):
        export(of, tmp_path / "out", format="cmsis-nn", **options)
    assert not (tmp_path / "out").exists()


def test_equal_models_give_equal_bytes():
    bundles = [quantize_model(networks.layers(2, weight_bits=4), vectors=1) for _ in range(2)]
    assert dict(CmsisNn().files(bundles[0])) == dict(CmsisNn().files(bundles[1]))
