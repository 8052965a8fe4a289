"""Test vectors in a TFLite file, and the graphs that run each step on them."""

from __future__ import annotations

import io
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import OutputError, QatModel
from qmath.containers.tflite.file import parsed
from qmath.exports.bundle import quantize_model
from qmath.exports.tflite.exporter import Tflite
from qmath.exports.tflite.vectors import VECTORS
from reference import consumers
from reference.mistakes.catalogue import MISTAKES
from reference.mistakes.in_tflite import in_tflite
from reference.mistakes.layers import layers_of
from reference.mistakes.models import Exports
from tests.exports import networks
from tests.exports.networks import Network

pytest.importorskip("flatbuffers", reason="the extra tflite is not installed")
needs_litert = pytest.mark.skipif(
    find_spec("ai_edge_litert") is None,
    reason="LiteRT is not installed, or has no wheel for this Python",
)
# By LiteRT's resolver: whose integers it gives.
RUNTIMES = {
    "BUILTIN_REF": "",
    "AUTO": ".xnnpack",
    "BUILTIN_WITHOUT_DEFAULT_DELEGATES": ".litert",
}
# What docs/profiles.md says of: exact ties of a mean, and the last values of a tensor.
NOT_MIRRORED = {
    ("branches", "AUTO"): "directed/globalaveragepooling2d12/output",
    ("combinations", "BUILTIN_WITHOUT_DEFAULT_DELEGATES"): "directed/maximum9/output/rows",
}


def network(name: str, bits: int = 8) -> QatModel:
    model: QatModel = getattr(networks, name)(bits=bits, weight_bits=bits, is_symmetric=True)
    return model


def small(bits: int = 8) -> Network:
    net = Network(5, 4, 3, bits=bits, weight_bits=8, is_symmetric=True)
    net.add("Conv2D", kernel=(2, 2, 3, 4), activation="relu", ends=(0.0, 5.0))
    net.add("Flatten")
    net.add("Dense", kernel=(48, 3), ends=(-9.0, 9.0))
    return net


def written(model: QatModel, vector_bytes: int = 30_000, **options: Any) -> bytes:
    file = io.BytesIO()
    bundle = quantize_model(model, vectors=2, vector_bytes=vector_bytes)
    Tflite(**options).write(bundle, file)
    return file.getvalue()


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(parsed(content, "the file").metadata[VECTORS])) as arrays:
        return dict(arrays)


@cache
def of_network(name: str, bits: int) -> bytes:
    if name == "tied":
        return written(networks.tied(bits), 10_000, weights=f"int{bits}")
    return written(network(name, bits), 10_000)


@needs_litert
@pytest.mark.parametrize(("name", "bits"), [
    ("images", 8), ("images", 4), ("branches", 8), ("combinations", 8), ("functions", 4),
    ("tied", 4), ("tied", 2),
])  # fmt: skip
@pytest.mark.parametrize("resolver", RUNTIMES)
def test_litert_gives_the_integers_of_every_step(name: str, bits: int, resolver: str):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    content = of_network(name, bits)
    arrays = arrays_of(content)
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=getattr(OpResolverType, resolver)
    )
    compared, wrong = 0, {}
    for key in sorted(interpreter.get_signature_list().keys() - {"serving_default"}):
        run = interpreter.get_signature_runner(key)
        expected = arrays.get(f"{key}.expected{RUNTIMES[resolver]}", arrays[f"{key}.expected"])
        for i, integers in enumerate(expected):
            given = {name: arrays[f"{key}.{name}"][i : i + 1] for name in run.get_input_details()}
            (made,) = run(**given)["expected"]
            wrong[key] = wrong.get(key, 0) + int((made != integers).sum())
            compared += made.size
    not_mirrored = NOT_MIRRORED.get((name, resolver))
    assert not {key: n for key, n in wrong.items() if n and key != not_mirrored}
    assert compared > 300


def test_the_steps_and_their_arrays():
    model = small().model()
    content = written(model)
    held, arrays = parsed(content, "the file"), arrays_of(content)
    bundle = quantize_model(model, vectors=2, vector_bytes=30_000)
    assert held.graphs == 4  # of the model; Conv2D, Flatten, Dense
    assert {key.split(".")[0] for key in arrays if key.startswith("directed/")} == {
        "directed/conv2d2/output", "directed/flatten3", "directed/dense4/output",
    }  # fmt: skip
    cases = bundle.directed["conv2d2/output"]
    shifted = cases.inputs["quantizelayer1/output"].astype(int) - 128
    np.testing.assert_array_equal(arrays["directed/conv2d2/output.input.0"], shifted)
    made = arrays["directed/conv2d2/output.expected"].astype(int) + 128
    assert made.dtype != object
    assert 0 < (made != cases.expected).sum() < cases.expected.size / 20  # it rounds otherwise
    assert np.abs(made - cases.expected).max() == 1
    np.testing.assert_array_equal(arrays["directed/conv2d2/output.tags"], cases.tags)
    # The tags hold there, too: each end is reached and cut off.
    assert {made.min(), made.max()} >= {0, 255} or made.max() == 255


