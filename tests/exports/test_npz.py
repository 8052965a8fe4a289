import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from qmath import FileFormatError, QatModel, QatTensor, QmathError
from qmath.exports.arrays.npz import Npz, NpzWriter, write_arrays
from qmath.exports.bundle import quantize_model
from tests.exports.models import model, unknown


def written(bundle=None) -> io.BytesIO:
    file = io.BytesIO()
    Npz().write(bundle or quantize_model(model()), file)
    file.seek(0)
    return file


def test_equal_bundles_give_equal_bytes():
    assert written().getvalue() == written().getvalue()


def test_numpy_alone_reads_it():
    bundle = quantize_model(model(**{"up/post_activation": unknown("up/post_activation")}))
    with np.load(written(bundle), allow_pickle=False) as arrays:
        manifest = json.loads(arrays["manifest"].tobytes())
        assert manifest == bundle.manifest | {"export": manifest["export"]}
        assert sorted(arrays.files) == sorted(["manifest", *dict(bundle.arrays())])
        for name, array in bundle.arrays():
            assert arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(arrays[name], array)
        assert "up/post_activation.scale" not in arrays
        values, scale = arrays["conv/kernel"], arrays["conv/kernel.scale"]
        zero_point = arrays["conv/kernel.zero_point"]
        assert (values.dtype, scale.dtype, zero_point.dtype) == (np.int8, np.float32, np.int32)
        real = (values.astype(np.int32) - zero_point).astype(np.float32) * scale
        np.testing.assert_array_equal(real, bundle.tensors["conv/kernel"].dequantize())


def test_reader_returns_what_was_written():
    bundle = quantize_model(model(), layouts=["OHWI"])
    manifest, arrays = Npz().read(written(bundle))
    assert manifest == bundle.manifest | {"export": manifest["export"]}
    expected = dict(bundle.arrays())
    assert sorted(arrays) == sorted(expected)
    assert len(arrays) == len(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_scalars_and_empty_arrays_keep_their_shape():
    tensors = {
        name: QatTensor(name, "float", np.zeros(shape, np.float32))
        for name, shape in {"scalar": (), "empty": (0, 3), "größe/日本": (2,)}.items()
    }
    _, arrays = Npz().read(written(quantize_model(QatModel(tensors))))
    assert {name: arrays[name].shape for name in arrays} == {
        "scalar": (), "empty": (0, 3), "größe/日本": (2,)
    }  # fmt: skip


def test_names_that_numpy_confuses_are_refused():
    tensors = {name: QatTensor(name, "float", np.zeros(1, np.float32)) for name in ("x", "x.npy")}
    for order in (list(tensors), list(tensors)[::-1]):
        bundle = quantize_model(QatModel({name: tensors[name] for name in order}))
        with pytest.raises(QmathError, match="this name is also that of"):
            written(bundle)


def test_truncations_are_refused():
    data = written().getvalue()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(FileFormatError):
            Npz().read(io.BytesIO(data[:size]))


def test_the_manifest_is_the_last_member():
    with zipfile.ZipFile(written()) as archive:
        assert archive.namelist()[-1] == "manifest.npy"


def test_a_file_whose_manifest_is_the_first_member_is_read():
    expected, arrays = Npz().read(written())
    file = io.BytesIO()
    first = ("manifest", np.frombuffer(json.dumps(expected).encode(), np.uint8))
    write_arrays(file, [first, *arrays.items()])
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist()[0] == "manifest.npy"
    manifest, found = Npz().read(file)
    assert manifest == expected
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_rows_that_are_given_up_leave_nothing():
    file, expected = io.BytesIO(), io.BytesIO()
    writer = NpzWriter(file)
    writer.rows("a", (4, 1000), np.dtype(np.int8)).append(np.ones((3, 1000), np.int8))
    rows = writer.rows("a", (2, 3), np.dtype(np.int8))
    for row in np.arange(6, dtype=np.int8).reshape(2, 1, 3):
        rows.append(row)
    rows.close()
    np.testing.assert_array_equal(writer.read("a"), [[0, 1, 2], [3, 4, 5]])
    writer.rows("b", (4, 1000), np.dtype(np.int8)).append(np.ones((3, 1000), np.int8))
    writer.finish({})
    manifest = np.frombuffer(b"{}", np.uint8)
    write_arrays(
        expected, [("a", np.arange(6, dtype=np.int8).reshape(2, 3)), ("manifest", manifest)]
    )
    assert file.getvalue() == expected.getvalue()


def test_rows_that_are_missing_are_told():
    rows = NpzWriter(io.BytesIO()).rows("a", (2, 3), np.dtype(np.int8))
    rows.append(np.ones((1, 3), np.int8))
    with pytest.raises(QmathError, match=r"a\.npy: 3 of its bytes are missing"):
        rows.close()


def repacked(change) -> io.BytesIO:
    """Return an archive whose members went through `change`: name, bytes → bytes or None."""
    result = io.BytesIO()
    with zipfile.ZipFile(written()) as source, zipfile.ZipFile(result, "w") as target:
        for info in source.infolist():
            data = change(info.filename, source.read(info))
            if data is not None:
                target.writestr(info.filename, data)
    result.seek(0)
    return result


def test_archives_of_others_are_refused():
    plain = io.BytesIO()
    np.savez(plain, a=np.zeros(3))
    with pytest.raises(FileFormatError, match="has no manifest"):
        Npz().read(plain)
    other = io.BytesIO()
    np.savez(other, manifest=np.frombuffer(b'{"format": "other"}', np.uint8))
    with pytest.raises(FileFormatError, match="not one that qmath wrote"):
        Npz().read(other)
    nonsense = io.BytesIO()
    np.savez(nonsense, manifest=np.frombuffer(b"[" * 100_000, np.uint8))
    with pytest.raises(FileFormatError, match="not JSON"):
        Npz().read(nonsense)
    later = io.BytesIO()
    np.savez(later, manifest=np.frombuffer(b'{"format": "qmath", "format_version": 9}', np.uint8))
    with pytest.raises(FileFormatError, match="version 9"):
        Npz().read(later)
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(FileFormatError, match=r"readme\.txt"):
        Npz().read(text)


def test_compressed_members_are_refused():
    bomb = io.BytesIO()
    np.savez_compressed(bomb, manifest=np.zeros(10, np.uint8))
    with pytest.raises(FileFormatError, match="compressed"):
        Npz().read(bomb)


def test_headers_that_claim_more_than_there_is_are_refused():
    def claim(name, data):
        if name != "dense/kernel.npy":
            return data
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
        )
        return header.getvalue() + bytes(16)

    _, arrays = Npz().read(repacked(claim))
    assert "dense/kernel" in arrays  # which reads nothing
    assert "dense" not in arrays
    with pytest.raises(FileFormatError, match="header does not fit"):
        arrays["dense/kernel"]


