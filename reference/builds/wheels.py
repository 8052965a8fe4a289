"""TensorFlow's wheels: fetched by pip, once, and the libraries in them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from qmath.kernels.builds import Build

__all__ = ["RELEASES", "MissingError", "Release", "cache"]

FRAMEWORK = "libtensorflow_framework.so.2"


class MissingError(Exception):
    """Why a release cannot be run here."""


@dataclass(frozen=True)
class Release:
    """One wheel, and the build whose arithmetic qmath takes for its.

    Attributes
    ----------
    version : str
    machine : str
        As ``uname -m`` says it.
    python, platform : str
        As ``pip download`` takes them.
    build : str
    library : str
        Which of its files has the C API, beside the framework.
    lacking : str
        A variable that the library takes from the Python of its time, and later ones do not have.
    """

    version: str
    machine: str
    python: str
    platform: str
    build: Build
    library: str = "libtensorflow_cc.so.2"
    lacking: str = ""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.version} {self.machine}"

    @property
    def is_emulated(self) -> bool:
        """Whether this machine is of another kind."""
        return self.machine != platform.machine()

    def libraries(self) -> list[Path]:
        """Return its libraries in the order of loading, fetched and unpacked if they are not yet.

        Raises
        ------
        MissingError
            It cannot be fetched.
        """
        folder = cache() / f"{self.version}-{self.machine}"
        found = [folder / "tensorflow" / FRAMEWORK, folder / "tensorflow" / self.library]
        if not all(path.exists() for path in found):
            self._unpack(folder, [f"tensorflow/{FRAMEWORK}", f"tensorflow/{self.library}"])
        return [self._substitute(folder), *found] if self.lacking else found

    def _substitute(self, folder: Path) -> Path:
        """Return a library with nothing but the variable that is lacking, which no kernel reads."""
        path = folder / "lacking.so"
        compiler = shutil.which("cc")
        if compiler is None:
            raise MissingError("no C compiler, for the variable that newer Pythons lack")
        command = [compiler, "-shared", "-x", "c", "-", "-o", str(path)]
        subprocess.run(command, input=f"int {self.lacking} = 1000;", text=True, check=True)
        return path

    def _unpack(self, folder: Path, members: list[str]) -> None:
        pattern = f"tensorflow-{self.version}-*{self.machine}.whl"
        if not (wheels := list(cache().glob(pattern))):
            command = [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--python-version", self.python),
                *("--platform", self.platform, "--dest", str(cache())),
                f"tensorflow=={self.version}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not (wheels := list(cache().glob(pattern))):
                reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
                raise MissingError(f"pip download: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for member in members:
                partial = wheel.extract(member, folder / "partial")
                target = folder / member
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial, target)  # so that what is there is whole


def cache() -> Path:
    """Return the folder that keeps wheels, ``$QMATH_BUILDS`` or one under the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "qmath", "builds")
    folder = Path(os.environ.get("QMATH_BUILDS", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


RELEASES = (
    Release(
        "2.4.1", "x86_64", "38", "manylinux2010_x86_64", "tf<2.6",
        "python/_pywrap_tensorflow_internal.so", "_Py_CheckRecursionLimit",
    ),
    Release("2.13.1", "x86_64", "311", "manylinux_2_17_x86_64", "tf"),
    Release("2.21.0", "x86_64", "311", "manylinux_2_27_x86_64", "tf"),
    Release("2.21.0", "aarch64", "311", "manylinux_2_27_aarch64", "tf"),
)  # fmt: skip
