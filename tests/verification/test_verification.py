import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath import FileFormatError, MissingSettingsError, QatModel, QatTensor, QuantSpec
from qmath.exports.writing import export
from qmath.kernels import exact
from qmath.verification.check import verify
from tests.exports.models import model, unknown, weight

SAMPLES = Path("reference/samples")


def tampered(path, change):
    """Rewrite an .npz with `change`, a function of its arrays and its manifest."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    manifest = json.loads(arrays.pop("manifest").tobytes())
    change(arrays, manifest)
    arrays["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("layouts", [(), ("OHWI", "OI", "MHWI")])
def test_an_export_is_as_the_model_says(tmp_path, layouts, signed):
    export(model(), tmp_path / "out.npz", layouts=layouts, signed=signed)
    result = verify(model(), tmp_path / "out.npz")
    assert result.ok, result.differences
    assert result.tensors == 11
    assert result.elements == sum(
        np.size(t.values) for t in model().tensors.values() if t.values is not None
    ) + 2 * (5 + 1 + 1 + 1 + 5)
    assert result.differing == 0


def test_unknown_activations_are_compared_by_range(tmp_path):
    source = model(**{"up/post_activation": unknown("up/post_activation")})
    export(source, tmp_path / "out.npz")
    assert verify(source, tmp_path / "out.npz").ok
    known = verify(model(), tmp_path / "out.npz").differences
    assert "arrays: up/post_activation.scale, up/post_activation.zero_point missing; " in known[0]
    assert [line for line in known if "verify with the options that export had" in line] == [
        known[0]
    ]


def test_the_file_of_another_model_is_named_once(tmp_path):
    qmath.export(SAMPLES / "default8.h5", tmp_path / "out.npz")
    result = verify(SAMPLES / "nbit4.h5", tmp_path / "out.npz")
    assert len(result.differences) > 10
    assert "made from another model" in result.differences[0]
    assert not any("options that export had" in line for line in result.differences)


@pytest.mark.parametrize("is_file_live", [True, False])
def test_the_export_of_a_live_model_equals_that_of_its_file(tmp_path, is_file_live):
    saved = qmath.load(SAMPLES / "default8.h5")
    asked = "live quantizer, asked"
    tensors = {
        name: replace(t, provenance=dict.fromkeys(t.provenance, asked) | {"per_axis": "graph"})
        for name, t in saved.tensors.items()
        if t.role != "float"
    }
    tensors = saved.tensors | tensors
    live = replace(saved, tensors=tensors, files=None)
    exported, other = (live, saved) if is_file_live else (saved, live)
    qmath.export(exported, tmp_path / "out.npz")
    result = verify(other, tmp_path / "out.npz")
    assert result.ok, result.differences
    tampered(tmp_path / "out.npz", lambda _, m: m["tensors"]["conv1/kernel"].update(num_bits=4))
    assert "num_bits of conv1/kernel" in " ".join(verify(other, tmp_path / "out.npz").differences)


def told(name):
    """Return a model as the user told it to export, and the same without what was told."""
    tensor = model().tensors[name]
    fields = ("quantizer", "num_bits", "symmetric", "narrow_range")
    with_settings = replace(tensor, provenance=dict.fromkeys(fields, "user"))
    bare = replace(tensor, spec=QuantSpec(per_axis=tensor.spec.per_axis), provenance={})
    return model(**{name: with_settings}), model(**{name: bare})


@pytest.mark.parametrize("name", ["dense/kernel", "conv/kernel", "up/post_activation"])
def test_settings_told_to_export_need_not_be_repeated(tmp_path, name):
    with_settings, bare = told(name)
    export(with_settings, tmp_path / "out.npz")
    assert verify(with_settings, tmp_path / "out.npz").assumed == ()
    result = verify(bare, tmp_path / "out.npz")
    assert result.ok, result.differences
    assert result.assumed == (name,)


LAST = qmath.LastValueQuantizer(
    num_bits=4, per_axis=False, symmetric=True, narrow_range=False
)  # fmt: skip
AVERAGE4 = qmath.MovingAverageQuantizer(
    num_bits=4, per_axis=False, symmetric=False, narrow_range=False
)
FIXED = qmath.FixedQuantizer(num_bits=8, init_min=-1.0, init_max=0.5, narrow_range=True)


@pytest.mark.parametrize(
    "quantizers",
    [{"MyConfig.weights": LAST}, {"MyConfig.activation": AVERAGE4}, {"dense/kernel": FIXED},
     {"MyConfig.weights": LAST, "MyConfig.activation": AVERAGE4, "dense/kernel": FIXED}],
    ids=lambda quantizers: "+".join(quantizers),
)  # fmt: skip
def test_settings_told_to_the_export_of_a_file_need_not_be_repeated(tmp_path, quantizers):
    path, source = tmp_path / "out.npz", "reference/samples/question.h5"
    bundle = qmath.export(qmath.load(source, quantizers), path)
    told = [name for name, entry in bundle.manifest["tensors"].items()
            if "user" in entry.get("evidence", {}).values()]  # fmt: skip
    result = verify(source, path)
    assert result.ok, result.differences
    assert sorted(result.assumed) == sorted(told)
    repeated = verify(qmath.load(source, quantizers), path)
    assert repeated.ok, repeated.differences
    assert repeated.assumed == ()

    def flip(arrays, _):
        arrays["conv1/kernel"][0, 0, 0, 1] ^= 1

    tampered(path, flip)
    assert verify(source, path).differing == 1


def test_a_told_range_is_checked_against_what_follows(tmp_path):
    path, source = tmp_path / "out.npz", "reference/samples/question.h5"
    qmath.export(qmath.load(source, {"dense/kernel": FIXED}), path)

    def widen_range(_, manifest):
        manifest["tensors"]["dense/kernel"]["max"] = [0.75]

    tampered(path, widen_range)
    result = verify(source, path)
    assert any("max_bits of dense/kernel" in line for line in result.differences)
    assert result.differing > 10


@pytest.mark.parametrize(
    "change",
    [{"max": "wide"}, {"max": [None]}, {"min": [1e300]}, {"min": []}, {"narrow_range": 1},
     {"quantizer": "LastValueQuantizer"}, {"op": "none"}, {"role": "activation"}],
    ids=str,
)  # fmt: skip
def test_damaged_told_ranges_are_refused(tmp_path, change):
    path, source = tmp_path / "out.npz", "reference/samples/question.h5"
    qmath.export(qmath.load(source, {"dense/kernel": FIXED}), path)
    tampered(path, lambda _, manifest: manifest["tensors"]["dense/kernel"].update(change))
    with pytest.raises(FileFormatError, match=r"out\.npz: .*settings of dense/kernel are damaged"):
        verify(source, path)


@pytest.mark.parametrize("name", ["question", "default8", "nbit4"])
def test_what_the_model_shows_cannot_be_called_told(tmp_path, name):
    path, source = tmp_path / "out.npz", f"reference/samples/{name}.h5"
    qmath.export(source, path)

    def call_all_told(_, manifest):
        for entry in manifest["tensors"].values():
            for field in entry.get("evidence", ()):
                if entry[field] is not None:
                    entry["evidence"][field] = "user"

    tampered(path, call_all_told)
    result = verify(source, path)
    assert any("provenance of conv1/kernel: per_axis: the file holds 'user'" in line
               for line in result.differences)  # fmt: skip
    if name != "question":
        assert any("conv1/kernel: num_bits: the" in line for line in result.differences)


@pytest.mark.parametrize("source", [{}, [], 3, None, "config"])
def test_strange_evidence_is_found(tmp_path, source):
    export(model(), tmp_path / "out.npz")

    def say(_, manifest):
        manifest["tensors"]["conv/kernel"]["evidence"] = {"num_bits": source}

    tampered(tmp_path / "out.npz", say)
    assert verify(model(), tmp_path / "out.npz").ok == (source is None)


def test_integers_must_follow_from_told_settings(tmp_path):
    with_settings, bare = told("dense/kernel")
    export(with_settings, tmp_path / "out.npz")

    def say_bits(_, manifest):
        manifest["tensors"]["dense/kernel"]["num_bits"] = 6

    tampered(tmp_path / "out.npz", say_bits)
    result = verify(bare, tmp_path / "out.npz")
    assert any("dense/kernel.scale: " in line for line in result.differences)
    assert result.differing > 10


@pytest.mark.parametrize("bits", [None, "4", 1, 17, True, [4]])
def test_damaged_told_settings_are_refused(tmp_path, bits):
    with_settings, bare = told("dense/kernel")
    export(with_settings, tmp_path / "out.npz")

    def say_bits(_, manifest):
        manifest["tensors"]["dense/kernel"]["num_bits"] = bits

    tampered(tmp_path / "out.npz", say_bits)
    with pytest.raises(FileFormatError, match="settings of dense/kernel are damaged"):
        verify(bare, tmp_path / "out.npz")


def test_damage_is_refused_found_or_harmless(tmp_path):
    path = tmp_path / "out.npz"
    export(model(), path)
    data = path.read_bytes()
    outcomes = {"refused": 0, "found": 0, "harmless": 0}
    for at in np.random.default_rng(0).integers(0, len(data), 150):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        try:
            outcomes["harmless" if verify(model(), path).ok else "found"] += 1
        except FileFormatError:
            outcomes["refused"] += 1
    # A zip archive's dates and attributes say nothing about its content.
    assert outcomes["refused"] > 5 * outcomes["harmless"]


def flip_integer(arrays, _):
    arrays["conv/kernel"][1, 2, 0, 3] ^= 1


def flip_scale_bit(arrays, _):
    arrays["conv/kernel.scale"].view(np.uint32)[2] ^= 1


def change_zero_point(arrays, _):
    arrays["dw/post_activation.zero_point"] += 1


def flip_float(arrays, _):
    arrays["dense/bias"].view(np.uint16)[0] ^= 1


def drop_tensor(arrays, _):
    del arrays["dense/kernel"]


def drop_scale(arrays, _):
    del arrays["dense/kernel.scale"]


def add_tensor(arrays, _):
    arrays["stranger"] = np.zeros(2)


def widen(arrays, _):
    arrays["dense/kernel"] = arrays["dense/kernel"].astype(np.int16)


def transpose(arrays, _):
    arrays["dense/kernel"] = arrays["dense/kernel"].T.copy()


def flatten_scale(arrays, _):
    arrays["conv/kernel.scale"] = arrays["conv/kernel.scale"].reshape(1, 5)


def say_other_layout(_, manifest):
    manifest["tensors"]["conv/kernel"]["layout"] = "WHIO"


def say_nonsense_layout(_, manifest):
    manifest["tensors"]["conv/kernel"]["layout"] = "ABCD"


def say_other_layouts(_, manifest):
    manifest["tensors"]["conv/kernel"] |= {"layout": "WHOI", "source_layout": "WHOI"}


def say_nonsense_layouts(_, manifest):
    manifest["tensors"]["conv/kernel"] |= {"layout": "abcd", "source_layout": "abcd"}


def forget_layouts(_, manifest):
    manifest["tensors"]["conv/kernel"] |= {"layout": None, "source_layout": None}


def invent_layout(_, manifest):
    manifest["tensors"]["conv/bias"] |= {"layout": "O", "source_layout": "O"}


def say_other_formula(_, manifest):
    manifest["reconstruction"] = "values * scale"


def say_other_bits(_, manifest):
    manifest["tensors"]["conv/kernel"]["num_bits"] = 8


def say_other_scale(_, manifest):
    manifest["tensors"]["conv/kernel"]["scale_bits"][0] = "0x3f800000"


def say_other_range(_, manifest):
    manifest["tensors"]["dw/post_activation"]["min"] = [-7.0]


def say_fewer_clipped(_, manifest):
    manifest["tensors"]["dw/depthwise_kernel"]["clipped"] += 1


def say_other_near_ties(_, manifest):
    manifest["tensors"]["conv/kernel"]["near_ties"] += 1


def forget_entry(_, manifest):
    del manifest["tensors"]["dense/bias"]


def say_other_strides(_, manifest):
    manifest["layers"][2]["config"]["strides"] = [2, 2]


def forget_strides(_, manifest):
    del manifest["layers"][2]["config"]["strides"]


def say_other_inputs(_, manifest):
    manifest["layers"][2]["inputs"] = ["image"]


def forget_layer(_, manifest):
    del manifest["layers"][0]


def say_other_axis(_, manifest):
    manifest["tensors"]["conv/kernel"]["axis"] = 0


CHANGES = {
    flip_integer: r"conv/kernel\[1, 2, 0, 3\]: the file holds .* \(1 of 90 differ\)",
    flip_scale_bit: r"conv/kernel\.scale\[2\]: ",
    change_zero_point: r"dw/post_activation\.zero_point: the file holds 140, the model gives 139",
    flip_float: r"dense/bias\[0\]: ",
    drop_tensor: "arrays: dense/kernel missing; the file was edited or cut; export again",
    drop_scale: "arrays: dense/kernel.scale missing; the file was edited or cut",
    add_tensor: "arrays: stranger unexpected; the file was edited or cut",
    widen: "dtype of dense/kernel: the file holds 'int16'",
    transpose: "shape of dense/kernel: ",
    flatten_scale: r"shape of conv/kernel\.scale: the file holds \[1, 5\]",
    say_other_layout: "conv/kernel",
    say_nonsense_layout: "layout of conv/kernel: 'ABCD' does not fit 'HWIO'",
    say_other_layouts: "source_layout of conv/kernel: the file holds .WHOI., the model gives .HW",
    say_nonsense_layouts: "source_layout of conv/kernel: the file holds 'abcd'",
    forget_layouts: "source_layout of conv/kernel: the file holds None",
    invent_layout: "source_layout of conv/bias: the file holds 'O', the model gives None",
    say_other_formula: "reconstruction: the file holds 'values . scale'",
    say_other_bits: "num_bits of conv/kernel: the file holds 8, the model gives 4",
    say_other_scale: "scale_bits of conv/kernel",
    say_other_range: r"min of dw/post_activation: the file holds \[-7.0\]",
    say_fewer_clipped: "clipped of dw/depthwise_kernel",
    say_other_near_ties: "near_ties of conv/kernel",
    forget_entry: "tensors in the manifest: ",
    say_other_strides: r"strides of layer conv: the file holds \[2, 2\]",
    forget_strides: "strides of layer conv: the file holds None",
    say_other_inputs: "inputs of layer conv: ",
    forget_layer: "layers: ",
    say_other_axis: "axis of conv/kernel: the file holds 0, the model gives 3",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_found(tmp_path, change):
    path = tmp_path / "out.npz"
    export(model(), path)
    tampered(path, change)
    result = verify(model(), path)
    assert not result.ok
    assert any(re.search(CHANGES[change], line) for line in result.differences), result
    assert all("\n" not in line for line in result.differences)


def test_rewriting_alone_changes_nothing(tmp_path):
    export(model(), tmp_path / "out.npz")
    tampered(tmp_path / "out.npz", lambda *_: None)
    assert verify(model(), tmp_path / "out.npz").ok


@pytest.mark.parametrize(
    "change",
    [lambda manifest: manifest.update(tensors=[]), lambda manifest: manifest.update(layers=None),
     lambda manifest: manifest["tensors"].update({"conv/kernel": 3}),
     lambda manifest: manifest.pop("source")],
)  # fmt: skip
def test_malformed_manifests_are_refused(tmp_path, change):
    export(model(), tmp_path / "out.npz")
    tampered(tmp_path / "out.npz", lambda _, manifest: change(manifest))
    with pytest.raises(FileFormatError, match=r"out\.npz: the manifest"):
        verify(model(), tmp_path / "out.npz")


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "out.npz"
    with pytest.raises(FileFormatError, match="No such file"):
        verify(model(), path)
    path.write_text("hello")
    with pytest.raises(FileFormatError, match=r"not an \.npz file"):
        verify(model(), path)


def test_unknown_weights_cannot_be_verified(tmp_path):
    export(model(), tmp_path / "out.npz")
    source = model(**{"dense/kernel": replace(model().tensors["dense/kernel"], spec=QuantSpec())})
    with pytest.raises(MissingSettingsError, match="dense/kernel"):
        verify(source, tmp_path / "out.npz")


def ties(low, high, num_bits, narrow, rng):
    """Return values on, and a few float32 steps beside, the ties of a range."""
    step = (float(high) - float(low)) / (2**num_bits - 1 - narrow)
    half_steps = rng.integers(-(2**num_bits), 2**num_bits, 200) + 0.5
    values = (half_steps * step).astype(np.float32)
    return (values.view(np.int32) + rng.integers(-3, 4, 200).astype(np.int32)).view(np.float32)


@pytest.mark.parametrize("num_bits", range(2, 17))
@pytest.mark.parametrize("op", ["vars", "args", "per_axis"])
def test_ties_of_every_width(tmp_path, num_bits, op):
    rng = np.random.default_rng(num_bits)
    narrow = bool(num_bits % 2)
    pairs = [(-1.0, 1.0), (-0.3, 0.7), (0.0, 6.0), (-2.5, 0.0), (1.0, 2.0), (-6.0, 6.0)]
    tensors = {}
    for i, pair in enumerate(pairs):
        low, high = np.float32(pair)
        values = ties(low, high, num_bits, narrow, rng)
        per_axis = op == "per_axis"
        spec = QuantSpec("Q", num_bits, per_axis, None, narrow, "args" if op == "args" else "vars")
        if per_axis:
            values, low, high = values[:, None], low[None], high[None]
        tensors[f"t{i}"] = QatTensor(f"t{i}", "weight", values, low, high, spec)
    source = QatModel(tensors)
    export(source, tmp_path / "out.npz", signed=not narrow)
    result = verify(source, tmp_path / "out.npz")
    assert result.ok, result.differences
    assert result.near_ties > 300


def test_wrong_integers_at_near_ties_are_found(tmp_path):
    rng = np.random.default_rng(0)
    values = ties(-1.0, 1.0, 8, False, rng)
    source = QatModel({"t": weight("t", values, QuantSpec("Q", 8, False, None, False), 0.5)})
    export(source, tmp_path / "out.npz")
    tensor = source.tensors["t"]
    near = exact.near_ties(
        values, tensor.min, tensor.max, 8, narrow_range=False,
        zero_point=tensor.quantize(signed=False).zero_point)  # fmt: skip
    at = int(np.flatnonzero(near)[0]) if near.any() else 0

    def other(arrays, _):
        arrays["t"][at] ^= 1

    tampered(tmp_path / "out.npz", other)
    result = verify(source, tmp_path / "out.npz")
    assert result.differing == 1


def test_dead_channels(tmp_path):
    values = np.zeros((4, 2), np.float32)
    values[:, 1] = [-0.5, 0.25, 0.5, 1.0]
    spec = QuantSpec("LastValueQuantizer", 4, True, True, True)
    source = QatModel({"d/kernel": weight("d/kernel", values, spec)})
    export(source, tmp_path / "out.npz")
    assert verify(source, tmp_path / "out.npz").ok


def test_verification_uses_no_exporting_code(tmp_path):
    """What verifies must not be what it verifies: break all that makes an export, verify on."""
    export(model(), tmp_path / "out.npz", layouts=("OHWI",))
    code = f"""
import sys
import qmath.kernels.affine, qmath.exports.bundle, qmath.exports.manifest
from tests.exports.models import model

def broken(*_, **__):
    raise AssertionError("verification called the exporting code")

qmath.kernels.affine.quantize = qmath.kernels.affine.scale_and_zero_point = broken
for module in (qmath.exports.bundle, qmath.exports.manifest):
    for name in [name for name in vars(module) if not name.startswith("__")]:
        setattr(module, name, broken)
from qmath.verification import check, contents
for module in (check, contents):
    assert broken not in vars(module).values(), module
    assert not {{qmath.exports.bundle, qmath.exports.manifest, qmath.kernels.affine}} & {{
        value for value in vars(module).values() if type(value) is type(sys)}}, module
print(check.verify(model(), {str(tmp_path / "out.npz")!r}).ok)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "True", run.stderr


def test_verification_is_a_plain_record(tmp_path):
    qmath.export(model(), tmp_path / "out.npz")
    result = verify(model(), tmp_path / "out.npz")
    assert result.differences == ()
    with pytest.raises(AttributeError):
        result.elements = 0
