"""Where settings come from, what contradicts what, and what to ask the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.errors import ContradictionError, FileFormatError, MissingSettingsError, QmathError
from qmath.exports.bundle import quantize_model
from qmath.model import QatTensor, QuantSpec, assumed_tensors, missing_settings, own_quantized
from qmath.quantizers import FixedScaleQuantizer, PowerOfTwoQuantizer
from qmath.readers.loading import load
from qmath.readers.notes import GET_CONFIG
from tests.readers.builders import (
    entry,
    kernel,
    one_layer,
    quantizer,
    sequential,
    span,
    step,
    wrapped,
    write,
)

pytest.importorskip("h5py")


def last(num_bits: int = 4, **settings: bool) -> qmath.LastValueQuantizer:
    return qmath.LastValueQuantizer(
        **{
            "num_bits": num_bits,
            "per_axis": False,
            "symmetric": True,
            "narrow_range": False,
            **settings,
        }
    )


def average(num_bits: int = 4) -> qmath.MovingAverageQuantizer:
    return qmath.MovingAverageQuantizer(
        num_bits=num_bits, per_axis=False, symmetric=False, narrow_range=False
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.h5"


def tensor(path: Path, name: str = "d/kernel", **options: Any) -> QatTensor:
    return load(path, **options).tensors[name]


def test_the_ratio_tells_the_width(path: Path) -> None:
    found = tensor(one_layer(path))
    assert found.spec == QuantSpec(None, 4, False, True, False)
    assert found.provenance == {
        "quantizer": "assumed: TFMOT's own quantizer",
        "num_bits": "range ratio",
        "symmetric": "range ratio",
        "narrow_range": "range ratio",
        "per_axis": "range shape",
    }
    assert found.hint is None
    assert found.quantize().num_bits == 4


@pytest.mark.parametrize(
    ("config_class", "per_axis"),
    [
        ("Default8BitQuantizeConfig", False),
        ("Default8BitConvQuantizeConfig", True),
        ("Default8BitConvTransposeQuantizeConfig", False),
        ("Default8BitQuantizeConfigRNN", False),
        ("DefaultNBitQuantizeConfig", False),
        ("DefaultNBitConvQuantizeConfig", True),
    ],
)
def test_the_schemes_are_known_by_their_classes(
    path: Path, config_class: str, per_axis: bool
) -> None:
    ends = np.full(4, 0.8) if per_axis else 0.8
    config = {
        "weight_attrs": ["kernel"],
        "activation_attrs": ["activation"],
        "quantize_output": True,
        "num_bits_weight": 5,
        "num_bits_activation": 6,
    }
    one_layer(
        path,
        config,
        kernel(-np.float32(ends), np.float32(ends)),
        span("post_activation"),
        span("output"),
        config_class=config_class,
    )
    model = load(path)
    bits = (5, 6) if "NBit" in config_class else (8, 8)
    assert model.tensors["d/kernel"].spec == QuantSpec(
        "LastValueQuantizer", bits[0], per_axis, True, True
    )
    for name in ("d/post_activation", "d/output"):
        assert model.tensors[name].spec == QuantSpec(
            "MovingAverageQuantizer", bits[1], False, False, False
        )
    assert set(model.tensors["d/kernel"].provenance.values()) == {"config"}
    assert not missing_settings(model)


@pytest.mark.parametrize(
    "config_class", ["Default8BitOutputQuantizeConfig", "DefaultNBitActivationQuantizeConfig"]
)
def test_the_schemes_output_configs(path: Path, config_class: str) -> None:
    one_layer(path, {"num_bits_activation": 8}, span("output"), config_class=config_class)
    assert tensor(path, "d/output").spec.num_bits == 8


@pytest.mark.parametrize("width", [1, 17, "8", None, True, 1e300])
def test_a_scheme_with_an_impossible_width(path: Path, width: object) -> None:
    one_layer(path, {"num_bits_weight": width}, config_class="DefaultNBitQuantizeConfig")
    with pytest.raises(FileFormatError, match=rf"{path}: d: .*num_bits_weight"):
        load(path)


def test_a_user_class_with_a_scheme_name_is_the_users(path: Path) -> None:
    one_layer(path, {}, config_class="Mine>Default8BitQuantizeConfig")
    assert tensor(path).provenance["num_bits"] == "range ratio"


NARROW = kernel(-0.8, 0.8)
SERIALIZED = quantizer(num_bits=5, per_axis=False, symmetric=True, narrow_range=True)


@pytest.mark.parametrize(
    "config",
    [
        {"weight_quantizer": SERIALIZED},
        {"kernel_quantizer": SERIALIZED},
        {"weightQuantizer": SERIALIZED},
        {"weights": [SERIALIZED]},
        {"quantizer_kernel": SERIALIZED},
        {
            "weight_quantizer": {
                **SERIALIZED,
                "class_name": "DefaultNBitConvTransposeWeightsQuantizer",
            }
        },
    ],
)
def test_a_stored_quantizer_is_a_fact(path: Path, config: dict[str, Any]) -> None:
    found = tensor(one_layer(path, config, NARROW))
    assert found.spec == QuantSpec("LastValueQuantizer", 5, False, True, True)
    assert found.provenance["num_bits"] == "config"


@pytest.mark.parametrize(
    "config",
    [
        {"bias_quantizer": SERIALIZED},
        {"activation_quantizer": SERIALIZED},
        {"quantizer": SERIALIZED},
        {"weight_and_activation_quantizer": SERIALIZED},
        {"weight_quantizers": [SERIALIZED, SERIALIZED]},
        {"weight_quantizer": {**SERIALIZED, "class_name": "Mine>LastValueQuantizer"}},
        {"num_bits_activation": 5},
        {"num_bits": 5},
        {"num_bits_weight": 32},
        {"num_bits_weight": True},
        {"weights": 5},
    ],
)
def test_what_is_not_surely_about_the_weight_is_no_fact(path: Path, config: dict[str, Any]) -> None:
    found = tensor(one_layer(path, config, NARROW))
    assert found.spec == QuantSpec(None, None, False, None, None)


@pytest.mark.parametrize(
    "key",
    [
        "num_bits_weight",
        "num_bits_weights",
        "weight_num_bits",
        "weight_bits",
        "kernel_num_bits",
        "n_bits_weight",
        "weightBits",
    ],
)
def test_a_width_with_a_role_is_a_fact(path: Path, key: str) -> None:
    one_layer(
        path,
        {key: 5, "num_bits_activation": 7, "output_bits": 9},
        NARROW,
        span("post_activation"),
        span("output"),
    )
    model = load(path)
    widths = [tensor.spec.num_bits for tensor in model.tensors.values()]
    assert widths == [5, 7, 9]
    assert all(tensor.spec.narrow_range is None for tensor in model.tensors.values())


def test_kernel_and_bias_are_told_apart(path: Path) -> None:
    bias = kernel(-1, 1, "bias", shape=(4,))
    config = {
        "weight_num_bits": 5,
        "bias_quantizer": quantizer(num_bits=16, per_axis=False, symmetric=True, narrow_range=True),
    }
    one_layer(path, config, NARROW, bias)
    model = load(path)
    assert model.tensors["d/kernel"].spec.num_bits == 5
    assert model.tensors["d/bias"].spec.num_bits == 16
    one_layer(path, {"num_bits_weight": 5}, NARROW, bias)
    assert load(path).tensors["d/bias"].spec.num_bits is None


def test_one_of_several_kernels(path: Path) -> None:
    one_layer(
        path,
        {"kernel_bits": 5, "recurrent_kernel_bits": 6},
        NARROW,
        kernel(-1, 1, "recurrent_kernel"),
    )
    model = load(path)
    assert model.tensors["d/kernel"].spec.num_bits == 5
    assert model.tensors["d/recurrent_kernel"].spec.num_bits == 6
    one_layer(path, {"kernel_bits": 5}, kernel(-1, 1, "a_kernel"), kernel(-1, 1, "b_kernel"))
    assert all(t.spec.num_bits is None for t in load(path).tensors.values())


def test_the_user_says_what_is_missing(path: Path) -> None:
    one_layer(path, {}, NARROW, span("post_activation"), span("output"))
    model = load(
        path,
        {
            "MyConfig.weights": last(5, narrow_range=True),
            "MyConfig.activation": average(6),
            "MyConfig.output": average(7),
        },
    )
    assert [t.spec.num_bits for t in model.tensors.values()] == [5, 6, 7]
    assert model.tensors["d/kernel"].provenance == {
        "quantizer": "user",
        "num_bits": "user",
        "per_axis": "range shape",
        "symmetric": "user",
        "narrow_range": "user",
    }
    assert not missing_settings(model)


@pytest.mark.parametrize(
    "key",
    [
        "MyConfig.weights",
        "MyConfig.weight",
        "Pkg>MyConfig.weights",
        "d/kernel",
        "d*",
        "*/kernel",
        "d/[k]ernel",
    ],
)
def test_keys_of_the_user(path: Path, key: str) -> None:
    one_layer(path, {}, NARROW, config_class="Pkg>MyConfig")
    assert tensor(path, quantizers={key: last(5, narrow_range=True)}).spec.num_bits == 5


@pytest.mark.parametrize(
    "key",
    ["Other.weights", "MyConfig", "conv*/kernel", "D/kernel", "MyConfig.bias"],
)
def test_keys_that_match_nothing(path: Path, key: str) -> None:
    one_layer(path)
    with pytest.raises(QmathError, match=r"matches nothing.*MyConfig.*d/kernel") as caught:
        load(path, {key: last()})
    assert key in str(caught.value)


def test_keys_that_match_floats_alone(path: Path) -> None:
    one_layer(path, {}, kernel() | {"d/bias:0": np.zeros(4, np.float32)})
    with pytest.raises(QmathError, match="only float tensors"):
        load(path, {"*/bias": last()})


def test_two_keys_for_one_tensor(path: Path) -> None:
    one_layer(path, {}, NARROW)
    five = last(5, narrow_range=True)
    assert tensor(path, quantizers={"d*": five, "MyConfig.weights": five}).spec.num_bits == 5
    with pytest.raises(QmathError, match=r"d/kernel: .*'d\*'.*'MyConfig.weights'"):
        load(path, {"d*": five, "MyConfig.weights": last(6, narrow_range=True)}, force=True)


@pytest.mark.parametrize("value", [None, 4, "LastValueQuantizer", object()])
def test_values_that_are_no_quantizers(path: Path, value: Any) -> None:
    one_layer(path)
    with pytest.raises(QmathError, match="takes one of qmath's"):
        load(path, {"d/kernel": value})


@pytest.mark.parametrize(
    ("config", "ends", "said", "both"),
    [
        ({}, (-0.8, 0.7), last(5), ("num_bits is 5", "num_bits is 4")),
        (
            {},
            (-0.8, 0.7),
            last(4, narrow_range=True),
            ("narrow_range is True", "narrow_range is False"),
        ),
        ({}, (-0.8, 0.7), last(4, per_axis=True), ("per_axis is True", "per_axis is False")),
        ({}, (-0.8, 0.3), last(4), ("symmetric is True", "-0.8")),
        ({}, (-0.8, 0.8), last(4), ("symmetric is True", "0.875")),
        ({}, (-0.8, 0.3), last(4, narrow_range=True), ("symmetric is True", "max/-min = 1.0")),
        (
            {"num_bits_weight": 5},
            (-0.8, 0.8),
            last(6, narrow_range=True),
            ("num_bits is 5", "num_bits is 6"),
        ),
        ({}, (-0.8, 0.7), qmath.FixedQuantizer(8, -1, 1, False), ("op is args", "op is vars")),
        ({}, (-0.8, 0.7), qmath.NoQuantizer(), ("op is none", "op is vars")),
    ],
)
def test_user_and_file_contradict(path: Path, config: Any, ends: Any, said: Any, both: Any) -> None:
    one_layer(path, config, kernel(*ends))
    with pytest.raises(ContradictionError, match="force") as caught:
        load(path, {"MyConfig.weights": said})
    message = str(caught.value)
    assert all(text in message for text in (*both, str(path), "d/kernel", "MyConfig.weights"))


def test_the_user_can_force(path: Path) -> None:
    one_layer(path)
    model = load(path, {"MyConfig.weights": last(5)}, force=True)
    assert model.tensors["d/kernel"].spec.num_bits == 5
    assert model.tensors["d/kernel"].provenance["num_bits"] == "user, forced"
    assert model.tensors["d/kernel"].provenance["narrow_range"] == "user"
    assert any("forced" in note and "num_bits is 4" in note for note in model.notes)
    model = load(path, {"MyConfig.weights": qmath.NoQuantizer()}, force=True)
    assert (model.tensors["d/kernel"].role, model.tensors["d/kernel"].min) == ("float", None)


@pytest.mark.parametrize(
    "config",
    [
        {"num_bits_weight": 5},
        {
            "weight_quantizer": quantizer(
                num_bits=4, per_axis=False, symmetric=True, narrow_range=True
            )
        },
        {
            "weight_quantizer": quantizer(
                num_bits=4, per_axis=True, symmetric=True, narrow_range=False
            )
        },
    ],
)
def test_a_file_that_contradicts_itself(path: Path, config: dict[str, Any]) -> None:
    one_layer(path, config)
    with pytest.raises(ContradictionError, match="the file was edited"):
        load(path)
    load(path, force=True)


def test_ranges_that_prove_nothing_contradict_nothing(path: Path) -> None:
    for ends in ((-6, 6), (0, 0), (-1e-40, 1e-40)):
        one_layer(path, {}, kernel(*ends))
        assert tensor(path, quantizers={"d/kernel": last(7)}).spec.num_bits == 7
        assert tensor(path).spec.num_bits is None
    average_of_weights = qmath.MovingAverageQuantizer(5, False, True, False)
    one_layer(path)  # 4 by the ratio, were it the last value's
    assert tensor(path, quantizers={"d/kernel": average_of_weights}).spec.num_bits == 5


def test_the_input_layer_says_it_all(path: Path) -> None:
    def model(quantizer_json: Any, **variables: float) -> QatTensor:
        values = {f"q/q_{end}:0": np.float32(value) for end, value in variables.items()}
        write(
            path,
            sequential(entry("QuantizeLayer", "q", quantizer=quantizer_json)),
            {"q": values | {"q/optimizer_step:0": np.int32(-1)}},
        )
        return tensor(path, "q/output")

    known = quantizer(
        "AllValuesQuantizer", num_bits=6, per_axis=True, symmetric=False, narrow_range=False
    )
    found = model(known, min=0, max=1)
    assert found.role == "input"
    assert found.spec == QuantSpec("AllValuesQuantizer", 6, False, False, False)
    assert found.provenance["per_axis"] == "range shape"  # TFMOT ignores the argument
    found = model(quantizer("Mine"), min=0, max=1)
    assert found.spec.num_bits is None
    with pytest.raises(FileFormatError, match=r"q/output is quantized.*missing"):
        model(known)


def test_fixed_quantizers_of_the_file(path: Path) -> None:
    fixed = {"num_bits": 4, "init_min": 0.0, "init_max": 1.1, "narrow_range": True}
    inner = {
        "class_name": "Default8BitQuantizeConfig",
        "config": {
            "weight_attrs": ["kernel"],
            "activation_attrs": ["activation"],
            "quantize_output": True,
        },
    }
    write(
        path,
        sequential(
            entry("QuantizeLayer", "q", quantizer=quantizer("FixedQuantizer", **fixed)),
            wrapped("d", {"config": inner, **fixed}, "FixedQuantizeConfig", activation="tanh"),
        ),
        {"q": {"q/optimizer_step:0": np.int32(-1)}, "quant_d": kernel(-0.8, 0.8) | step()},
    )
    model = load(path)
    spec = QuantSpec("FixedQuantizer", 8, False, None, True, "args")
    for name, role in (
        ("q/output", "input"),
        ("d/pre_activation", "activation"),
        ("d/output", "output"),
    ):
        found = model.tensors[name]
        assert (found.role, found.spec) == (role, spec)
        assert (found.min, found.max) == (np.float32(0), np.float32(1.1))
        assert any(note.startswith(f"{name}: FixedQuantizer(num_bits=4)") for note in model.notes)
    assert model.tensors["d/kernel"].spec.op == "vars"


@pytest.mark.parametrize("end", [None, "0", float("nan"), 1e39])
def test_fixed_quantizers_without_a_range(path: Path, end: object) -> None:
    write(
        path,
        sequential(
            entry(
                "QuantizeLayer",
                "q",
                quantizer=quantizer("FixedQuantizer", num_bits=8, init_min=end, init_max=1),
            )
        ),
        {"q": {"q/optimizer_step:0": np.int32(-1)}},
    )
    with pytest.raises(FileFormatError, match="q: its FixedQuantizer"):
        load(path)


def test_fixed_quantizers_of_the_user(path: Path) -> None:
    one_layer(path, {}, kernel() | {"d/bias:0": np.zeros(4, np.float32)})
    model = load(path, {"d/bias": qmath.FixedQuantizer(4, -1.0, 1.0, False)})
    found = model.tensors["d/bias"]
    assert (found.role, found.spec.num_bits, found.spec.op) == ("weight", 8, "args")
    assert (found.min, found.max) == (np.float32(-1), np.float32(1))
    assert any("d/bias" in note and "8 bits" in note for note in model.notes)


def test_no_quantizer_leaves_floats(path: Path) -> None:
    write(
        path,
        sequential(
            entry("QuantizeLayer", "q", quantizer=quantizer("NoQuantizer")),
            entry("QuantizeLayer", "p", quantizer=None),
        ),
        {"q": {"q/optimizer_step:0": np.int32(-1)}, "p": {"p/optimizer_step:0": np.int32(-1)}},
    )
    model = load(path)
    assert not model.tensors
    assert any("Nothing" in note for note in model.notes)


def test_output_only_config(path: Path) -> None:
    inner = {
        "class_name": "DefaultNBitQuantizeConfig",
        "config": {
            "weight_attrs": ["kernel"],
            "activation_attrs": [],
            "quantize_output": True,
            "num_bits_activation": 5,
        },
    }
    one_layer(
        path,
        {"quantize_config": inner},
        span("output") | {"d/kernel:0": np.ones((3, 4), np.float32)},
        config_class="OutputOnlyConfig",
    )
    model = load(path)
    assert model.tensors["d/kernel"].role == "float"
    assert model.tensors["d/output"].spec.num_bits == 5


def options(path: Path) -> dict[str, tuple[str, ...]]:
    return {item.option: item.tensors for item in missing_settings(load(path))}


def test_hints_take_the_width_of_the_weights(path: Path) -> None:
    one_layer(path, {}, kernel(), span("post_activation"), span("output"))
    model = load(path)
    settings = "num_bits=4, per_axis=False, symmetric=False, narrow_range=False"
    assert options(path) == {
        f'--quantizer "MyConfig.activation=MovingAverageQuantizer({settings})"': (
            "d/post_activation",
        ),
        f'--quantizer "MyConfig.output=MovingAverageQuantizer({settings})"': ("d/output",),
    }
    first = missing_settings(model)[0]
    assert first.role == "activation"
    assert "width of MyConfig's weights" in first.why
    assert first.option in str(model.tensors["d/post_activation"].hint)


def test_hints_take_an_ambiguous_width(path: Path) -> None:
    one_layer(path, {"bits": 6}, NARROW)
    assert options(path) == {
        '--quantizer "MyConfig.weights=LastValueQuantizer(num_bits=6, '
        'per_axis=False, symmetric=True, narrow_range=True)"': ("d/kernel",)
    }
    found = load(path).tensors["d/kernel"]
    with pytest.raises(MissingSettingsError, match="num_bits=6"):
        found.quantize()


def test_hints_know_no_width(path: Path) -> None:
    one_layer(path, {"bits": 6, "num_bits": 7}, NARROW)
    (item,) = missing_settings(load(path))
    assert "num_bits=N," in item.option
    assert item.why == "N stands for the width"


def test_hints_share_an_option_where_one_will_do(path: Path) -> None:
    config = sequential(wrapped("d"), wrapped("e"), wrapped("f"))
    ends = {"d": 0.8, "e": 0.9}
    write(
        path,
        config,
        {f"quant_{n}": kernel(-end, end, layer=n) | step(n) for n, end in ends.items()},
    )
    assert list(options(path).values()) == [("d/kernel", "e/kernel")]
    ends["f"] = 1.0
    groups = {
        f"quant_{n}": kernel(-end, end * (0.3 if n == "f" else 1), layer=n) | step(n)
        for n, end in ends.items()
    }
    write(path, config, groups)
    found = options(path)
    assert [option.split("=")[0] for option in found] == [
        '--quantizer "d/kernel',
        '--quantizer "e/kernel',
        '--quantizer "f/kernel',
    ]
    assert list(found.values()) == [("d/kernel",), ("e/kernel",), ("f/kernel",)]


def test_a_pasted_hint_never_contradicts_what_is_known(path: Path) -> None:
    """One kernel's range tells its width; the option for the other must not reach it."""
    groups = {
        "quant_d": kernel(-0.8, 0.7, layer="d") | step("d"),
        "quant_e": kernel(-0.8, 0.9, layer="e") | step("e"),
    }
    write(path, sequential(wrapped("d"), wrapped("e")), groups)
    (option,) = options(path)
    assert option.startswith('--quantizer "e/kernel=LastValueQuantizer(num_bits=4, ')
    quantizer = qmath.LastValueQuantizer(4, False, False, False)
    assert load(path, {"e/kernel": quantizer}).tensors["e/kernel"].spec.num_bits == 4