@pytest.mark.parametrize("io_type", ["float", "int8", "uint8"])
@needs_litert
def test_vectors_of_the_whole_model(io_type: str):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model = small().model()
    content = written(model, io=io_type)
    arrays = arrays_of(content)
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    run = interpreter.get_signature_runner("serving_default")
    (given,), params = (name for name in run.get_input_details()), quantize_model(model).program
    assert params is not None
    grid = params.quant_params["dense4/output"]
    for x, integers in zip(
        arrays[f"vectors/{given}"], arrays["vectors/dense4/output"], strict=True
    ):
        (made,) = run(**{given: x[np.newaxis]})["dense4"]
        signed = integers.astype(int)
        expected = {
            "float": (signed + 128 - grid.zero_point) * np.float32(grid.scale),
            "int8": signed,
            "uint8": signed + 128,
        }[io_type]
        np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_verify_and_reading(tmp_path: Path):
    model, out = small().model(), tmp_path / "o.tflite"
    qmath.export(model, out, vectors=2, vector_bytes=20_000)
    assert qmath.verify(model, out).ok
    whole = out.read_bytes()
    place = whole.index(arrays_of(whole)["directed/dense4/output.expected"].tobytes()) + 3
    out.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert not qmath.verify(model, out).ok
    out.write_bytes(whole)
    read = qmath.load(out)  # the first graph
    assert {t.name for t in read.tensors.values() if t.role == "weight"} == {
        "conv2d2/kernel", "dense4/kernel",
    }  # fmt: skip
    qmath.export(model, tmp_path / "none.tflite", vectors=0)
    assert VECTORS not in parsed((tmp_path / "none.tflite").read_bytes(), "f").metadata
    qmath.export(model, tmp_path / "usual.tflite")
    assert (tmp_path / "usual.tflite").read_bytes() == (tmp_path / "none.tflite").read_bytes()


def test_steps_that_no_profile_predicts_have_none():
    net = Network(5, 4, 3, bits=8, weight_bits=8, is_symmetric=True)
    net.add("Conv2D", kernel=(2, 2, 3, 4), ends=(-4.0, 4.0))
    net.add("UpSampling2D", size=2, interpolation="bilinear", ends=(-4.0, 4.0))  # in float32
    keys = {key.split(".")[0] for key in arrays_of(written(net.model()))}
    assert "directed/conv2d2/output" in keys
    assert not any(key.startswith("directed/upsampling2d3") for key in keys)


def test_batches_are_refused(tmp_path: Path):
    with pytest.raises(OutputError, match=re.escape("give --vectors 0, or --option batch=1")):
        qmath.export(small().model(), tmp_path / "o.tflite", vectors=1, batch=2)


def test_mistakes_are_killed(tmp_path: Path):
    """In one convolution and one dense layer, with the bytes that an export has by default."""
    exports = Exports(small().model(), tmp_path)
    chosen = [m for m in MISTAKES if m.group in ("clamps", "accumulator", "bias", "zero point")]
    found = in_tflite(exports.model, exports.tflite(), layers_of(exports.arrays()), chosen)
    survived = {name: verdict.survived for name, verdict in found.items() if verdict.survived}
    assert not survived
    assert sum(bool(verdict.killed) for verdict in found.values()) >= 14


@needs_litert
@pytest.mark.parametrize("consumer", ["reference", "default", "tflite-micro"])
def test_a_relu6_by_itself(consumer: str):
    """Of tflite-micro it would leave the scale as it is."""
    if consumer == "tflite-micro":
        pytest.importorskip("tflite_micro", reason="the extra reference is not installed")
    net = Network(5, 4, 3, bits=8, weight_bits=8, is_symmetric=True)
    net.add("Conv2D", kernel=(2, 2, 3, 4), ends=(-5.0, 9.0))
    net.add("ReLU", max_value=6.0, ends=(-1.0, 7.0))
    bundle = quantize_model(net.model())
    assert consumers.compared(bundle, consumer, 3).steps == {}


@needs_litert
def test_other_runtimes_take_the_file():
    pytest.importorskip("tflite_micro", reason="the extra reference is not installed")
    bundle = quantize_model(small().model(), vectors=1, vector_bytes=10_000)
    for consumer in ("reference", "default", "tflite-micro"):
        count = consumers.compared(bundle, consumer, 3)
        assert (count.differing, count.in_float) == (0, 0)
