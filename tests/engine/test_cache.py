"""What is compiled lies where no other user could have written it; what fails is one line."""

import ctypes
import os
import platform
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath import QmathError
from qmath.engine import cache
from qmath.engine.compiler import compiled
from qmath.engine.source import exported, source_of
from qmath.integer.api import program_of
from qmath.kernels._environment import flushes_subnormals
from tests.cli.running import fails
from tests.exports.compiling import needs_compiler
from tests.helpers import read_npz

SAMPLES = "reference/samples"
DATA = f"{SAMPLES}/digits_test.npz"
ANSWER = {"main.c": b'#include "other.c"\nint answer(void) { return OTHER; }\n'}
ANSWER["other.c"] = b"#define OTHER 42\n"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the engine needs a POSIX system")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "made" / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "made" / "cache" / "qmath"


def test_the_folder_is_made_for_its_user_alone(place):
    before = os.umask(0)
    try:
        assert cache.cache_folder() == place.resolve()
    finally:
        os.umask(before)
    for path in (place, place.parent):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("above", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_write_is_refused(place, above, mode):
    cache.cache_folder()
    (place, *place.parents)[above].chmod(mode)
    with pytest.raises(QmathError, match=r"can be written by other users.*XDG_CACHE_HOME"):
        cache.cache_folder()


def test_a_sticky_folder_above_is_safe_and_the_folder_itself_is_not(place):
    cache.cache_folder()
    place.parent.chmod(0o1777)
    assert cache.cache_folder() == place.resolve()
    place.chmod(0o1777)
    with pytest.raises(QmathError, match="can be written"):
        cache.cache_folder()


def test_a_folder_of_another_user_is_refused(place, monkeypatch):
    cache.cache_folder()
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    with pytest.raises(QmathError, match="belongs to the user"):
        cache.cache_folder()


def test_a_link_counts_as_what_it_leads_to(place, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    real.chmod(0o777)
    place.parent.mkdir(parents=True)
    place.symlink_to(real)
    with pytest.raises(QmathError, match="real can be written by other users"):
        cache.cache_folder()


def test_a_file_in_the_way_is_one_line(place):
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    with pytest.raises(QmathError, match=r"cannot be used \(File exists\)"):
        cache.cache_folder()


def test_without_a_name_it_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = cache.cache_folder()
    assert tmp_path.resolve() in found.parents
    assert found.name == "qmath"


@needs_compiler
def test_what_others_could_have_written_is_not_loaded(place):
    library = compiled(ANSWER, "main.c")
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    assert [*place.iterdir()] == [library]  # and nothing beside it
    library.chmod(0o770)
    with pytest.raises(QmathError, match="can be written by other users"):
        compiled(ANSWER, "main.c")
    library.unlink()
    library.symlink_to("/etc/hostname")
    with pytest.raises(QmathError, match="is no regular file"):
        compiled(ANSWER, "main.c")


@needs_compiler
def test_the_key_holds_sources_and_compiler(monkeypatch):
    first = compiled(ANSWER, "main.c")
    assert compiled(ANSWER, "main.c") == first
    assert compiled(ANSWER | {"other.c": b"#define OTHER 43\n"}, "main.c") != first
    monkeypatch.setenv("CC", "cc -DANOTHER")
    assert compiled(ANSWER, "main.c") != first


@needs_compiler
def test_a_damaged_library_is_one_line():
    model = qmath.load(f"{SAMPLES}/nbit4.h5")
    source = source_of(exported(model, program_of(model), 31))
    library = compiled(source.files, source.main)
    other = compiled(ANSWER, "main.c").read_bytes()
    for content, fault in ((b"not a library", "cannot be loaded"), (other, "lacks the function")):
        library.unlink()  # not overwritten: it is loaded
        library.write_bytes(content)
        library.chmod(0o700)
        with pytest.raises(QmathError, match=f"{library.name} {fault}.*delete it"):
            qmath.run(model, read_npz(DATA)["images"][:1], engine="c")


@needs_compiler
@pytest.mark.parametrize(
    ("cc", "fault"),
    [
        ("true", "the compiler 'true' wrote no library; name another by CC"),
        ("echo", "the compiler 'echo' wrote no library; name another by CC"),
        ("cc -c", r"what the compiler 'cc' made cannot be loaded \(.*\); name another by CC"),
        ("cc 'unbalanced", 'CC is "cc \'unbalanced", which is no command: No closing quotation'),
    ],
)
def test_what_makes_no_library_leaves_nothing(monkeypatch, place, cc, fault):
    monkeypatch.setenv("CC", cc)
    with pytest.raises(QmathError, match=fault):
        compiled(ANSWER, "main.c")
    assert not place.exists() or not [*place.iterdir()]


THIRD = b"""#ifdef __FAST_MATH__
#error "fast"
#endif
__attribute__((visibility("default"))) float third(float x) { return x / 3.0f; }
"""


@needs_compiler
@pytest.mark.parametrize(
    "option", ["-ffast-math", "-funsafe-math-optimizations", "-freciprocal-math"]
)
def test_options_that_change_floats_are_taken_back(monkeypatch, option):
    monkeypatch.setenv("CC", f"cc {option}")

    def thirds() -> tuple[list[float], bool]:
        third = ctypes.CDLL(str(compiled({"main.c": THIRD}, "main.c"))).third
        third.argtypes, third.restype = [ctypes.c_float], ctypes.c_float
        return [third(x) for x in range(100)], flushes_subnormals()

    with ThreadPoolExecutor(1) as thread:
        found, flushes = thread.submit(thirds).result()
    assert found == (np.arange(100, dtype=np.float32) / np.float32(3)).tolist()
    assert not flushes


@needs_compiler
def test_options_that_cannot_be_taken_back_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", script(tmp_path / "cc", 'exec cc "$@" -ffast-math'))
    with pytest.raises(QmathError, match="floats are not computed as IEEE 754 says"):
        qmath.run(f"{SAMPLES}/nbit4.h5", read_npz(DATA)["images"][:1], engine="c")


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="it sets a bit of x86's")
def test_a_library_that_flushes_subnormals_is_refused(place):
    flush = "__builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);"
    source = f"__attribute__((constructor)) static void flush(void) {{ {flush} }}\n"
    with pytest.raises(QmathError, match="sets the processor to take subnormals for zero"):
        compiled({"main.c": source.encode()}, "main.c")
    assert not flushes_subnormals()
    assert not [*place.iterdir()]


def test_without_a_compiler_it_is_one_line_and_status_2(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O9")
    message = fails("run", f"{SAMPLES}/default8.h5", DATA, "--engine", "c")
    assert "there is no C compiler 'no-such-compiler'; install one, or name it by CC" in message


def test_a_compiler_that_says_nothing(monkeypatch):
    monkeypatch.setenv("CC", "false")
    message = fails("run", f"{SAMPLES}/default8.h5", DATA, "--engine", "c")
    assert "the compiler 'false' ended with status 1 and printed nothing; name another" in message


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize("when", ["-dM", "-shared"])
def test_a_compiler_that_fails_is_one_line_with_its_first(tmp_path, monkeypatch, place, when):
    cc = script(
        tmp_path / "cc",
        f'case "$*" in *{when}*) ;; *) exit 0;; esac',
        "echo 'In file included from main.c:' >&2",
        "echo 'main.c:3: error: boom' >&2",
        "echo 'main.c:4: error: more' >&2",
        "exit 1",
    )
    monkeypatch.setenv("CC", cc)
    message = fails("run", f"{SAMPLES}/default8.h5", DATA, "--engine", "c")
    assert message.endswith("failed: main.c:3: error: boom")
    assert not place.exists() or not [*place.iterdir()]


@needs_compiler
def test_a_compiler_without_march_native_does(tmp_path, monkeypatch):
    cc = script(
        tmp_path / "cc",
        'case "$*" in *-march=native*) echo "error: unknown flag" >&2; exit 1;; esac',
        'exec cc "$@"',
    )
    monkeypatch.setenv("CC", cc)
    assert compiled(ANSWER, "main.c").exists()
