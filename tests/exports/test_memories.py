import json
import math
import re

import numpy as np
import pytest

import qmath
from qmath import OutputError, QatModel, QatTensor
from qmath.exports.bundle import quantize_model
from qmath.exports.memories import formats
from qmath.exports.memories.words import memories
from tests.exports import networks
from tests.exports.memory_readers import FORMATS, READERS, needs_ghdl, vhdl
from tests.exports.models import every_width, model, strange_names
from tests.helpers import halved


def assert_read_back(bundle, folder, format):
    found = READERS[format](folder)
    arrays = {key: array for key, array in bundle.arrays() if array.size}
    assert list(found) == list(arrays)
    for key, expected in arrays.items():
        assert found[key].shape == expected.shape
        np.testing.assert_array_equal(found[key], expected)


@FORMATS
@pytest.mark.parametrize(
    ("make", "signed", "per_word"),
    halved([every_width, strange_names, model], [True, False], [1, 7]),
)
def test_the_consumer_reads_the_integers(tmp_path, format, make, signed, per_word):
    folder = tmp_path / "o"
    bundle = qmath.export(make(), folder, format=format, signed=signed, per_word=per_word)
    assert_read_back(bundle, folder, format)
    assert qmath.verify(make(), folder).ok


@FORMATS
def test_constants_and_vectors_are_memories_too(tmp_path, format):
    bundle = qmath.export(networks.images(), tmp_path / "o", format=format, vectors=2)
    assert len(bundle.constants) > 10
    assert len(bundle.vectors) > 5
    assert_read_back(bundle, tmp_path / "o", format)


@needs_ghdl
@pytest.mark.parametrize("per_word", [1, 3])
def test_vhdl_reads_words_without_comments(tmp_path, per_word):
    options = {"per_word": per_word, "comments": False, "vectors": 1}
    bundle = qmath.export(networks.images(), tmp_path / "o.mem", **options)
    found = vhdl(tmp_path / "o.mem")
    for key, expected in bundle.arrays():
        np.testing.assert_array_equal(found[key], expected)
    assert qmath.verify(networks.images(), tmp_path / "o.mem").ok


@pytest.mark.parametrize("format", READERS)
def test_only_the_comments_are_left_out(tmp_path, format):
    marks = {"coe": "; ", "mif": "-- "}
    for name, comments in (("with", True), ("without", False)):
        qmath.export(model(), tmp_path / name, format=format, comments=comments)
    files = sorted((tmp_path / "with").glob(f"*.{format}"))
    assert len(files) > 10
    for path in files:
        lines = path.read_text().splitlines()
        kept = [line for line in lines if not line.startswith(marks.get(format, "// "))]
        assert len(kept) < len(lines)
        assert (tmp_path / "without" / path.name).read_text().splitlines() == kept


def test_hex_is_mem_under_another_suffix(tmp_path):
    for format in ("mem", "hex"):
        qmath.export(networks.images(), tmp_path / format, format=format, per_word=3)
    names = [path.name for path in (tmp_path / "mem").glob("*.mem")]
    assert len(names) == len(list((tmp_path / "hex").glob("*.hex"))) > 30
    for name in names:
        other = tmp_path / "hex" / name.replace(".mem", ".hex")
        assert other.read_bytes() == (tmp_path / "mem" / name).read_bytes()
    assert qmath.verify(networks.images(), tmp_path / "hex").ok


def test_words_are_as_wide_as_said():
    for memory in memories(quantize_model(every_width()), per_word=3):
        entry = every_width().tensors.get(memory.key)
        assert memory.width == (3 * entry.spec.num_bits if entry else memory.width)
        text = formats._readmemh(memory).decode().splitlines()
        words = [line for line in text if not line.startswith("//")]
        assert {len(word) for word in words} == {math.ceil(memory.width / 4)}
        assert all(int(word, 16) < 1 << memory.width for word in words)


