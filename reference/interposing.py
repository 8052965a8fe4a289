"""Run the command line with one call that fails, or a signal at it: the core of `reference.faults`.

``faults.c`` is preloaded into a Python that has all imported and forks once for each run, so that
a run takes milliseconds, and calls of HDF5 and of Python's C code count like any other.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

__all__ = ["KINDS", "Fault", "Machine", "Result", "UnavailableError"]

SOURCE = Path(__file__).with_name("faults.c")
ROOT = SOURCE.parents[1]
KINDS = ("open", "read", "write", "sync", "rename", "mkdir", "remove", "close", "lock")
ACTIONS = ("count", "fail", "fail on", "short", "signal", "signal on")
SECONDS = 60
_CHILD = "from reference.interposing import serve; serve(); from qmath.cli import main; main()"

_shared = mmap.mmap(-1, mmap.PAGESIZE)  # between a process and its forks, to their very end


class UnavailableError(Exception):
    """The system cannot interpose; the message says why."""


class Fault(NamedTuple):
    """What happens at the n-th call.

    Attributes
    ----------
    action : str
        One of `ACTIONS`; "on" means at every later call, too.
    number : int
        Of an error or a signal.
    kinds : sequence of str
        Of calls, which count.
    memory : int, optional
        The bytes of address space that may be added, in place of the above.
    """

    action: str = "count"
    number: int = 0
    kinds: Sequence[str] = KINDS
    memory: int | None = None


class Result(NamedTuple):
    """How a run ended: as `os.waitstatus_to_exitcode` says, the lines, and what counted."""

    status: int
    lines: list[str]
    calls: int
    kind: str | None


class Machine:
    """A Python with the library, which runs the command line in forks of itself.

    Raises
    ------
    UnavailableError
        There is no Linux, no fork or no compiler.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise UnavailableError("calls are interposed by LD_PRELOAD, on Linux only")
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise UnavailableError("there is no C compiler")
        self._place = tempfile.TemporaryDirectory()
        library = Path(self._place.name) / "faults.so"
        build = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if build.returncode:
            self._place.cleanup()
            raise UnavailableError(f"faults.c does not compile here: {build.stderr.strip()}")
        self._errors = Path(self._place.name) / "stderr"
        environment = {**os.environ, "LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        for name in [name for name in environment if name.startswith("COVERAGE_PROCESS")]:
            del environment[name]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for stream in (self._pipe(self._process.stdin), self._pipe(self._process.stdout)):
            stream.close()
        self._process.wait()
        self._place.cleanup()

    def warm(self, args: Sequence[str | Path]) -> None:
        """Run the command line once in the process itself, so that all is imported."""
        self._ask({"warm": [str(arg) for arg in args]})

    def run(
        self,
        args: Sequence[str | Path],
        folder: Path,
        fault: Fault = Fault(),  # noqa: B008 (it is immutable)
        nth: int = 1,
    ) -> Result:
        """Run the command line in a fork, with a fault at the n-th call on a path under `folder`.

        Its standard output goes nowhere.
        """
        answer = self._ask(
            {
                "args": [str(arg) for arg in args],
                "errors": str(self._errors),
                "memory": fault.memory,
                "arm": [
                    str(folder), sum(1 << KINDS.index(kind) for kind in fault.kinds), nth,
                    ACTIONS.index(fault.action), fault.number,
                ],
            }
        )  # fmt: skip
        status, calls, struck = answer
        lines = self._errors.read_text("utf-8", "replace").splitlines()
        return Result(status, lines, calls, KINDS[struck - 1] if struck else None)

    def _ask(self, question: dict[str, object]) -> list[int]:
        asked, answered = self._pipe(self._process.stdin), self._pipe(self._process.stdout)
        asked.write(json.dumps(question) + "\n")
        asked.flush()
        answer: list[int] = json.loads(answered.readline())
        return answer

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def serve() -> None:
    """Answer questions on standard input; return in forks, which the command line then uses."""
    import gc
    import signal

    counts = (ctypes.c_int * 2).from_buffer(_shared)
    library = ctypes.CDLL(None)
    arm = library.faults_arm
    arm.argtypes = [
        ctypes.c_char_p, ctypes.c_uint, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_void_p
    ]  # fmt: skip
    library.faults_grow_stack()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in iter(sys.stdin.readline, ""):
        question = json.loads(line)
        if "warm" in question:
            from qmath.cli.app import app

            with suppress(SystemExit):
                app(question["warm"])
            gc.collect()
            gc.freeze()
            library.malloc_trim(0)
            print("[]", file=answers, flush=True)
            continue
        counts[0] = counts[1] = 0
        pid = os.fork()
        if not pid:
            signal.alarm(SECONDS)
            errors = os.open(question["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(errors, 2)
            os.close(errors)
            sys.argv = ["qmath", *question["args"]]
            if question["memory"] is not None:
                _limit(question["memory"])
            folder, *rest = question["arm"]
            arm(os.fsencode(folder), *rest, ctypes.addressof(counts))
            return
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([status, counts[0], counts[1]]), file=answers, flush=True)
    os._exit(0)


def _limit(memory: int) -> None:
    """Let this process have so many more bytes of address space."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