def test_notes_on_what_leaves_no_trace(path: Path) -> None:
    bare = {"d/kernel:0": np.ones((3, 4), np.float32)}
    one_layer(path, {}, bare)
    found = load(path)
    assert any(n.startswith("d/kernel: quantized by its own config") for n in found.notes)
    assert own_quantized(found) == ("d/kernel",)
    one_layer(path, {}, {"d/bias:0": np.ones(4, np.float32)})
    assert any("MyConfig left no range in d" in note for note in load(path).notes)
    assert not own_quantized(load(path))
    one_layer(path, {"activation_quantizer": quantizer("FixedQuantizer", num_bits=8)})
    assert any("stores a FixedQuantizer" in note for note in load(path).notes)
    one_layer(path, {}, bare, config_class="NoOpQuantizeConfig")
    assert load(path).notes == (load(path).notes[0],)


def described(**quantizers: Any) -> dict[str, Any]:
    """Return what the `get_config` of the note saves."""
    return {"quantizers": quantizers}


def test_what_a_file_cannot_show_is_assumed(path: Path) -> None:
    assumed = "assumed: TFMOT's own quantizer"
    model = load(one_layer(path, {}, kernel(), span("post_activation"), span("output")))
    assert assumed_tensors(model) == ("d/kernel", "d/post_activation", "d/output")
    assert model.tensors["d/kernel"].provenance["quantizer"] == assumed
    assert model.tensors["d/kernel"].spec.quantizer is None
    (note,) = (note for note in model.notes if note.startswith("Assumed"))
    assert "into the class MyConfig of" in note
    assert GET_CONFIG in note
    told = load(path, quantizers={"MyConfig.weights": last(), "MyConfig.activation": average()})
    assert assumed_tensors(told) == ("d/output",)
    with pytest.raises(MissingSettingsError, match="assumed: the settings of d/kernel; strict"):
        quantize_model(load(one_layer(path)), strict=True)
    assert quantize_model(load(path)).manifest["tensors"]["d/kernel"]["evidence"]["quantizer"] == (
        assumed
    )
    one_layer(path, {}, config_class="no identifier")
    assert any("the class your QuantizeConfig of" in note for note in load(path).notes)


