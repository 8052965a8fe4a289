import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import types
from importlib import metadata, resources

import jsonschema
import numpy as np
import pytest

import qmath
from qmath import FileFormatError, OutputError, QmathError, export
from qmath.exports import Exporter, formats, option
from qmath.exports.arrays.npz import Npz
from qmath.exports.output import atomic
from qmath.exports.output.atomic import replacing_folder
from qmath.exports.registry import exporter_class
from tests.exports.models import model

SAMPLE = "reference/samples/default8.h5"


class Names(Exporter):
    name = "names"
    is_folder = True
    ending: str = option("\n", "what follows each name")

    def files(self, bundle):
        yield "names.txt", (self.ending.join(bundle.tensors) + self.ending).encode()
        yield "kernel.bin", bundle.tensors["conv/kernel"].values.tobytes()


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """A format that a user's package adds: an entry point is all it takes."""
    monkeypatch.setitem(sys.modules, "users_format", types.SimpleNamespace(Names=Names))
    point = metadata.EntryPoint("names", "users_format:Names", "qmath.exports")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] * (group == point.group))


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_holds_the_files_and_a_manifest(tmp_path):
    export(model(), tmp_path / "out.names", ending="\r\n")
    assert listing(tmp_path) == ["out.names"]
    assert listing(tmp_path / "out.names") == ["kernel.bin", "manifest.json", "names.txt"]
    manifest = json.loads((tmp_path / "out.names/manifest.json").read_text())
    assert manifest["export"]["format"] == "names"
    assert manifest["export"]["options"] == {"ending": "\r\n"}
    assert manifest["export"]["files"]["kernel.bin"]["size"] == 3 * 3 * 2 * 5
    assert manifest["tensors"].keys() == model().tensors.keys()
    assert manifest["export"]["identifiers"]["conv_kernel_scale"] == "conv/kernel.scale"
    schema = json.loads((resources.files("qmath.exports") / "manifest.schema.json").read_text())
    jsonschema.validate(manifest, schema)


def test_equal_models_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        export(model(), tmp_path / name, format="names")
    for name in listing(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_verify_renders_again(tmp_path):
    place = tmp_path / "folder"
    export(model(), place, format="names", layouts=["OHWI"])
    assert qmath.verify(model(), place).ok
    (place / "kernel.bin").write_bytes(b"\x7f" + (place / "kernel.bin").read_bytes()[1:])
    (place / "more").touch()
    result = qmath.verify(model(), place)
    assert len(result.differences) == 2
    assert "kernel.bin: it differs from byte 0 on" in result.differences[0]
    assert "more: unexpected" in result.differences[1]
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["export"]["identifiers"]["conv_kernel"] = "up/kernel"
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert (
        "manifest.json: what it says of the export differs"
        in qmath.verify(model(), place).differences
    )
    (place / "names.txt").unlink()
    assert any("names.txt" in line for line in qmath.verify(model(), place).differences)


def test_verify_finds_another_model(tmp_path):
    export(model(), tmp_path / "o.names")
    values = np.array(model().tensors["dense/kernel"].values)
    values[0, 0] = -values[0, 0]
    tensor = qmath.QatTensor(**{**vars(model().tensors["dense/kernel"]), "values": values})
    result = qmath.verify(model(**{"dense/kernel": tensor}), tmp_path / "o.names")
    assert not result.ok


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "qmath"}', "\0"])
def test_verify_refuses_a_damaged_manifest(tmp_path, damage):
    export(model(), tmp_path / "o.names")
    (tmp_path / "o.names/manifest.json").write_text(damage)
    with pytest.raises(FileFormatError, match=r"manifest\.json"):
        qmath.verify(model(), tmp_path / "o.names")


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path):
    export(model(), tmp_path / "o.npz")
    with pytest.raises(FileFormatError, match="folder of files"):
        qmath.verify(model(), tmp_path / "o.npz", format="names")
    export(model(), tmp_path / "o.names")
    with pytest.raises(FileFormatError, match="one file"):
        qmath.verify(model(), tmp_path / "o.names", format="npz")
    with pytest.raises(OutputError, match="is a file"):
        export(model(), tmp_path / "o.npz", format="names", overwrite=True)


def test_verify_says_that_there_is_nothing(tmp_path):
    for name in ("o.npz", "o.names"):
        with pytest.raises(FileFormatError, match=f"cannot read .*{name}: No such file"):
            qmath.verify(model(), tmp_path / name)


