"""What the readers of all formats check of a manifest, apart from the code that makes one."""

from __future__ import annotations

from typing import Any

from qmath.errors import FileFormatError

__all__ = ["checked"]

_FORMAT, _VERSION = "qmath", 1


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
        raise FileFormatError(f"{where}: the manifest is not one that qmath wrote; export again")
    if manifest.get("format_version") != _VERSION:
        raise FileFormatError(
            f"{where}: the manifest has format version {manifest.get('format_version')!r}, and "
            f"this qmath reads version {_VERSION}; update qmath"
        )
    return manifest
