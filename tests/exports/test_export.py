import io
import os
import stat

import numpy as np
import pytest

from qmath import OutputError, QmathError, export
from qmath.exports.arrays.npz import Npz
from qmath.exports.output.atomic import replacing
from qmath.exports.output.temporary import Temporary
from tests.exports.models import model


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_export_writes_one_file(tmp_path):
    bundle = export(model(), tmp_path / "out.npz")
    assert listing(tmp_path) == ["out.npz"]
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["conv/kernel"], bundle.tensors["conv/kernel"].values)


def test_new_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    export(model(), tmp_path / "out.npz")
    assert stat.S_IMODE((tmp_path / "out.npz").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_existing_file_stays_unless_told(tmp_path):
    path = tmp_path / "out.npz"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"out\.npz exists.*--overwrite"):
        export(model(), path)
    assert path.read_text() == "old"
    export(model(), path, overwrite=True)
    assert path.read_bytes().startswith(b"PK")
    assert listing(tmp_path) == ["out.npz"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.npz"
    path.write_text("old")

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Temporary, "open", lambda _: Full())
    with pytest.raises(OutputError, match=r"cannot write .*out\.npz: No space left on device"):
        export(model(), path, overwrite=True)
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["out.npz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, QmathError])
def test_an_interruption_leaves_nothing(tmp_path, error):
    def interrupted():
        with replacing(tmp_path / "out.npz", overwrite=False) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert listing(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_special_files_are_refused():
    with pytest.raises(OutputError, match="not a regular file"):
        export(model(), "/dev/full", format="npz")


def test_unwritable_folder(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_EXCL:  # root may write anywhere
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*out\.npz: Permission denied"):
        export(model(), tmp_path / "out.npz")
    assert listing(tmp_path) == []


def test_missing_folder(tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"):
        export(model(), tmp_path / "no" / "out.npz")


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        export(model(), tmp_path / "file" / "out.npz")


def test_too_long_name(tmp_path):
    with pytest.raises(OutputError, match="name too long"):
        export(model(), tmp_path / ("x" * 300 + ".npz"))


def test_directory_as_output(tmp_path):
    with pytest.raises(OutputError, match="is a directory"):
        export(model(), tmp_path, format="npz", overwrite=True)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real.npz").write_text("old")
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    export(model(), tmp_path / "link.npz", overwrite=True)
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "real.npz").read_bytes().startswith(b"PK")


@pytest.mark.parametrize(("name", "format"), [("out.xyz", None), ("out", None), ("out.npz", "pdf")])
def test_unknown_formats(tmp_path, name, format):
    with pytest.raises(OutputError, match="use one of: npz, "):
        export(model(), tmp_path / name, format=format)
    assert listing(tmp_path) == []


def test_the_model_is_never_the_output(tmp_path):
    path = tmp_path / "model.h5"
    path.write_text("the model")
    with pytest.raises(OutputError, match="is an input itself"):
        export(path, path, format="npz", overwrite=True)
    assert path.read_text() == "the model"


def test_errors_of_the_caller_are_not_those_of_the_output(tmp_path):
    def progress(*_):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        export(model(), tmp_path / "out.npz", progress=progress)
    assert listing(tmp_path) == []


def test_a_format_that_says_otherwise_what_is_in_its_file_is_asked_for_it(tmp_path):
    class Own(Npz):
        name = "own"

        def files(self, bundle):
            yield "own.txt", " ".join(bundle.keys()).encode()

    export(model(), tmp_path / "out.own", format=Own)
    assert (tmp_path / "out.own").read_text().startswith("quantize_layer/output.scale ")
