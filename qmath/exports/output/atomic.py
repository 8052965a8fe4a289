"""Write a file or folder so that its name holds the old content or all of the new, never a part."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from qmath.errors import OutputError, QmathError
from qmath.exports.output.folder import foreign_entry
from qmath.exports.output.temporary import Aside, Temporary

__all__ = ["as_path", "check_output", "move", "replacing", "replacing_folder", "reporting"]

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_HERE = -100  # AT_FDCWD


def as_path(output: str | os.PathLike[str]) -> Path:
    """Return the path of an exported file or folder.

    Raises
    ------
    QmathError
        It is none.
    """
    try:
        return Path(output)
    except TypeError:
        raise QmathError(f"output must be the path of a file or folder, got {output!r}") from None


def check_output(
    path: Path,
    *,
    overwrite: bool,
    sources: Iterable[str | os.PathLike[str] | None] = (),
    is_folder: bool = False,
    example: str = "model.npz",
) -> None:
    """Raise if `path` cannot be the name of a new file or folder, before any work is done for it.

    Parameters
    ----------
    path : Path
        The name.
    overwrite : bool
        Whether what has that name may be replaced.
    sources : iterable of path
        Files, SavedModels and checkpoints that are read, of which `path` must be no file.
    is_folder : bool
        Whether a folder is to be written.
    example : str
        A name to propose for the file, where `path` is a folder.

    Raises
    ------
    OutputError
        Something of another kind has that name; something has it and `overwrite` is false; a
        folder of that name holds what qmath did not write; the folder above does not exist.
    """
    try:
        if path.is_dir() and not is_folder:
            raise OutputError(f"{path} is a directory; give a file name, such as {path / example}")
        if is_folder and path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file, and this format writes a folder; give a new name")
        if path.exists() and not is_folder and not path.is_file():
            raise OutputError(f"{path} is not a regular file; give the name of a new file")
        if path.exists() and any(source and _is_part_of(path, Path(source)) for source in sources):
            raise OutputError(f"{path} is an input itself; choose another name for the output")
        if path.exists() and not overwrite:
            raise OutputError(
                f"{path} exists; choose another name, or overwrite it with --overwrite "
                "(overwrite=True)"
            )
        if is_folder and path.is_dir() and (entry := foreign_entry(path)) is not None:
            raise OutputError(
                f"{path} holds {entry}, which qmath did not write there; give the name of a new "
                "folder"
            )
        if not path.resolve().parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
    except OSError as error:
        raise _cannot_write(path, error) from error


def _is_part_of(path: Path, source: Path) -> bool:
    """Say whether the existing `path` is `source`, or a file of the model saved under that name."""
    if source.exists() and path.samefile(source):
        return True
    target = path.resolve()
    if source.is_dir():
        names = ("*.pb", "checkpoint", "*.index", "*.data-?????-of-?????")
        inside = source.resolve() in target.parents
        return inside and any(fnmatch.fnmatchcase(target.name, name) for name in names)
    prefix = source.resolve().with_suffix("") if source.suffix == ".index" else source.resolve()
    return target.parent == prefix.parent and (
        target.name == f"{prefix.name}.index" or target.name.startswith(f"{prefix.name}.data-")
    )


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a new file that takes the name `path` when the block ends without an error.

    The bytes go to a temporary name in the same folder, so that the last step is one rename. If
    anything fails, Ctrl-C included, the temporary file is removed and what was there stays. What
    a killed process left in the folder is removed first.

    Parameters
    ----------
    path : Path
        The file's name; a symbolic link is followed.
    overwrite : bool
        Whether a file of that name may be replaced.

    Yields
    ------
    file
        Open for binary writing and reading; seekable.

    Raises
    ------
    OutputError
        As `check_output`, or the file system refuses: no permission, no space.
    """
    check_output(path, overwrite=overwrite)
    target = path.resolve()
    try:
        with Temporary(target) as temporary:
            with _closing(temporary.open()) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            check_output(path, overwrite=overwrite)
            os.replace(temporary.path, target)
    except OSError as error:
        raise _cannot_write(path, error) from error


def reporting(file: BinaryIO, path: Path) -> BinaryIO:
    """Return a file whose own errors are those of the output `path`, whoever else's it could be."""
    return cast("BinaryIO", _Reporting(file, path))


class _Reporting:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._file, name)

        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except OSError as error:
                raise _cannot_write(self._path, error) from error

        return call


def move(source: Path, path: Path, *, overwrite: bool) -> None:
    """Give a file that is written the name `path`, as `replacing` does for a new one.

    Raises
    ------
    OutputError
        As `replacing`.
    """
    check_output(path, overwrite=overwrite)
    try:
        os.replace(source, path.resolve())
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise _cannot_write(path, error) from error
    with replacing(path, overwrite=overwrite) as file, open(source, "rb") as written:
        shutil.copyfileobj(written, file, 1 << 20)
    source.unlink()


@contextlib.contextmanager
def _closing(file: BinaryIO) -> Iterator[BinaryIO]:
    """Close a file after the block; after an error, one in closing it does not take its place."""
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    file.close()


@contextlib.contextmanager
def replacing_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Make a new folder that takes the name `path` when the block ends without an error.

    As `replacing`. An old folder is exchanged for the new one in one step where the system can
    (Linux); elsewhere it is moved away first, and back if the new one cannot take its place.

    Parameters
    ----------
    path : Path
        The folder's name; a symbolic link is followed.
    overwrite : bool
        Whether a folder of that name, written by qmath, may be replaced.

    Yields
    ------
    Path
        The folder to write to, which is empty.

    Raises
    ------
    OutputError
        As `check_output`, or the file system refuses: no permission, no space.
    """
    check_output(path, overwrite=overwrite, is_folder=True)
    target = path.resolve()
    try:
        with Temporary(target, is_folder=True) as temporary:
            yield temporary.path
            for entry in temporary.path.iterdir():
                with open(entry, "rb") as file:
                    os.fsync(file.fileno())
            check_output(path, overwrite=overwrite, is_folder=True)
            _put(temporary.path, target)  # which has the temporary name then, if it was there
    except OSError as error:
        raise _cannot_write(path, error) from error


def _put(new: Path, target: Path) -> None:
    """Give `new` the name `target`; an old folder of that name is at `new` then, or gone."""
    if not target.exists():
        os.rename(new, target)
    elif not _exchanged(new, target):
        with Aside(target):
            os.rename(new, target)


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange two folders' names in one step, if this system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return bool(rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write {path}: {reason}; check the folder's permissions and free space"
    )