def test_only_a_folder_of_qmaths_own_is_replaced(tmp_path):
    place = tmp_path / "o.names"
    export(model(), place)
    with pytest.raises(OutputError, match="exists"):
        export(model(), place)
    export(model(), place, overwrite=True, ending=" ")
    assert b" " in (place / "names.txt").read_bytes()
    (place / "mine").write_text("precious")
    with pytest.raises(OutputError, match="holds mine, which qmath did not write"):
        export(model(), place, overwrite=True)
    assert (place / "mine").read_text() == "precious"
    with pytest.raises(OutputError, match="did not write there"):
        export(model(), tmp_path, format="names", overwrite=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_old_folder(tmp_path, error):
    place = tmp_path / "o.names"
    export(model(), place)
    before = {name: (place / name).read_bytes() for name in listing(place)}

    def interrupted():
        with replacing_folder(place, overwrite=True) as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises((OutputError, KeyboardInterrupt)):
        interrupted()
    assert listing(tmp_path) == ["o.names"]
    assert {name: (place / name).read_bytes() for name in listing(place)} == before


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_folder_takes_the_old_ones_place(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "o", overwrite=True) as folder:
            about = {"files": {"a": 1}, "options": {}}
            manifest = {"format": "qmath", "format_version": 1, "export": about}
            (folder / "manifest.json").write_text(json.dumps(manifest))
            (folder / "a").write_text(text)
    assert (tmp_path / "o/a").read_text() == "new"
    assert listing(tmp_path) == ["o"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    export(model(), tmp_path / "o.names")
    real = os.rename

    def refuse(old, new):
        if str(new).endswith("o.names") and (old / "names.txt").read_bytes().endswith(b";"):
            raise OSError(5, "Input/output error")
        real(old, new)

    monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match="Input/output error"):
        export(model(), tmp_path / "o.names", overwrite=True, ending=";")
    assert listing(tmp_path) == ["o.names"]
    assert (tmp_path / "o.names/names.txt").read_bytes().endswith(b"\n")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_export_leaves_the_old_folder(tmp_path):
    export(model(), tmp_path / "o.names")
    code = f"""
        import os, pathlib
        from qmath.exports.output.atomic import replacing_folder
        path = pathlib.Path({str(tmp_path / "o.names")!r})
        with replacing_folder(path, overwrite=True) as folder:
            (folder / "half").write_text("half")
            os.kill(os.getpid(), 9)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert qmath.verify(model(), tmp_path / "o.names").ok


@pytest.mark.skipif(not shutil.which("mount") or os.name != "posix", reason="needs a full disk")
def test_a_full_disk_leaves_the_old_folder(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        export(model(), disk / "o.names")
        with pytest.raises(OutputError, match="No space left"):
            export(model(), disk / "o.names", overwrite=True, ending="x" * 20_000)
        assert listing(disk) == ["o.names"]
        assert qmath.verify(model(), disk / "o.names").ok
    finally:
        subprocess.run(["umount", disk], check=True)


def test_options_a_format_does_not_have_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"'names' has no option 'packing'.*ending"):
        export(model(), tmp_path / "o.names", packing="lsb")
    with pytest.raises(OutputError, match="'npz' has no option 'ending'; it has none"):
        export(model(), tmp_path / "o.npz", ending="")


def test_a_format_of_qmaths_own_cannot_be_taken_over(monkeypatch):
    point = metadata.EntryPoint("npz", "users_format:Names", "qmath.exports")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] * (group == point.group))
    with pytest.raises(
        OutputError, match=r"'npz' is both qmath\.exports\.arrays\.npz:Npz and users_format:Names"
    ):
        formats()


def test_for_a_format_of_qmaths_own_no_other_package_is_asked(monkeypatch):
    def refuse(group):
        raise AssertionError(group)

    monkeypatch.setattr(metadata, "entry_points", refuse)
    assert exporter_class("model.npz") is exporter_class("model", "NPZ") is Npz
    with pytest.raises(AssertionError, match=r"qmath\.exports"):
        exporter_class("model.names")


@pytest.mark.parametrize("name", ["../out", "names.txt", "manifest.json"])
def test_a_format_names_each_file_once_in_its_folder(tmp_path, monkeypatch, name):
    class Bad(Names):
        def files(self, bundle):
            yield from super().files(bundle)
            yield name, b""

    monkeypatch.setitem(sys.modules, "users_format", types.SimpleNamespace(Names=Bad))
    with pytest.raises(OutputError, match="fault of the format's package"):
        export(model(), tmp_path / "o.names")
    assert listing(tmp_path) == []


def test_vectors_need_an_integer_model(tmp_path):
    with pytest.raises(QmathError, match=r"test vectors need an integer model.*no integer model"):
        export(model(), tmp_path / "o.npz", vectors=2)
    assert listing(tmp_path) == []


def test_golden_vectors_are_what_the_integer_model_makes(tmp_path):
    pytest.importorskip("h5py")
    bundle = export(SAMPLE, tmp_path / "o.npz", vectors=3, multiplier_bits=16)
    (name,) = bundle.program.inputs
    again = qmath.run(SAMPLE, bundle.vectors[f"vectors/{name}"], multiplier_bits=16)
    with np.load(tmp_path / "o.npz") as arrays:
        assert arrays[f"vectors/{name}"].shape == (3, *bundle.program.inputs[name])
        for step, integers in again.integers.items():
            np.testing.assert_array_equal(arrays[f"vectors/{step}"], integers)
        assert arrays["conv1/post_activation.multiplier"].max() < 2**16
    assert qmath.verify(SAMPLE, tmp_path / "o.npz").ok


def test_verify_checks_the_integer_model(tmp_path):
    pytest.importorskip("h5py")
    export(SAMPLE, tmp_path / "o.npz", vectors=1)
    with np.load(tmp_path / "o.npz") as arrays:
        held = dict(arrays)
    manifest = json.loads(held["manifest"].tobytes())
    held["conv1/post_activation.addend"] = held["conv1/post_activation.addend"] + 1
    manifest["program"]["steps"][1]["terms"][0]["ops"][0]["strides"] = [3, 3]
    held["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    np.savez(tmp_path / "o.npz", **held)
    words = " ".join(qmath.verify(SAMPLE, tmp_path / "o.npz").differences)
    assert "conv1/post_activation.addend" in words
    assert "step conv1/post_activation of the program" in words