@pytest.mark.parametrize("config_class", ["Default8BitQuantizeConfig", "DefaultNBitQuantizeConfig"])
def test_nothing_is_assumed_of_tfmots_own_configs(path: Path, config_class: str) -> None:
    config = {"weight_attrs": ["kernel"], "quantize_output": True}
    mirrored = kernel(-np.float32(0.8), np.float32(0.8))
    model = load(one_layer(path, config, mirrored, span("output"), config_class=config_class))
    assert not assumed_tensors(model)


def test_the_config_of_the_note_is_read_in_full(path: Path) -> None:
    arguments = {"num_bits": 4, "per_axis": False, "symmetric": True, "narrow_range": False}
    config = described(
        kernel=quantizer("LastValueQuantizer", **arguments),
        activation=quantizer("MovingAverageQuantizer", **arguments | {"symmetric": False}),
        output=quantizer("Mine"),
    )
    one_layer(path, config, kernel(), span("post_activation"), span("output"))
    model = load(path)
    assert model.tensors["d/kernel"].spec == QuantSpec("LastValueQuantizer", 4, False, True, False)
    assert set(model.tensors["d/kernel"].provenance.values()) == {"config"}
    assert model.tensors["d/post_activation"].spec.quantizer == "MovingAverageQuantizer"
    assert assumed_tensors(model) == ("d/output",)


