import json
import zlib

import numpy as np
import pytest

import qmath
from qmath import OutputError, QatModel, QatTensor
from tests.exports.models import every_width, model, strange_names

MODELS = pytest.mark.parametrize("make", [every_width, strange_names, model])


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("alignment", [1, 16, 4096])
@MODELS
def test_the_arrays_fill_the_file(tmp_path, make, alignment):
    qmath.export(make(), tmp_path / "o.bin", alignment=alignment)
    assert listing(tmp_path / "o.bin") == ["arrays.bin", "arrays.json", "manifest.json"]
    data = (tmp_path / "o.bin/arrays.bin").read_bytes()
    index = json.loads((tmp_path / "o.bin/arrays.json").read_text())
    assert (index["byte_order"], index["alignment"]) == ("little", alignment)
    end = 0
    for entry in index["arrays"].values():
        assert entry["offset"] % alignment == 0
        assert 0 <= entry["offset"] - end < alignment
        assert not any(data[end : entry["offset"]])
        end = entry["offset"] + entry["size"]
        assert zlib.crc32(data[entry["offset"] : end]) == int(entry["crc32"], 16)
    assert end == len(data)


def test_the_index_tells_how_each_array_is_packed(tmp_path):
    qmath.export(model(), tmp_path / "o.bin", packing="msb", signed=False)
    arrays = json.loads((tmp_path / "o.bin/arrays.json").read_text())["arrays"]
    kernel = arrays["conv/kernel"]
    assert kernel["packing"] == "msb"
    assert (kernel["num_bits"], kernel["signed"], kernel["dtype"]) == (4, False, "uint8")
    assert (kernel["shape"], kernel["size"]) == ([3, 3, 2, 5], 45)
    plain = arrays["dw/depthwise_kernel"]  # of 10 bits
    assert (plain["packing"], plain["dtype"], plain["size"]) == (None, "uint16", 90)
    assert arrays["dense/bias"]["dtype"] == "float16"


def test_big_endian_floats_become_little_endian(tmp_path):
    values = np.arange(3, dtype=">f8")
    qmath.export(QatModel({"a": QatTensor("a", "float", values)}), tmp_path / "o.bin")
    assert (tmp_path / "o.bin/arrays.bin").read_bytes() == values.astype("<f8").tobytes()


@MODELS
def test_verify_and_equal_bytes(tmp_path, make):
    for name in ("a", "b"):
        qmath.export(make(), tmp_path / name, format="bin", signed=False, packing="none")
    for name in listing(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert qmath.verify(make(), tmp_path / "a").ok
    data = bytearray((tmp_path / "a/arrays.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "a/arrays.bin").write_bytes(data)
    assert (
        "arrays.bin: it differs from byte 5" in qmath.verify(make(), tmp_path / "a").differences[0]
    )


@pytest.mark.parametrize("alignment", [0, 3, 8192, True, "16", -16])
def test_other_alignments_are_refused(tmp_path, alignment):
    with pytest.raises(OutputError, match=r"is not one of 1, 2, 4, .*, 4096"):
        qmath.export(model(), tmp_path / "o.bin", alignment=alignment)
    assert listing(tmp_path) == []
