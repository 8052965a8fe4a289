"""Whose kernels qmath is compared with: those that are installed, XLA's, or another release's."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qmath.kernels.builds import Build
from reference.builds.inputs import Case
from reference.builds.running import Session
from reference.builds.wheels import RELEASES, MissingError, Release
from reference.jit import Call, answer

__all__ = ["TWINS", "Twin"]

PREFIX = "fake_quant_with_min_max_"


@dataclass(frozen=True)
class Twin:
    """What computes beside qmath.

    Attributes
    ----------
    name : str
        ``"tf"`` for the installed TensorFlow, eager; a build of XLA; or a release.
    build : str
        Whose arithmetic qmath takes for its.
    release : Release, optional
        Which runs in a process of its own.
    """

    name: str
    build: Build
    release: Release | None = None

    @property
    def about(self) -> dict[str, str]:
        """What a certificate says of it; nothing of the installed TensorFlow, eager."""
        if self.name == "tf":
            return {}
        emulated = ", emulated" if self.release and self.release.is_emulated else ""
        return {"against": self.name + emulated, "build": self.build}

    def outputs(
        self, function: str, arrays: tuple[np.ndarray, ...], settings: tuple[Any, ...]
    ) -> tuple[np.ndarray, ...]:
        """Return the outputs of a function of ``tf.quantization``, called as qmath's own.

        Parameters
        ----------
        function : str
        arrays : tuple of ndarray
            Gradients and inputs.
        settings : tuple
            The range, the width, and whether it is narrow.

        Notes
        -----
        Whether XLA fuses multiply-adds is decided by ``XLA_FLAGS``, before the first call.
        """
        if self.name == "tf":
            from reference import oracle

            found = getattr(oracle, function)(*arrays, *settings)
            return tuple(found) if isinstance(found, tuple) else (found,)
        low, high, bits, narrow = settings
        op = function.removeprefix(PREFIX).replace("_gradient", " gradient")
        if self.release is None:
            is_args = op.startswith("args")
            ends = (float(low), float(high)) if is_args else ()
            given = arrays if is_args else (*arrays, low, high)
            return answer(Call(function, given, bits, narrow, ends))
        case = Case(op.replace("vars_per_channel", "per_channel"), arrays, low, high, bits, narrow)
        return tuple(_session(self.release).run(case))


@cache
def _session(release: Release) -> Session:
    session = Session(release)
    if session.version != release.version:
        raise MissingError(f"{release.name}: its libraries say that they are {session.version}")
    atexit.register(session.close)
    return session


TWINS: Mapping[str, Twin] = {
    twin.name: twin
    for twin in (
        *(Twin(name, name) for name in ("tf", "xla-cpu", "xla-cpu-nofma")),
        *(Twin(release.name, release.build, release) for release in RELEASES),
    )
}
