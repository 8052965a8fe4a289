"""Formats of several files, and of one that cannot be read again: the files and a manifest.

In a folder the manifest is ``manifest.json``, beside a file ``<file>.manifest.json``; it says how
the files were made, and their checksums.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qmath.errors import FileFormatError, OutputError, QmathError
from qmath.exports.exporter import Exporter, content_bytes
from qmath.exports.output.identifiers import Identifiers
from qmath.exports.reading import MANIFEST, read_manifest

if TYPE_CHECKING:
    from qmath.exports.bundle import Bundle

__all__ = [
    "byte_differences",
    "differences",
    "foreign_entry",
    "has_record",
    "record_path",
    "write",
    "write_recorded",
]

_BLOCK = 1 << 20


def write(place: Path, exporter: Exporter, bundle: Bundle) -> None:
    """Write the files of a format, and the manifest, to an empty folder.

    Raises
    ------
    OutputError
        The format names a file twice, or elsewhere, or yields text in place of bytes.
    """
    for name, content in _with_manifest(exporter, bundle):
        if (place / name).exists() or Path(name).name != name:
            raise OutputError(
                f"the format {exporter.name!r} names a file {name!r}, which it named before, or "
                "which lies elsewhere; this is a fault of the format's package"
            )
        (place / name).write_bytes(content)


def has_record(exporter: Exporter) -> bool:
    """Whether a manifest is written beside the file of a format."""
    return not exporter.is_folder and not exporter.can_read and exporter.is_recorded


def record_path(output: Path) -> Path:
    """Return where the manifest of a file is."""
    return output.with_name(f"{output.name}.{MANIFEST}")


def write_recorded(exporter: Exporter, bundle: Bundle, file: BinaryIO, name: str) -> bytes:
    """Write the one file of a format to an open file, and return the manifest beside it."""
    found = list(_files(exporter, bundle))
    if len(found) != 1:
        raise OutputError(
            f"the format {exporter.name!r} yields {len(found)} files, and is no folder; this is a "
            "fault of the format's package"
        )
    ((_, content),) = found
    file.write(content)
    return _manifest(exporter, bundle, {name: _entry(content)})


def _files(exporter: Exporter, bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a format, which may be another package's, checked."""
    fault = f"the format {exporter.name!r} failed, a fault of its package"
    try:
        for item in exporter.files(bundle):
            name, content = item
            data = content_bytes(content)
            if not isinstance(name, str) or not isinstance(data, bytes):
                raise OutputError(
                    f"the format {exporter.name!r} yields {type(name).__name__} and "
                    f"{type(data).__name__}, not a name and bytes; this is a fault of the "
                    "format's package"
                )
            yield name, data
    except (QmathError, OSError):
        raise
    except Exception as error:  # whatever the package's own code raises
        if type(exporter).__module__.startswith("qmath."):
            raise
        raise OutputError(f"{fault}: {error!r}") from error


def _with_manifest(exporter: Exporter, bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    written: dict[str, Any] = {}
    for name, content in _files(exporter, bundle):
        written[name] = _entry(content)
        yield name, content
    yield MANIFEST, _manifest(exporter, bundle, written)


def _entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "crc32": f"{zlib.crc32(content):08x}"}


def _manifest(exporter: Exporter, bundle: Bundle, files: dict[str, Any]) -> bytes:
    manifest = exporter.manifest(bundle)
    names = {identifier: key for key, identifier in Identifiers(bundle.keys()).items()}
    manifest["export"] |= {"files": files, "identifiers": names}
    return json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"


def foreign_entry(place: Path) -> str | None:
    """Return the name of something in a folder that qmath did not write there, if there is any."""
    entries = sorted(entry.name for entry in place.iterdir())
    try:
        known = {MANIFEST, *read_manifest(place / MANIFEST)["export"]["files"]} if entries else {""}
    except FileFormatError:
        known = set()
    return next((entry for entry in entries if entry not in known), None)


def differences(place: Path, exporter: Exporter, bundle: Bundle) -> Iterator[str]:
    """Yield in words where a folder differs from what `write` would write now."""
    expected = set()
    for name, content in _with_manifest(exporter, bundle):
        expected.add(name)
        if name == MANIFEST:  # of which notes and file names may differ: compared by itself
            if read_manifest(place / name)["export"] != json.loads(content)["export"]:
                yield f"{name}: what it says of the export differs"
            continue
        try:
            with open(place / name, "rb") as file:
                yield from byte_differences(name, file, io.BytesIO(content))
        except OSError as error:
            yield f"{name}: it cannot be read ({error.strerror or error})"
    for entry in sorted(entry.name for entry in place.iterdir()):
        if entry not in expected:
            yield f"{entry}: unexpected in this folder"


def byte_differences(name: str, found: BinaryIO, expected: BinaryIO) -> Iterator[str]:
    """Yield in words, once, where a file differs from what an export would write now.

    Examples
    --------
    >>> from io import BytesIO
    >>> list(byte_differences("a.bin", BytesIO(b"abc"), BytesIO(b"abd.")))
    ['a.bin: it differs from byte 2 on (3 bytes, and the model gives 4)']
    """
    sizes = [file.seek(0, os.SEEK_END) for file in (found, expected)]
    for file in (found, expected):
        file.seek(0)
    at = 0
    while (a := found.read(_BLOCK)) == (b := expected.read(_BLOCK)) and a:
        at += len(a)
    if a != b:
        pairs = enumerate(zip(a, b, strict=False))
        at += next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
        yield (
            f"{name}: it differs from byte {at} on ({sizes[0]} bytes, and the model gives "
            f"{sizes[1]})"
        )
