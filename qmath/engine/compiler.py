"""The system's C compiler, and what it makes of sources: a shared library in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qmath.engine.cache import cache_folder, check_file
from qmath.errors import QmathError
from qmath.exports.output.temporary import Temporary
from qmath.kernels._environment import flushes_subnormals

__all__ = ["compiled"]

# They come after those of CC, and take back what changes floats. The linker asks of each of the
# first two whether it was taken back, or else adds code that flushes subnormals to zero.
_FLOATS = ("-fno-fast-math", "-fno-unsafe-math-optimizations", "-ffp-contract=off")
_FLAGS = ("-std=c99", "-O3", *_FLOATS, "-fPIC", "-fvisibility=hidden")
_NATIVE = "-march=native"  # which some compilers do not have


def compiled(sources: Mapping[str, bytes], main: str) -> Path:
    """Return the shared library of C sources, compiled unless the cache has it.

    Parameters
    ----------
    sources : mapping of str to bytes
        The files, all of one folder.
    main : str
        The one that is compiled: it includes the others.

    Raises
    ------
    QmathError
        There is no compiler, it fails, or what it makes cannot be used; or the cache is not this
        user's alone.
    """
    if os.name != "posix":
        raise QmathError("engine c: it needs a POSIX system (Linux, macOS); leave --engine out")
    command, identity = _compiler()
    digest = hashlib.sha256(b"\0".join([*map(os.fsencode, command), main.encode(), identity]))
    for name, content in sources.items():
        digest.update(b"\0%s\0%d\0" % (name.encode(), len(content)) + content)
    library = cache_folder() / f"{digest.hexdigest()}.so"
    try:
        check_file(library)
    except FileNotFoundError:
        _build(command, sources, main, library)
    return library


def _compiler() -> tuple[list[str], bytes]:
    """Return the command with its options, and what tells its version and the processor.

    What the compiler predefines names its version, and each set of instructions that it uses: a
    home folder may be that of several machines.
    """
    named = os.environ.get("CC", "")
    try:
        words = shlex.split(named) or ["cc"]
    except ValueError as error:
        raise QmathError(f"engine c: CC is {named!r}, which is no command: {error}") from error
    if shutil.which(words[0]) is None:
        raise QmathError(
            f"engine c: there is no C compiler {words[0]!r}; install one, or name it by CC"
        )
    version = _run([*words, "--version"]).stdout
    for flags in ((*_FLAGS, _NATIVE), _FLAGS):
        macros = _run([*words, *flags, "-dM", "-E", "-x", "c", os.devnull])
        if not macros.returncode:
            break
    else:
        raise _failure(words[0], macros)
    return [*words, *flags], version + macros.stdout


def _build(command: Sequence[str], sources: Mapping[str, bytes], main: str, library: Path) -> None:
    """Compile sources beside the library, and give it its name when it is whole."""
    try:
        with Temporary(library, is_folder=True) as temporary:
            for name, content in sources.items():
                (temporary.path / name).write_bytes(content)
            made = temporary.path / library.name
            arguments = ["-shared", "-o", library.name, main, "-lm"]
            done = _run([*command, *arguments], temporary.path)
            if done.returncode:
                raise _failure(command[0], done)
            if not made.exists():
                raise QmathError(
                    f"engine c: the compiler {command[0]!r} wrote no library; name another by CC"
                )
            made.chmod(0o700)
            _check_loads(made, command[0])
            with made.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(made, library)
    except OSError as error:
        raise QmathError(f"engine c: cannot write {library}: {error.strerror}") from error


def _check_loads(library: Path, compiler: str) -> None:
    """Raise unless a library can be loaded, and leaves subnormals to the thread that loads it.

    Some compilers link code that sets the processor to flush them, which a thread of its own keeps
    from the others.
    """

    def flushes() -> bool:
        before = flushes_subnormals()
        ctypes.CDLL(str(library))
        return flushes_subnormals() and not before

    try:
        with ThreadPoolExecutor(1) as thread:
            sets_flush = thread.submit(flushes).result()
    except OSError as error:
        raise QmathError(
            f"engine c: what the compiler {compiler!r} made cannot be loaded ({error}); name "
            "another by CC, or a folder whose programs may run by XDG_CACHE_HOME"
        ) from error
    if sets_flush:
        raise QmathError(
            f"engine c: what the compiler {compiler!r} made sets the processor to take subnormals "
            "for zero; leave such options out of CC"
        )


def _run(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise QmathError(
            f"engine c: the compiler {command[0]!r} failed: {error.strerror}"
        ) from error


def _failure(compiler: str, done: subprocess.CompletedProcess[bytes]) -> QmathError:
    """Return an error with the compiler's first line that tells of one."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if not lines:
        return QmathError(
            f"engine c: the compiler {compiler!r} ended with status {done.returncode} and printed "
            "nothing; name another by CC"
        )
    first = next((line for line in lines if "error" in line), lines[0])
    return QmathError(f"engine c: the compiler {compiler!r} failed: {first.strip()}")
