"""What is proved: the list of sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

import qmath
from reference.builds.twins import TWINS, Twin

__all__ = ["PATTERNS", "Sweep", "SymmetricSweep", "sweeps"]

PATTERNS = 2**32
SAMPLES = Path(__file__).parents[1] / "samples"
Op = Literal["args", "vars", "vars_per_channel"]
Ends = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Sweep:
    """One configuration of a fake-quant op, through which all patterns go.

    Attributes
    ----------
    name : str
    op : {"args", "vars", "vars_per_channel"}
    num_bits : int
    narrow_range : bool
    min, max : tuple of float
        One range, or one for each channel: float32 values.
    gradient : {None, "inputs", "gradients"}
        The forward op; or its gradient, with all patterns as the one argument and, as the other,
        ones or an input inside and one outside of the range.
    against : str
        Whose kernels: a name of `TWINS`.
    """

    name: str
    op: Op
    num_bits: int
    narrow_range: bool
    min: tuple[float, ...]
    max: tuple[float, ...]
    gradient: Literal["inputs", "gradients"] | None = None
    against: str = "tf"

    @property
    def twin(self) -> Twin:
        """What computes beside qmath."""
        return TWINS[self.against]

    @property
    def function(self) -> str:
        """Name of the function in `qmath` and in `reference.oracle`."""
        return f"fake_quant_with_min_max_{self.op}" + ("_gradient" if self.gradient else "")

    @property
    def per_channel(self) -> bool:
        """Whether the inputs have a last axis of channels."""
        return self.op == "vars_per_channel"

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """The range as the function takes it: float32, of shape ``()`` or ``(C,)``."""
        ends = np.float32([self.min, self.max])
        low, high = ends if self.per_channel else ends[:, 0]
        return np.asarray(low), np.asarray(high)

    @property
    def settings(self) -> tuple[Any, ...]:
        """The function's arguments after the inputs."""
        return (*self.range, self.num_bits, self.narrow_range)

    @property
    def description(self) -> dict[str, Any]:
        """What its record says of it, as JSON has it."""
        ends = {"min": list(self.min), "max": list(self.max)}
        described = {**asdict(self), **ends, "op": self.function}
        del described["against"]  # which the certificate says once
        return described

    @property
    def elements(self) -> int:
        """How many outputs are compared, the integers of `qmath.quantize` not counted."""
        passes = 2 if self.gradient == "gradients" else 1
        return PATTERNS * passes * len(self.min)


@dataclass(frozen=True)
class SymmetricSweep(Sweep):
    """One configuration of ``quantize_and_dequantize_v2``, with a given range.

    Attributes
    ----------
    signed_input : bool
    round_mode : {"HALF_TO_EVEN", "HALF_UP"}
    axis : {None, 1}
        One range, or one for each channel.
    """

    op: Literal["quantize_and_dequantize_v2"]
    signed_input: bool = True
    round_mode: Literal["HALF_TO_EVEN", "HALF_UP"] = "HALF_TO_EVEN"
    axis: int | None = None

    @property
    def function(self) -> str:
        """Name of the function in `qmath` and in `reference.oracle`."""
        return self.op

    @property
    def per_channel(self) -> bool:
        """Whether the inputs have a last axis of channels."""
        return self.axis is not None

    @property
    def settings(self) -> tuple[Any, ...]:
        """The function's arguments after the inputs."""
        range_given, name = True, None
        return (
            *self.range, self.signed_input, self.num_bits, range_given, self.round_mode, name,
            self.narrow_range, self.axis,
        )  # fmt: skip


@cache
def sample(model: str, tensor: str, channels: int = 1) -> Ends:
    """Return the first range ends that training left in a sample."""
    found = qmath.load(SAMPLES / f"{model}.h5").tensors[tensor]
    if found.min is None or found.max is None:
        raise ValueError(f"{model}: {tensor} has no range")
    low, high = (tuple(map(float, end.reshape(-1)[:channels])) for end in (found.min, found.max))
    return low, high


def one(low: float, high: float) -> Ends:
    """Return one range, of the float32 nearest to the ends."""
    return (float(np.float32(low)),), (float(np.float32(high)),)


# What goes through kernels that are slow to reach, and the first through those that are emulated.
OF_OTHERS = (
    "vars 8 bits, untrained",
    "vars_per_channel 4 bits narrow, depthwise",
    "args 8 bits, default",
    "vars 8 bits narrow, dense kernel",
    "vars 4 bits narrow, dense kernel",
    "vars 16 bits, untrained",
    "vars_per_channel 16 bits narrow, symmetric",
    "args 16 bits, one-sided",
)
EMULATED = 3


@cache
def sweeps(against: str = "tf") -> tuple[Sweep, ...]:
    """Return every sweep; against others than the installed TensorFlow, eager, a few of them."""
    if against == "tf":
        return _own_sweeps()
    release = TWINS[against].release
    own = {sweep.name: sweep for sweep in _own_sweeps()}
    names = OF_OTHERS[: EMULATED if release and release.is_emulated else None]
    return tuple(replace(own[name], against=against) for name in names)


