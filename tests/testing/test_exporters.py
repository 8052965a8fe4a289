"""The contract of formats, and the kit that checks it."""

import sys
import types
from importlib import metadata

import pytest

import qmath
from qmath import FileFormatError, OutputError
from qmath.exports import Exporter, option
from qmath.testing import check_exporter, sample_models

NETWORK, _ = sample_models()


class One(Exporter):
    """One file, which depends on everything that a user may ask."""

    name = "one"
    suffixes = ("1",)
    ending: str = option(".", "the last character", choices=(".", "!"))

    def files(self, bundle):
        arrays = b"".join(array.tobytes() for _, array in bundle.arrays())
        yield "one", arrays + self.ending.encode()


@pytest.fixture
def installed(monkeypatch):
    """Return what installs a package with one format."""

    def install(found, value="users_format:One", name="one"):
        monkeypatch.setitem(sys.modules, "users_format", types.SimpleNamespace(One=found))
        point = metadata.EntryPoint(name, value, "qmath.exports")
        monkeypatch.setattr(metadata, "entry_points", lambda **_: [point])

    return install


def test_the_kit_accepts_a_good_format():
    check_exporter(One)


class Unstable(One):
    calls = 0

    def files(self, bundle):
        Unstable.calls += 1
        yield "one", b"%d %d" % (len(bundle.tensors), Unstable.calls)


def yielding(*items):
    class Yielding(One):
        def files(self, bundle):
            assert bundle.manifest["tensors"]
            yield from items

    return Yielding


def raising(error):
    class Raising(One):
        def files(self, bundle):
            assert bundle.manifest["tensors"]
            raise error

    return Raising


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Unstable, "differ from one export to the next"),
        (yielding(("../one", b"1")), "not those of files in one folder"),
        (yielding(("one", b"1"), ("two", b"2")), "2 files and no folder"),
        (raising(OutputError("no")), "refuses every model"),
    ],
)
def test_the_kit_finds_what_is_wrong(bad, said):
    with pytest.raises(AssertionError, match=said):
        check_exporter(bad)


@pytest.mark.parametrize(
    "asked",
    [{}, {"signed": False}, {"layouts": ["OI"]}, {"vectors": 2}, {"multiplier_bits": 9},
     {"ending": "!"}],
    ids=str,
)  # fmt: skip
def test_verify_renders_again_with_every_option(tmp_path, installed, asked):
    installed(One)
    qmath.export(NETWORK, tmp_path / "o.1", **asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.1", "o.1.manifest.json"]
    assert qmath.verify(NETWORK, tmp_path / "o.1").ok
    with open(tmp_path / "o.1", "ab") as file:
        file.write(b"x")
    assert not qmath.verify(NETWORK, tmp_path / "o.1").ok


def test_without_its_manifest_a_file_is_refused_and_not_called_different(tmp_path, installed):
    installed(One)
    qmath.export(NETWORK, tmp_path / "o.one")
    (tmp_path / "o.one.manifest.json").unlink()
    with pytest.raises(FileFormatError, match=r"o\.one\.manifest\.json cannot be read"):
        qmath.verify(NETWORK, tmp_path / "o.one")


def test_a_manifest_beside_the_file_is_not_overwritten_unasked(tmp_path, installed):
    installed(One)
    (tmp_path / "o.one.manifest.json").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        qmath.export(NETWORK, tmp_path / "o.one")
    assert [path.name for path in tmp_path.iterdir()] == ["o.one.manifest.json"]


NAMELESS = type("NAMELESS", (One,), {"name": "two"})
NO_FILES = type("NO_FILES", (Exporter,), {"name": "one"})


@pytest.mark.parametrize(
    ("found", "value", "said"),
    [
        (One, "users_format:Another", "loading users_format:Another failed"),
        (One, "no_such_module:One", "loading no_such_module:One failed"),
        (print, "users_format:One", "not a subclass of qmath.exports.Exporter"),
        (One(), "users_format:One", "not a subclass of qmath.exports.Exporter"),
        (NAMELESS, "users_format:One", "has the name 'two'"),
        (NO_FILES, "users_format:One", "has no method files"),
        (yielding(("one", "text")), "users_format:One", "yields str and str, not a name and bytes"),
        (yielding((1, b"")), "users_format:One", "yields int and bytes"),
        (yielding(("one",)), "users_format:One", "fault of its package.*unpack"),
        (raising(KeyError("x")), "users_format:One", r"fault of its package: KeyError\('x'\)"),
    ],
)
def test_a_package_at_fault_is_one_clear_error(tmp_path, installed, found, value, said):
    installed(found, value)
    with pytest.raises(OutputError, match=f"'one'.*{said}"):
        qmath.export(NETWORK, tmp_path / "o", format="one")
    assert list(tmp_path.iterdir()) == []


def test_an_option_is_declared_by_its_default():
    assert [(o.name, o.default, o.allowed) for o in One.options] == [("ending", ".", "one of ., !")]
    assert One(ending="!").given == {"ending": "!"}
    for options in ({"ending": "?"}, {"ending": 1}, {"start": "."}):
        with pytest.raises(OutputError, match="the format 'one'"):
            One(**options)


def test_options_that_are_told_when_loading(tmp_path):
    with pytest.raises(OutputError, match=r"quantizers is an option of qmath\.load"):
        qmath.export(NETWORK, tmp_path / "o.npz", quantizers={})


def test_a_class_is_a_format(tmp_path):
    qmath.export(NETWORK, tmp_path / "o", format=One, ending="!")
    assert qmath.verify(NETWORK, tmp_path / "o", format=One).ok
    with pytest.raises(FileFormatError, match="was exported as 'one', and is verified as 'two'"):
        qmath.verify(NETWORK, tmp_path / "o", format=NAMELESS)
