"""Formats of several files: a folder with a ``manifest.json`` that says what else is in it."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qmath.containers.bounded_json import parse_json
from qmath.errors import FileFormatError, OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.output.identifiers import Identifiers
from qmath.exports.output.rendered import byte_differences
from qmath.exports.reading import checked

__all__ = ["MANIFEST", "differences", "foreign_entry", "read_manifest", "write"]

MANIFEST = "manifest.json"
_LIMIT = 1 << 28  # bytes of a manifest: some million channels


def write(
    place: Path,
    name: str,
    bundle: Bundle,
    files: Iterable[tuple[str, bytes]],
    options: Mapping[str, Any],
) -> None:
    """Write the files of a format, and the manifest.

    Parameters
    ----------
    place : Path
        An empty folder.
    name : str
        The format's.
    bundle : Bundle
    files : iterable of (str, bytes)
        Their names and contents.
    options : mapping
        JSON values: those that the format was given.
    """
    for file_name, content in _with_manifest(name, bundle, files, options):
        if (place / file_name).exists() or Path(file_name).name != file_name:
            raise OutputError(
                f"the format {name!r} names a file {file_name!r}, which it named before, or "
                "which lies elsewhere; this is a fault of the format's package"
            )
        (place / file_name).write_bytes(content)


def _with_manifest(
    name: str, bundle: Bundle, files: Iterable[tuple[str, bytes]], options: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    written: dict[str, Any] = {}
    for file_name, content in files:
        written[file_name] = {"size": len(content), "crc32": f"{zlib.crc32(content):08x}"}
        yield file_name, content
    names = {identifier: key for key, identifier in Identifiers(bundle.keys()).items()}
    export = {"format": name, "options": dict(options), "files": written, "identifiers": names}
    manifest = bundle.manifest | {"export": export}
    yield MANIFEST, json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"


def read_manifest(place: Path) -> dict[str, Any]:
    """Return the manifest of a folder that `write` wrote.

    Raises
    ------
    FileFormatError
        There is none, or it is damaged.
    """
    path = place / MANIFEST
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT + 1)
    except OSError as error:
        raise FileFormatError(
            f"{place} is no folder that qmath wrote: {MANIFEST} cannot be read "
            f"({error.strerror or error})"
        ) from error
    if len(text) > _LIMIT:
        raise FileFormatError(f"{path} has more than {_LIMIT} bytes, so qmath did not write it")
    try:
        manifest = checked(parse_json(text.decode(), str(path), "export again"), str(path))
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is damaged: it is no text; export again") from None
    export = manifest.get("export")
    if (
        not isinstance(export, dict)
        or not isinstance(export.get("files"), dict)
        or not isinstance(export.get("options"), dict)
    ):
        raise FileFormatError(f"{path} does not say how it was exported; export again")
    return manifest


def foreign_entry(place: Path) -> str | None:
    """Return the name of something in a folder that qmath did not write there, if there is any."""
    entries = sorted(entry.name for entry in place.iterdir())
    try:
        known = {MANIFEST, *read_manifest(place)["export"]["files"]} if entries else set()
    except FileFormatError:
        known = set()
    return next((entry for entry in entries if entry not in known), None)


def differences(
    place: Path,
    name: str,
    bundle: Bundle,
    files: Iterable[tuple[str, bytes]],
    options: Mapping[str, Any],
) -> Iterator[str]:
    """Yield in words where a folder differs from what `write` would write now."""
    expected = set()
    for file_name, content in _with_manifest(name, bundle, files, options):
        expected.add(file_name)
        try:
            found = (place / file_name).read_bytes()
        except OSError as error:
            yield f"{file_name}: it cannot be read ({error.strerror or error})"
            continue
        if file_name == MANIFEST:  # of which notes and file names may differ: compared by itself
            if read_manifest(place)["export"] != json.loads(content)["export"]:
                yield f"{file_name}: what it says of the export differs"
            continue
        yield from byte_differences(file_name, io.BytesIO(found), io.BytesIO(content))
    for entry in sorted(entry.name for entry in place.iterdir()):
        if entry not in expected:
            yield f"{entry}: unexpected in this folder"
