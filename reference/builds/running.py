"""Run cases under a release, or under XLA, and count the bits that qmath gives otherwise."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qmath.errors import QmathError
from qmath.kernels.builds import Build
from reference.builds.inputs import OPS, Case
from reference.builds.wheels import MissingError, Release, cache

__all__ = ["SUMS", "Tally", "compared", "of_release"]

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


def of_release(release: Release, cases: Sequence[Case]) -> tuple[str, Outputs]:
    """Return what a release says its version is, and its outputs.

    Raises
    ------
    MissingError
        It cannot be fetched, or not be run here.
    """
    libraries = release.libraries()
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        _write_job(Path(folder), libraries, cases)
        output = Path(folder, "outputs.bin")
        command = [*_python(release), str(DRIVER), folder, str(output)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise MissingError(reason)
        flat = np.fromfile(output, "<f4")
    return done.stdout.strip(), _split(flat, cases)


def _write_job(folder: Path, libraries: Sequence[Path], cases: Sequence[Case]) -> None:
    calls: list[dict[str, Any]] = []
    start = 0
    with open(folder / "inputs.bin", "wb") as file:
        for case in cases:
            inputs = []
            for array in case.inputs:
                inputs.append((list(array.shape), start))
                start += file.write(np.ascontiguousarray(array, "<f4").tobytes())
            calls.append({"op": OPS[case.op], "inputs": inputs, "attributes": case.attributes})
    job = {"libraries": list(map(str, libraries)), "calls": calls}
    (folder / "job.json").write_text(json.dumps(job), "utf-8")


def _split(flat: np.ndarray, cases: Sequence[Case]) -> Outputs:
    outputs, start = [], 0
    for case in cases:
        parts = []
        for shape in case.shapes:
            size = int(np.prod(shape))
            parts.append(flat[start : start + size].reshape(shape))
            start += size
        outputs.append(parts)
    return outputs


def _python(release: Release) -> list[str]:
    """Return a Python of the release's processor: this one, or one of a sysroot under qemu."""
    if release.machine == platform.machine():
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