@pytest.mark.parametrize(
    ("values", "width", "encoding"),
    [
        ([0], 1, "two's complement"),
        ([-1], 1, "two's complement"),
        ([1], 2, "two's complement"),
        ([-2], 2, "two's complement"),
        ([127, -128], 8, "two's complement"),
        ([128], 9, "two's complement"),
        ([-(2**63), 2**63 - 1], 64, "two's complement"),
        (np.uint8([0]), 1, "unsigned"),
        (np.uint8([255]), 8, "unsigned"),
        (np.uint64([2**64 - 1]), 64, "unsigned"),
        (np.array([True]), 1, "unsigned"),
        (np.array(-1.5, ">f4"), 32, "float32"),
        (np.float16([0.1]), 16, "float16"),
        (np.float64([0.1]), 64, "float64"),
    ],
)
def test_other_numbers_take_the_fewest_bits(values, width, encoding):
    tensor = QatTensor("a", "float", np.asarray(values))
    (memory,) = memories(quantize_model(QatModel({"a": tensor})))
    assert (memory.width, memory.encoding) == (width, encoding)
    number = int(memory.words[0].tobytes().hex(), 16)
    if encoding.startswith("float"):
        expected = np.asarray(values).astype(encoding).reshape(-1)[:1]
        assert number.to_bytes(width // 8, "little") == expected.tobytes()
    else:
        assert number == int(np.asarray(values)[0]) % (1 << width)


def test_golden_files(tmp_path):
    spec = qmath.QuantSpec("LastValueQuantizer", 5, False, False, False)
    values = np.float32([[-1.6, 0.1, 0.2], [1.5, -0.1, 0.0]])
    tensor = QatTensor("d/kernel", "weight", values, np.float32(-1.6), np.float32(1.5), spec)
    head = [
        "d/kernel: 6 words of 5 bits",
        "values: 5 bits, two's complement; an array of shape [2, 3]",
        "order: word 0 first; the array's last index changes fastest",
    ]
    words = ["10", "01", "02", "0f", "1f", "00"]
    expected = {
        "mem": [*(f"// {line}" for line in head), *words],
        "coe": [
            *(f"; {line}" for line in head),
            "memory_initialization_radix=16;",
            "memory_initialization_vector=",
            *(f"{word}," for word in words[:-1]),
            "00;",
        ],
        "mif": [
            *(f"-- {line}" for line in head),
            "WIDTH=5;",
            "DEPTH=6;",
            "ADDRESS_RADIX=HEX;",
            "DATA_RADIX=HEX;",
            "CONTENT BEGIN",
            *(f"{i} : {word};" for i, word in enumerate(words)),
            "END;",
        ],
    }
    expected["hex"] = expected["mem"]
    for format, lines in expected.items():
        qmath.export(QatModel({"d/kernel": tensor}), tmp_path / format, format=format)
        text = (tmp_path / format / f"d_kernel.{format}").read_bytes().decode("ascii")
        assert text == "\n".join(lines) + "\n"


def test_values_share_a_word_from_its_lowest_bits_on(tmp_path):
    spec = qmath.QuantSpec("LastValueQuantizer", 3, False, False, False)
    values = np.float32([-4, 1, 2, 3, -1])
    tensor = QatTensor("k", "weight", values, np.float32(-4), np.float32(3), spec)
    qmath.export(QatModel({"k": tensor}), tmp_path / "o.mem", per_word=3)
    lines = (tmp_path / "o.mem/k.mem").read_text().splitlines()
    assert lines[0] == "// k: 2 words of 9 bits"
    assert lines[3] == "// 3 values in a word, the first in the lowest bits"
    assert lines[4:] == [f"{0b010_001_100:03x}", f"{0b000_111_011:03x}"]


def test_a_layout_orders_the_words(tmp_path):
    qmath.export(model(), tmp_path / "o.mem", layouts=["OHWI"])
    entry = json.loads((tmp_path / "o.mem/memories.json").read_text())["conv_kernel.mem"]
    assert (entry["shape"], entry["layout"]) == ([5, 3, 3, 2], "OHWI")
    assert "shape [5, 3, 3, 2] (OHWI)" in (tmp_path / "o.mem/conv_kernel.mem").read_text()


@pytest.mark.parametrize("format", READERS)
def test_equal_models_give_equal_bytes(tmp_path, format):
    for name in "ab":
        qmath.export(networks.signals(), tmp_path / name, format=format)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("format", READERS)
def test_names_are_reversible(tmp_path, format):
    bundle = qmath.export(strange_names(), tmp_path / "o", format=format)
    manifest = json.loads((tmp_path / "o/manifest.json").read_text())
    names = [path.name for path in (tmp_path / "o").iterdir() if path.suffix == f".{format}"]
    assert len({name.lower() for name in names}) == len(names)
    found = [manifest["export"]["identifiers"][name.removesuffix(f".{format}")] for name in names]
    assert sorted(found) == sorted(bundle.keys())
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name.partition(".")[0]) for name in names)


def test_an_array_without_elements_is_no_memory(tmp_path):
    tensors = {"a": QatTensor("a", "float", np.zeros((0, 3), np.float32))}
    qmath.export(QatModel(tensors), tmp_path / "o.mem")
    assert sorted(path.name for path in (tmp_path / "o.mem").iterdir()) == [
        "manifest.json", "memories.json"
    ]  # fmt: skip


def test_complex_numbers_are_refused(tmp_path):
    tensors = {"a": QatTensor("a", "float", np.zeros(3, np.complex64))}
    with pytest.raises(OutputError, match="a: a memory cannot hold complex64; export to npz"):
        qmath.export(QatModel(tensors), tmp_path / "o.mem")


@pytest.mark.parametrize("per_word", [0, 1025, True, "2", 1.0])
def test_other_numbers_of_values_per_word_are_refused(tmp_path, per_word):
    with pytest.raises(OutputError, match="is not 1 to 1024"):
        qmath.export(model(), tmp_path / "o.mem", per_word=per_word)
    assert not list(tmp_path.iterdir())