BARE = {"d/kernel:0": np.ones((3, 4), np.float32)}


@pytest.mark.parametrize(
    ("config", "ranges", "reason"),
    [
        ({}, {}, "MyConfig left no range for it"),
        ({}, span("post_activation"), "MyConfig left no range for it"),
        ({"kernel_quantizer": quantizer("Lsq")}, {}, "MyConfig stores the class Lsq for it"),
        (described(kernel=quantizer("Lsq")), {}, "MyConfig gives it a quantizer of the class Lsq"),
        (described(kernel=quantizer("NoQuantizer")), {}, ""),
        (described(activation=quantizer("MovingAverageQuantizer")), span("post_activation"), ""),
        ({"weight_quantizer": quantizer("NoQuantizer")}, {}, ""),
    ],
)
def test_weights_without_a_range_are_never_float_in_silence(
    path: Path, config: dict[str, Any], ranges: dict[str, Any], reason: str
) -> None:
    model = load(one_layer(path, config, BARE, ranges))
    assert own_quantized(model) == (("d/kernel",) if reason else ())
    assert model.tensors["d/kernel"].role == "float"
    notes = [note for note in model.notes if note.startswith("d/kernel: quantized by its own")]
    assert len(notes) == bool(reason)
    if reason:
        assert reason in notes[0]
    if reason and not ranges:
        with pytest.raises(MissingSettingsError, match="quantized by its own config: d/kernel;"):
            quantize_model(model, strict=True)
    quantize_model(model)


