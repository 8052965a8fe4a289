"""Run cases under a release, or under XLA, and count the bits that qmath gives otherwise."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from qmath.errors import QmathError
from qmath.kernels.builds import Build
from reference.builds.inputs import OPS, Case
from reference.builds.wheels import MissingError, Release, cache

__all__ = ["SUMS", "Session", "Tally", "compared", "of_release"]

SUMS = "sums of gradients"
DRIVER = Path(__file__).with_name("driver.py")
Outputs = Sequence[Sequence[np.ndarray]]
SYSROOT = "QMATH_SYSROOT"


class Tally(dict[str, Counter[str]]):
    """Per op: elements compared and differing."""

    def add(self, op: str, compared: int, differing: int) -> None:
        """Count an array."""
        self.setdefault(op, Counter()).update(compared=compared, differing=differing)


def compared(cases: Sequence[Case], found: Outputs, build: Build) -> Tally:
    """Compare what a release gave with what qmath computes under a build; NaN is NaN.

    What qmath refuses is left out.
    """
    tally = Tally()
    for case, outputs in zip(cases, found, strict=True):
        try:
            computed = case.computed(build)
        except QmathError:  # which is right where a build's sums are not known
            continue
        for place, (ours, theirs) in enumerate(zip(computed, outputs, strict=True)):
            wrong = ours.view(np.uint32) != theirs.view(np.uint32)
            wrong &= ~(np.isnan(ours) & np.isnan(theirs))
            tally.add(SUMS if place else case.op, ours.size, int(np.count_nonzero(wrong)))
    return tally


class Session:
    """A release that runs in a process of its own, and answers calls.

    Parameters
    ----------
    release : Release

    Attributes
    ----------
    version : str
        What the release says that it is.

    Raises
    ------
    MissingError
        It cannot be fetched, or not be run here.
    """

    def __init__(self, release: Release) -> None:
        command = [*_python(release), str(DRIVER), *map(str, release.libraries())]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment,
        )  # fmt: skip
        self.version = self._line()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def run(self, case: Case) -> list[np.ndarray]:
        """Return the outputs of a call."""
        arrays = [np.ascontiguousarray(array, "<f4") for array in case.inputs]
        shapes = [array.shape for array in case.inputs]
        call = {"op": OPS[case.op], "attributes": case.attributes, "shapes": shapes}
        with suppress(BrokenPipeError):  # the missing answer says why
            for data in (json.dumps(call).encode() + b"\n", *arrays):
                self._process.stdin.write(data)
            self._process.stdin.flush()
        flat = np.frombuffer(self._process.stdout.read(int(self._line())), "<f4")
        ends = np.cumsum([math.prod(shape) for shape in case.shapes])[:-1]
        parts = zip(np.split(flat, ends), case.shapes, strict=True)
        return [part.reshape(shape) for part, shape in parts]

    def _line(self) -> str:
        line = self._process.stdout.readline().decode().strip()
        if line:
            return line
        told = self._process.communicate()[1].decode(errors="replace").strip().splitlines()
        raise MissingError((told or [f"exit status {self._process.returncode}"])[-1])


def of_release(release: Release, cases: Sequence[Case]) -> tuple[str, Outputs]:
    """Return what a release says its version is, and its outputs.

    Raises
    ------
    MissingError
        It cannot be fetched, or not be run here.
    """
    with Session(release) as session:
        return session.version, [session.run(case) for case in cases]


def _python(release: Release) -> list[str]:
    """Return a Python of the release's processor: this one, or one of a sysroot under qemu."""
    if not release.is_emulated:
        return [sys.executable]
    emulator = shutil.which(f"qemu-{release.machine}")
    if emulator is None:
        raise MissingError(f"qemu-{release.machine} is not installed")
    root = Path(os.environ.get(SYSROOT, cache() / f"sysroot-{release.machine}"))
    pythons = sorted(root.glob("usr/bin/python3.[0-9]*"))
    if not pythons:
        raise MissingError(
            f"{root} holds no Python; unpack Debian's libpython3-stdlib, python3-minimal, "
            f"libstdc++6 and what they need for {release.machine} there, or set {SYSROOT}"
        )
    return [emulator, "-L", str(root), str(pythons[0])]
