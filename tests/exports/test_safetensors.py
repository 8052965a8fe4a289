import io
import json
import re
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from safetensors import safe_open
from safetensors.numpy import load, load_file

import qmath
from qmath import FileFormatError, OutputError, QatModel, QatTensor
from qmath.exports.arrays.safetensors import Safetensors
from qmath.exports.bundle import quantize_model
from tests.exports.models import DENSE, every_width, model, strange_names, weight

SAMPLES = Path("reference/samples")


def written(bundle=None, **options) -> bytes:
    file = io.BytesIO()
    Safetensors(**options).write(bundle or quantize_model(model()), file)
    return file.getvalue()


def unpack_bits(packed, num_bits, order, shape, signed):
    """Read a dense stream back one bit at a time: nothing of qmath."""
    bits = np.unpackbits(packed, bitorder=order)
    values = []
    for i in range(int(np.prod(shape))):
        digits = bits[i * num_bits : (i + 1) * num_bits].tolist()
        digits = digits if order == "big" else digits[::-1]
        value = int("".join(map(str, digits)), 2)
        values.append(value - (1 << num_bits) if signed and digits[0] else value)
    assert not bits[len(values) * num_bits :].any()
    return np.array(values).reshape(shape)


@pytest.mark.parametrize("packing", ["lsb", "msb", "none"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("make", [every_width, strange_names, model])
def test_the_library_reads_the_integers(tmp_path, make, signed, packing):
    path = tmp_path / "o.safetensors"
    bundle = qmath.export(make(), path, signed=signed, packing=packing)
    with safe_open(path, "np") as file:
        manifest, layouts = (json.loads(file.metadata()[key]) for key in ("qmath", "packing"))
        assert manifest == bundle.manifest | {"export": manifest["export"]}
        assert {*file.keys()} == {*bundle.keys()}
        for key, expected in bundle.arrays():
            found, entry = file.get_tensor(key), manifest["tensors"].get(key, {})
            assert (key in layouts) == ((entry.get("num_bits") or 8) < 8 and packing != "none")
            if key in layouts:
                order = {"lsb": "little", "msb": "big"}[layouts[key]]
                assert found.size == -(-expected.size * entry["num_bits"] // 8)
                found = unpack_bits(found, entry["num_bits"], order, entry["shape"], signed)
                found = found.astype(entry["dtype"])
            np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("packing", ["lsb", "msb", "none"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("make", [every_width, strange_names, model])
def test_verify_reads_it(tmp_path, make, signed, packing):
    path = tmp_path / "o.safetensors"
    qmath.export(make(), path, signed=signed, packing=packing)
    found = qmath.verify(make(), path)
    assert found.ok, found.differences
    assert found.tensors == len(make().tensors)


def test_the_integer_model_and_its_vectors_are_in_it(tmp_path):
    path = tmp_path / "o.safetensors"
    bundle = qmath.export(SAMPLES / "default8.h5", path, vectors=2)
    arrays = load_file(path)
    for key, expected in {**bundle.constants, **bundle.vectors}.items():
        np.testing.assert_array_equal(arrays[key], expected, strict=True)
    assert qmath.verify(SAMPLES / "default8.h5", path).ok


def test_equal_bundles_give_equal_bytes():
    assert written() == written()
    assert written() != written(packing="none")


def test_everything_is_aligned():
    data = written(quantize_model(every_width()))
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__")
    assert begin % 8 == 0
    for entry in header.values():
        at = begin + entry["data_offsets"][0]
        assert at % (int(re.sub(r"\D", "", entry["dtype"])) // 8) == 0


def test_every_dtype_and_shape_is_kept():
    dtypes = ["bool", "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32",
              "uint64", "int64", "float64", ">f4"]  # fmt: skip
    tensors = {
        f"{dtype}{shape}": QatTensor(f"{dtype}{shape}", "float", np.ones(shape, dtype))
        for dtype in dtypes
        for shape in ((), (0,), (2, 0, 3), (3, 2))
    }
    data = written(quantize_model(QatModel(tensors)))
    theirs = load(data)
    _, ours = Safetensors().read(io.BytesIO(data))
    for name, tensor in tensors.items():
        expected = np.asarray(tensor.values, tensor.values.dtype.newbyteorder("="))
        np.testing.assert_array_equal(theirs[name], expected, strict=True)
        np.testing.assert_array_equal(ours[name], expected, strict=True)


def test_a_reordered_array_is_written_in_its_new_order():
    name = "f/kernel"
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    data = written(quantize_model(QatModel({name: QatTensor(name, "float", values)})))
    np.testing.assert_array_equal(load(data)[name], values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("__metadata__", np.ones(2, np.float32), "__metadata__: safetensors cannot hold this name"),
        ("odd", np.ones(2, np.complex64), "odd: safetensors cannot hold this dtype complex64"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, name, values, message):
    tensors = {name: QatTensor(name, "float", values)}
    with pytest.raises(OutputError, match=message):
        qmath.export(QatModel(tensors), tmp_path / "o.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_unknown_packing_is_refused(tmp_path):
    with pytest.raises(OutputError, match="packing='nibbles' is not one of lsb, msb, none"):
        qmath.export(model(), tmp_path / "o.safetensors", packing="nibbles")


def test_a_header_too_long_for_the_library_is_refused(monkeypatch):
    monkeypatch.setattr("qmath.exports.arrays.safetensors._LONGEST_HEADER", 1000)
    with pytest.raises(OutputError, match="at most 1000; export to npz"):
        written()


# ---- hostile files


def with_header(change=None, data=None, text=None) -> io.BytesIO:
    """Return a written file whose header went through `change`."""
    source = written(quantize_model(QatModel({"k": weight("k", np.float32([[1, 2, 3]]), DENSE)})))
    begin = 8 + int.from_bytes(source[:8], "little")
    header = json.loads(source[8:begin])
    if change:
        header = change(header) or header
    text = json.dumps(header).encode() if text is None else text
    return io.BytesIO(len(text).to_bytes(8, "little") + text + (source[begin:] + (data or b"")))


def entry(**changes):
    return lambda header: header["k"].update(changes)


def metadata(key, value):
    return lambda header: header["__metadata__"].update({key: value})


def manifest(**changes):
    def change(header):
        held = json.loads(header["__metadata__"]["qmath"])
        held["tensors"]["k"].update(changes)
        header["__metadata__"]["qmath"] = json.dumps(held)

    return change


def test_the_file_that_is_attacked_is_sound():
    _, arrays = Safetensors().read(with_header())
    assert arrays["k"].shape == (1, 3)


ATTACKS = {
    "no object": lambda header: [header],
    "no metadata": lambda header: header.pop("__metadata__") and None,
    "metadata is a list": lambda header: header.update(__metadata__=[]),
    "no manifest": lambda header: header["__metadata__"].pop("qmath") and None,
    "no packing": lambda header: header["__metadata__"].pop("packing") and None,
    "manifest is no JSON": metadata("qmath", "{"),
    "manifest is a list": metadata("qmath", "[]"),
    "manifest nests": metadata("qmath", "[" * 100_000),
    "manifest of another": metadata("qmath", '{"format": "other"}'),
    "manifest of later": metadata("qmath", '{"format": "qmath", "format_version": 2}'),
    "packing is no object": metadata("packing", "3"),
    "unknown dtype": entry(dtype="F8_E4M3"),
    "dtype is a list": entry(dtype=[]),
    "other dtype": entry(dtype="U16"),
    "no shape": entry(shape=None),
    "huge shape": entry(shape=[1 << 62, 1 << 62, 0]),
    "long shape": entry(shape=[2] * 33),
    "negative shape": entry(shape=[-1, -2]),
    "shape of a float": entry(shape=[2.0]),
    "one offset": entry(data_offsets=[0]),
    "beyond the end": entry(data_offsets=[8, 8 + (1 << 40)], shape=[1 << 40]),
    "negative offset": entry(data_offsets=[-2, 0]),
    "overlap": entry(data_offsets=[0, 2]),
    "a hole": lambda header: header.pop("k") and None,
    "an entry is a list": lambda header: header.update(k=[]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_headers_are_refused(attack):
    with pytest.raises(FileFormatError):
        Safetensors().read(with_header(ATTACKS[attack]))


LATER_ATTACKS = {
    "unknown layout": metadata("packing", '{"k": "words"}'),
    "layout is a list": metadata("packing", '{"k": ["lsb"]}'),
    "huge shape": manifest(shape=[1 << 39, 1 << 39]),
    "empty huge shape": manifest(shape=[0, 1 << 62]),
    "long shape": manifest(shape=[1] * 40),
    "shape is a text": manifest(shape="3"),
    "no width": manifest(num_bits=None),
    "width of a byte": manifest(num_bits=8),
    "another width": manifest(num_bits=7),
    "signed is a number": manifest(signed=1),
}


@pytest.mark.parametrize("attack", LATER_ATTACKS)
def test_hostile_packing_is_refused_when_read(attack):
    _, arrays = Safetensors().read(with_header(LATER_ATTACKS[attack]))
    with pytest.raises(FileFormatError, match="the array 'k' is damaged"):
        arrays["k"]


def test_an_unpacked_array_of_a_packed_one_is_found(tmp_path):
    source = QatModel({"k": weight("k", np.float32([[1, 2, 3]]), DENSE)})
    path = tmp_path / "o.safetensors"
    path.write_bytes(with_header(metadata("packing", "{}")).getvalue())
    assert not qmath.verify(source, path).ok


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff\xfe", b"{" * 9])
def test_other_headers_are_refused(text):
    with pytest.raises(FileFormatError):
        Safetensors().read(with_header(text=text))


def test_truncations_and_additions_are_refused():
    data = written()
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(FileFormatError):
            Safetensors().read(io.BytesIO(data[:size]))
    with pytest.raises(FileFormatError, match="do not fill the file"):
        Safetensors().read(io.BytesIO(data + b"\0"))
    with pytest.raises(FileFormatError, match="no safetensors file, or it was cut"):
        Safetensors().read(io.BytesIO(b"\xff" * 8 + data[8:]))


SOUND = written()


@given(st.data())
def test_damage_is_refused_or_reads_as_arrays(data):
    content = bytearray(SOUND)
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, end - 1))
        content[at] = data.draw(st.sampled_from(b'0123456789[]{}",:-e\\ \x00\xff'))
    try:
        _, arrays = Safetensors().read(io.BytesIO(content))
        for key in arrays:
            assert arrays[key].nbytes <= 4 * len(content)
    except FileFormatError:
        pass


def test_a_changed_integer_is_found(tmp_path):
    path = tmp_path / "o.safetensors"
    qmath.export(every_width(), path)
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    at = 8 + int.from_bytes(data[:8], "little") + header["tensor3/kernel"]["data_offsets"][0]
    data[at] ^= 1
    path.write_bytes(data)
    found = qmath.verify(every_width(), path)
    assert found.differing == 1
    assert "tensor3/kernel" in found.differences[0]


def test_reading_does_not_depend_on_the_order_of_tensors():
    tensors = every_width().tensors
    reverse = replace(every_width(), tensors=dict(reversed(tensors.items())))
    _, arrays = Safetensors().read(io.BytesIO(written(quantize_model(reverse))))
    for name, array in quantize_model(every_width()).arrays():
        np.testing.assert_array_equal(arrays[name], array)
