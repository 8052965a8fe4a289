"""What reads a manifest, apart from the code that makes one: an independent check uses it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from qmath.containers.bounded_json import parse_long_json
from qmath.errors import FileFormatError

__all__ = ["MANIFEST", "checked", "export_of", "read_manifest"]

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "qmath", 1
_LIMIT = 1 << 28  # bytes of a manifest: some million channels
_AGAIN = "export again"


def checked(manifest: Any, where: str) -> dict[str, Any]:
    """Return what a file holds as its manifest, if this qmath reads such.

    Parameters
    ----------
    manifest : JSON value
        Not trusted; what is in it is not looked at.
    where : str
        The file, for error messages.

    Raises
    ------
    FileFormatError
        It is no manifest, or one of another version.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise FileFormatError(f"{where}: the manifest is not one that qmath wrote; {_AGAIN}")
    if manifest.get("format_version") != _VERSION:
        raise FileFormatError(
            f"{where}: the manifest has format version {manifest.get('format_version')!r}, and "
            f"this qmath reads version {_VERSION}; update qmath"
        )
    return manifest


def export_of(manifest: dict[str, Any], where: str) -> dict[str, Any]:
    """Return what a manifest says of the format: its name and options, and perhaps files.

    Version 0.1.0 wrote it in some formats only: there it is the format without options.
    """
    export = manifest.get("export", {"options": {}})
    if not isinstance(export, dict) or not isinstance(export.get("options"), dict):
        raise FileFormatError(f"{where} does not say how it was exported; {_AGAIN}")
    return export


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest in a file of its own, which lists the files that it is of.

    Raises
    ------
    FileFormatError
        There is none, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            size = min(file.seek(0, io.SEEK_END), _LIMIT)  # memory is taken for what read asks
            file.seek(0)
            text = file.read(size + 1)
    except OSError as error:
        raise FileFormatError(
            f"{path.parent if path.name == MANIFEST else path}: qmath did not write this, or its "
            f"manifest was moved: {path.name} cannot be read ({error.strerror or error})"
        ) from error
    if len(text) > _LIMIT:
        raise FileFormatError(f"{path} has more than {_LIMIT} bytes, so qmath did not write it")
    try:
        manifest = checked(parse_long_json(text.decode(), str(path), _AGAIN), str(path))
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is damaged: it is no text; {_AGAIN}") from None
    if not isinstance(export_of(manifest, str(path)).get("files"), dict):
        raise FileFormatError(f"{path} does not say how it was exported; {_AGAIN}")
    return manifest
