"""Write a file so that its name holds the old bytes or all of the new ones, never a part."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from qmath.errors import OutputError

__all__ = ["check_output", "replacing"]


def check_output(
    path: Path, *, overwrite: bool, sources: Iterable[str | os.PathLike[str] | None] = ()
) -> None:
    """Raise if `path` cannot be the name of a new file, before any work is done for it.

    Parameters
    ----------
    path : Path
        The file's name.
    overwrite : bool
        Whether a file of that name may be replaced.
    sources : iterable of path
        Files that are read, which `path` must not be.

    Raises
    ------
    OutputError
        A directory or a special file has that name; a file has it and `overwrite` is false; the
        folder does not exist.
    """
    try:
        if path.is_dir():
            raise OutputError(
                f"{path} is a directory; give a file name, such as {path / 'model.npz'}"
            )
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file; give the name of a new file")
        if path.exists() and any(
            source and os.path.exists(source) and os.path.samefile(path, source)
            for source in sources
        ):
            raise OutputError(f"{path} is an input itself; choose another name for the output")
        if path.exists() and not overwrite:
            raise OutputError(
                f"{path} exists; choose another name, or overwrite it with --overwrite "
                "(overwrite=True)"
            )
        if not path.resolve().parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a new file that takes the name `path` when the block ends without an error.

    The bytes go to a temporary name in the same folder, so that the last step is one rename. If
    anything fails, Ctrl-C included, the temporary file is removed and what was there stays.

    Parameters
    ----------
    path : Path
        The file's name; a symbolic link is followed.
    overwrite : bool
        Whether a file of that name may be replaced.

    Yields
    ------
    file
        Open for binary writing; seekable.

    Raises
    ------
    OutputError
        As `check_output`, or the file system refuses: no permission, no space.
    """
    check_output(path, overwrite=overwrite)
    target = path.resolve()
    temporary = target.with_name(f".qmath-{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        check_output(path, overwrite=overwrite)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write {path}: {reason}; check the folder's permissions and free space"
    )