@pytest.mark.parametrize(
    ("config_class", "ranges"),
    [
        ("NoOpQuantizeConfig", {}),
        ("Default8BitOutputQuantizeConfig", span("output")),
        ("MyConfig", kernel()),
    ],
)
def test_no_wolf_is_cried(path: Path, config_class: str, ranges: dict[str, Any]) -> None:
    bias = {"d/bias:0": np.zeros(4, np.float32)}
    one_layer(path, {}, {**BARE, **ranges, **bias}, config_class=config_class)
    assert not own_quantized(load(path))


@pytest.mark.parametrize("key", ["MyConfig.weights", "d/kernel", "d/*"])
def test_the_user_can_say_that_a_weight_is_float(path: Path, key: str) -> None:
    one_layer(path, {}, BARE)
    assert not own_quantized(load(path, quantizers={key: qmath.NoQuantizer()}))
    fixed = load(path, quantizers={key: qmath.FixedQuantizer(8, -1.0, 1.0, False)})
    assert fixed.tensors["d/kernel"].role == "weight"
    assert not own_quantized(fixed)
    if key == "MyConfig.weights":
        assert own_quantized(load(path, quantizers={key: last()}))
    else:
        with pytest.raises(QmathError, match="matches only float tensors"):
            load(path, quantizers={key: last()})