def _own_sweeps() -> tuple[Sweep, ...]:
    wide, narrow = False, True
    relu6 = sample("default8", "relu6/output")
    forward: Sequence[tuple[str, Op, int, bool, Ends]] = [
        ("untrained", "vars", 8, wide, one(-6, 6)),
        ("model input", "vars", 8, wide, sample("default8", "quantize_layer/output")),
        ("activation", "vars", 8, wide, sample("default8", "conv1/post_activation")),
        ("relu6", "vars", 8, wide, relu6),
        ("dense kernel", "vars", 8, narrow, sample("default8", "dense/kernel")),
        ("conv kernel", "vars_per_channel", 8, narrow, sample("default8", "conv1/kernel", 2)),
        ("depthwise", "vars_per_channel", 4, narrow, sample("nbit4", "dw1/depthwise_kernel")),
        ("default", "args", 8, wide, one(-6, 6)),
        ("symmetric", "args", 8, narrow, one(-1, 1)),
        ("dense kernel", "vars", 4, narrow, sample("nbit4", "dense/kernel")),
        ("conv kernel", "vars", 4, wide, sample("integer4", "conv1/kernel")),
        ("symmetric", "vars", 2, wide, one(-1, 1)),
        ("symmetric", "vars", 3, narrow, one(-0.75, 0.75)),
        ("asymmetric", "vars", 5, narrow, one(-0.3, 1.7)),
        ("asymmetric", "vars", 12, wide, one(-2.5, 7.3)),
        ("untrained", "vars", 16, wide, one(-6, 6)),
        ("symmetric", "vars", 16, narrow, one(-1, 1)),
        ("misses zero", "vars", 8, wide, one(1, 2)),
        ("symmetric", "args", 2, narrow, one(-1, 1)),
        ("one-sided", "args", 3, wide, one(0, 6)),
        ("one-sided", "args", 4, narrow, one(-8, 0)),
        ("asymmetric", "args", 5, wide, one(-1, 2)),
        ("untrained", "args", 12, narrow, one(-6, 6)),
        ("one-sided", "args", 16, wide, one(0, 6)),
        ("asymmetric", "vars_per_channel", 2, wide, one(-1, 0.5)),
        ("symmetric", "vars_per_channel", 12, narrow, one(-0.5, 0.5)),
        ("symmetric", "vars_per_channel", 16, narrow, one(-1, 1)),
    ]
    backward: Sequence[tuple[str, Op, int, bool, Ends, str]] = [
        ("default", "args", 8, wide, one(-6, 6), "inputs"),
        ("default", "args", 8, wide, one(-6, 6), "gradients"),
        ("one-sided", "args", 4, wide, one(0, 6), "inputs"),
        ("relu6", "vars", 8, wide, relu6, "inputs"),
        ("depthwise", "vars_per_channel", 8, narrow,
         sample("default8", "dw1/depthwise_kernel"), "inputs"),
    ]  # fmt: skip
    found = [
        Sweep(_name(name, op, bits, narrowly), op, bits, narrowly, *ends)
        for name, op, bits, narrowly, ends in forward
    ]
    for name, op, bits, narrowly, ends, of in backward:
        title = f"gradient by {of}: {_name(name, op, bits, narrowly)}"
        argument: Literal["inputs", "gradients"] = "inputs" if of == "inputs" else "gradients"
        found.append(Sweep(title, op, bits, narrowly, *ends, gradient=argument))
    return (*found, *_symmetric_sweeps())


def _symmetric_sweeps() -> Iterator[SymmetricSweep]:
    """Yield the sweeps of ``quantize_and_dequantize_v2``: wide first, then narrow ones."""
    op: Literal["quantize_and_dequantize_v2"] = "quantize_and_dequantize_v2"
    activation, relu6 = (
        sample("default8", name) for name in ("conv1/post_activation", "relu6/output")
    )
    yield SymmetricSweep(f"{op} 8 bits, activation", op, 8, False, *activation)
    yield SymmetricSweep(
        f"{op} 8 bits, activation, half up", op, 8, False, *activation, round_mode="HALF_UP"
    )
    yield SymmetricSweep(
        f"{op} 8 bits, relu6, unsigned, half up", op, 8, False, *relu6,
        signed_input=False, round_mode="HALF_UP",
    )  # fmt: skip
    kernel = sample("nbit4", "dense/kernel")
    yield SymmetricSweep(f"{op} 4 bits narrow, dense kernel", op, 4, True, *kernel)
    kernels = sample("default8", "conv1/kernel", 2)
    yield SymmetricSweep(f"{op} 8 bits narrow, conv kernel", op, 8, True, *kernels, axis=1)


def _name(name: str, op: Op, num_bits: int, narrow_range: bool) -> str:
    return f"{op} {num_bits} bits{' narrow' if narrow_range else ''}, {name}"
