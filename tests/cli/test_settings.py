import pytest

from qmath import (
    Default8BitConvWeightsQuantizer,
    FixedQuantizer,
    LastValueQuantizer,
    MovingAverageQuantizer,
    NoQuantizer,
    QmathError,
)
from qmath.cli.settings import read_settings
from qmath.quantizers import FixedScaleQuantizer, PowerOfTwoQuantizer

FIVE = LastValueQuantizer(num_bits=5, symmetric=False, narrow_range=True, per_axis=False)


def read(*options):
    return read_settings(options, None)


@pytest.mark.parametrize(
    "text",
    ["LastValueQuantizer(num_bits=5, symmetric=False, narrow_range=True, per_axis=False)",
     "LastValueQuantizer(5, False, False, True)",
     "tfmot.quantization.keras.quantizers.LastValueQuantizer(5, per_axis=False,\n"
     "    symmetric=False, narrow_range=True)"],
)  # fmt: skip
def test_options_are_written_as_in_the_training_script(text):
    assert read(f"MyConfig.weights={text}") == {"MyConfig.weights": FIVE}
    assert read(f" conv*/kernel = {text} ") == {"conv*/kernel": FIVE}


def test_several_options():
    average = (
        "MovingAverageQuantizer(num_bits=4, per_axis=False, symmetric=False, narrow_range=False)"
    )
    found = read(f"A.activation={average}", f"B.output={average}", "C.weights=NoQuantizer()",
                 "D.weights=Default8BitConvWeightsQuantizer()",
                 "E.output=FixedQuantizer(8, init_min=-1.5, init_max=1, narrow_range=False)",
                 )  # fmt: skip
    assert (
        found["A.activation"] == found["B.output"] == MovingAverageQuantizer(4, False, False, False)
    )
    assert found["C.weights"] == NoQuantizer()
    assert found["D.weights"] == Default8BitConvWeightsQuantizer()
    assert found["E.output"] == FixedQuantizer(8, -1.5, 1, False)


CALL = "LastValueQuantizer(num_bits={}, symmetric=True, narrow_range=True, per_axis=False)"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("MyConfig.weights", "expected KEY=QUANTIZER"),
        ("=LastValueQuantizer()", "expected KEY=QUANTIZER"),
        ("A=", "not written like a Python call"),
        ("A=LastValueQuantizer", r"expected a call, such as LastValueQuantizer\(\)"),
        ("A=LastValueQuantizer(", "not written like a Python call"),
        ("A=" + "(" * 500, "not written like a Python call"),
        ("A=[LastValueQuantizer()]", "expected a call"),
        ("A=" + CALL.format("N"), "replace N by the width"),
        ("A=" + CALL.format("99"), "num_bits must be a whole number from 2 to 16, got 99"),
        ("A=" + CALL.format("1"), "got 1"),
        ("A=" + CALL.format("True"), "got True"),
        ("A=" + CALL.format("4.0"), "got 4.0"),
        ("A=" + CALL.format("'4'"), "got '4'"),
        ("A=" + CALL.format("bits"), "got 'bits'"),
        ("A=" + CALL.format("2+2"), r"2 \+ 2 is not a plain value"),
        ("A=" + CALL.format("__import__('os').system('true')"), "is not a plain value"),
        ("A=LastValueQuantizer(*[4])", "is not a plain value"),
        ("A=LastValueQuantizer(**{})", "LastValueQuantizer"),
        ("A=LastValueQuantizer(4, 0, False, False)", "per_axis must be true or false, got 0"),
        ("A=LastValueQuantizer(4)", r"LastValueQuantizer\(\) missing 3 required"),
        ("A=LastValueQuantizer(bits=4)", "unexpected keyword argument 'bits'"),
        ("A=Quantizer()", "'Quantizer' is not one of TFMOT's quantizers: .*LastValueQuantizer"),
        ("A=eval('1')", "'eval' is not one of"),
        ("A=(lambda: 1)()", "is not one of"),
    ],
)
def test_wrong_options_say_what_is_wrong(option, words):
    with pytest.raises(QmathError, match=words) as caught:
        read(option)
    assert str(caught.value).startswith("--quantizer")


def test_a_key_given_twice():
    with pytest.raises(QmathError, match="given twice for A"):
        read("A=" + CALL.format(4), "A=" + CALL.format(5))
    assert len(read("A=" + CALL.format(4), "A=" + CALL.format(4))) == 1


TOML = """
["MyConfig.weights"]
quantizer = "LastValueQuantizer"
num_bits = 5
symmetric = false
narrow_range = true
per_axis = false

["conv*/kernel"]
quantizer = "NoQuantizer"
"""


def test_a_file_holds_the_same(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(TOML)
    assert read_settings([], path) == {"MyConfig.weights": FIVE, "conv*/kernel": NoQuantizer()}
    option = "MyConfig.weights=" + CALL.format(4)
    assert read_settings([option], path)["MyConfig.weights"].num_bits == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = [", "is not TOML"),
        ("\xff", "is not TOML"),
        ("a = 1", r"\['a'\]: expected a table with a quoted name"),
        ("[MyConfig.weights]\nquantizer = 'NoQuantizer'", "expected a table with a quoted name"),
        ("['a']\nnum_bits = 4", "'' is not one of TFMOT's quantizers"),
        ("['a']\nquantizer = 'Nope'", "'Nope' is not one of"),
        ("['a']\nquantizer = 'LastValueQuantizer'\nnum_bits = 'N'", "replace N"),
        ("['a']\nquantizer = 'LastValueQuantizer'\nwidth = 4", "unexpected keyword argument"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "settings.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(QmathError, match=words) as caught:
        read_settings([], path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(QmathError, match=r"cannot read .*no\.toml: No such file"):
        read_settings([], tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FixedScaleQuantizer(scale=0.5, num_bits=4)", FixedScaleQuantizer(0.5, num_bits=4)),
        ("FixedScaleQuantizer('d/s', rounding='half_up')",
         FixedScaleQuantizer("d/s", rounding="half_up")),
        ("PowerOfTwoQuantizer(8)", PowerOfTwoQuantizer(8)),
    ],
)  # fmt: skip
def test_quantizers_that_tfmot_does_not_have(text, expected):
    assert read_settings([f"MyConfig.weights={text}"], None) == {"MyConfig.weights": expected}


def test_what_they_refuse_names_the_option():
    with pytest.raises(QmathError, match="rounding is one of"):
        read_settings(["d/kernel=FixedScaleQuantizer(0.5, rounding='up')"], None)