def test_an_option_that_a_file_does_not_need_is_a_note(path: Path) -> None:
    one_layer(path)
    model = load(path, {"MyConfig.weights": last(), "MyConfig.output": average()})
    assert any("quantizers['MyConfig.output'] is not used: no tensor" in n for n in model.notes)
    assert list(model.tensors) == ["d/kernel"]


@pytest.mark.parametrize(
    ("key", "name", "role"),
    [
        ("MyConfig.activation", "d/post_activation", "activation"),
        ("d/post_activation", "d/post_activation", "activation"),
        ("MyConfig.output", "d/output", "output"),
        ("d/output", "d/output", "output"),
    ],
)
def test_activations_that_left_no_variable_can_be_told(
    path: Path, key: str, name: str, role: str
) -> None:
    one_layer(path)
    model = load(path, {key: qmath.FixedQuantizer(8, 0.0, 4.0, False)})
    found = model.tensors[name]
    assert list(model.tensors) == ["d/kernel", name]
    assert (found.role, found.min, found.max) == (role, 0, 4)
    assert found.spec == QuantSpec("FixedQuantizer", 8, False, None, False, "args")
    assert set(found.provenance.values()) == {"user"}
    one_layer(path, {}, config_class="Default8BitConvQuantizeConfig")
    with pytest.raises(QmathError, match="matches nothing"):
        load(path, {"d/output": qmath.FixedQuantizer(8, 0.0, 4.0, False)})


