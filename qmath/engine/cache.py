"""Where compiled models are kept: nothing is loaded that another user could have written."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from qmath.errors import QmathError

__all__ = ["cache_folder", "check_file"]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Return the folder of compiled models, without symbolic links, made if it is not there.

    Raises
    ------
    QmathError
        It cannot be made, or another user could change what is in it.
    """
    place = _base() / "qmath"
    try:
        for folder in (*reversed(place.parents), place):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
        place = place.resolve(strict=True)
        _check(place, os.stat(place), is_own=True)
        for parent in place.parents:
            _check(parent, os.stat(parent), is_own=False)
    except OSError as error:
        raise QmathError(
            f"engine c: {place}, the folder of compiled models, cannot be used "
            f"({error.strerror}); name another one by XDG_CACHE_HOME"
        ) from error
    return place


def check_file(path: Path) -> None:
    """Raise unless a file is this user's, and no other's to write.

    Raises
    ------
    QmathError
        It is another's, others could write it, or it is no regular file.
    OSError
        There is no such file.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise QmathError(f"engine c: {path} is no regular file; remove it")
    _check(path, status, is_own=True)


def _base() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _check(path: Path, status: os.stat_result, *, is_own: bool) -> None:
    """Refuse what is another user's; of the folders above, root's and sticky ones are safe."""
    owners = {os.geteuid()} if is_own else {0, os.geteuid()}
    is_sticky = not is_own and status.st_mode & stat.S_ISVTX
    if status.st_uid not in owners:
        fault = f"belongs to the user {status.st_uid}"
    elif status.st_mode & _OTHERS and not is_sticky:
        fault = "can be written by other users"
    else:
        return
    raise QmathError(
        f"engine c: {path} {fault}, and compiled models are loaded from there: change that, or "
        "name another folder by XDG_CACHE_HOME"
    )
