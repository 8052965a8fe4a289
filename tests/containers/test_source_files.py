"""Digests of what was read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qmath.containers.source_files import SourceFiles
from qmath.errors import FileFormatError


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_one_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"x" * (3 << 20))
    assert SourceFiles([path]).sha256 == hashlib.sha256(b"x" * (3 << 20)).hexdigest()


def test_several_files_have_that_of_sha256sum(tmp_path: Path) -> None:
    paths = [write(tmp_path / "b", b"two"), write(tmp_path / "c" / "a", b"one")]
    lines = sorted(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in (("b", b"two"), ("c/a", b"one"))
    )
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert SourceFiles(paths, str(tmp_path)).sha256 == expected
    assert SourceFiles(paths[::-1], str(tmp_path)).sha256 == expected
    assert SourceFiles(paths).sha256 != expected  # names count


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files = SourceFiles([write(path, b"one")])
    path.write_bytes(b"three")
    with pytest.raises(FileFormatError, match="changed since it was loaded"):
        files.sha256  # noqa: B018
    path.unlink()
    with pytest.raises(FileFormatError, match="cannot be read"):
        files.sha256  # noqa: B018