@pytest.mark.parametrize("told", [last(5), last(4, symmetric=False)])
def test_verify_remembers_what_was_forced(path: Path, told: Any) -> None:
    one_layer(path)
    output = path.with_name("out.npz")
    # What changes no integer needs no force.
    loaded = load(path, {"MyConfig.weights": told}, force=told.num_bits == 5)
    qmath.export(loaded, output)
    result = qmath.verify(path, output)
    assert (result.ok, result.assumed) == (True, ("d/kernel",))


LSQ = {"d/kernel:0": np.float32([[0.1, -0.9], [0.05, 0.3]]), "d/kernel_scale:0": np.float32(0.1)}


@pytest.mark.parametrize("scale", [0.1, "kernel_scale", "d/kernel_scale"])
@pytest.mark.parametrize("key", ["MyConfig.weights", "d/kernel"])
def test_a_fixed_scale_is_described(path: Path, scale: Any, key: str) -> None:
    one_layer(path, {}, LSQ)
    assert own_quantized(load(path)) == ("d/kernel",)
    told = {key: FixedScaleQuantizer(scale, num_bits=4)}
    model = load(path, told)
    found = model.tensors["d/kernel"]
    np.testing.assert_array_equal(found.quantize().values, [[1, -8], [0, 3]])
    assert found.quantize().scale == np.float32(0.1)
    assert found.spec == QuantSpec("FixedScaleQuantizer", 4, False, None, False)
    assert set(found.provenance.values()) == {"user"}
    assert not own_quantized(model)
    output = path.with_name("out.npz")
    qmath.export(model, output, strict=True)
    assert qmath.verify(model, output).ok