def test_members_over_each_other_are_refused():
    content = bytearray(written().getvalue())
    at = content.index(b"PK\x01\x02")
    at = content.index(b"PK\x01\x02", at + 1)
    content[at + 42 : at + 46] = bytes(4)  # where the second member begins
    with pytest.raises(FileFormatError, match="those of another member"):
        Npz().read(io.BytesIO(content))


def test_objects_are_refused():
    pickled = io.BytesIO()
    np.lib.format.write_array(pickled, np.array([{}], object), allow_pickle=True)
    _, arrays = Npz().read(
        repacked(lambda name, data: pickled.getvalue() if name == "dense/kernel.npy" else data)
    )
    with pytest.raises(FileFormatError, match="damaged"):
        arrays["dense/kernel"]


class Lazy:
    shape, dtype = (4 << 20,), np.dtype(np.float32)  # 16 MiB

    def __array__(self, dtype=None, copy=None):
        return np.ones(self.shape, self.dtype)


class Null(io.RawIOBase):
    at = 0

    def writable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.at

    def seek(self, at):
        self.at = at
        return at

    def write(self, data):
        self.at += len(data)
        return len(data)


def test_writing_holds_one_tensor_at_a_time():
    bundle = quantize_model(
        QatModel({f"t{i}": QatTensor(f"t{i}", "float", Lazy()) for i in range(5)})
    )
    tracemalloc.start()
    try:
        Npz().write(bundle, Null())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 16 << 20 < peak < 40 << 20  # one and what is made of it; all are 80 MiB


def test_arrays_may_have_any_name(tmp_path):
    arrays = {name: np.arange(3) for name in ("file", "args", "kwds", "a/b")}
    with open(tmp_path / "a.npz", "wb") as file:
        write_arrays(file, arrays.items())
    with np.load(tmp_path / "a.npz") as written:
        assert set(written) == set(arrays)


def test_arrays_have_one_name_each():
    with pytest.raises(QmathError, match=r"a: in an \.npz this name is also that of a"):
        write_arrays(io.BytesIO(), [("a", np.arange(3)), ("a", np.arange(4))])