def test_a_scale_for_each_channel_is_described(path: Path) -> None:
    one_layer(path, {}, LSQ | {"d/kernel_scale:0": np.float32([0.1, 0.3])})
    told = {"d/kernel": FixedScaleQuantizer("kernel_scale", num_bits=4)}
    found = load(path, told).tensors["d/kernel"]
    np.testing.assert_array_equal(found.quantize().values, [[1, -3], [0, 1]])
    assert found.spec.per_axis
    assert found.min.shape == (2,)


def test_a_power_of_two_is_described(path: Path) -> None:
    one_layer(path, {}, kernel(), span("post_activation", -3.0, 3.0))
    told = {"MyConfig.weights": PowerOfTwoQuantizer(8),
            "MyConfig.activation": PowerOfTwoQuantizer(4, narrow_range=True)}  # fmt: skip
    model = load(path, told)
    found, activation = (model.tensors[name] for name in ("d/kernel", "d/post_activation"))
    assert (found.min, found.max, found.spec.num_bits) == (-1, np.float32(127 / 128), 8)
    assert (activation.min, activation.max) == (-4, 4)
    assert found.spec.quantizer == "PowerOfTwoQuantizer"
    assert not assumed_tensors(model)
    output = path.with_name("out.npz")
    qmath.export(model, output, strict=True)
    assert qmath.verify(model, output).ok


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"d/kernel": FixedScaleQuantizer("none")}, "holds no float tensor 'none'.*kernel_scale"),
        ({"d/kernel": PowerOfTwoQuantizer(8)}, "holds none for it; describe it with Fixed"),
        ({"d/output": PowerOfTwoQuantizer(8)}, "matches nothing"),
        (
            {"d/kernel": FixedScaleQuantizer(0.1), "d/k*": FixedScaleQuantizer(0.2)},
            "both match it and differ",
        ),
        ({"d/kernel": FixedScaleQuantizer(0.0)}, "must be finite and positive"),
    ],
)
def test_descriptions_that_do_not_fit(path: Path, told: Any, message: str) -> None:
    one_layer(path, {}, LSQ)
    with pytest.raises(QmathError, match=message):
        load(path, told)
    one_layer(path, {}, kernel(), span("output"))
    with pytest.raises(QmathError, match="describes weights"):
        load(path, {"d/output": FixedScaleQuantizer(0.1)})
