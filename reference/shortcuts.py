"""How often common shortcuts give other integers than training: ``python -m reference.shortcuts``.

Every element of every quantized kernel of the samples, against TensorFlow's own fake-quantized
kernel in ``reference/golden/samples.npz``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import qmath

HERE = Path(__file__).parent
SAMPLES = ("question", "integer4", "default8", "nbit4")
Integers = np.ndarray


def recomputed_range(t: qmath.QatTensor) -> Integers:
    """Quantize with the kernel's own minimum and maximum, not the stored range."""
    spec = t.spec
    fresh = qmath.LastValueQuantizer(
        spec.num_bits, spec.per_axis, spec.symmetric, spec.narrow_range
    )
    state = fresh.build(np.shape(t.values))
    fresh(t.values, True, state)
    return centred(fresh.quantize(t.values, state))


def largest_magnitude(t: qmath.QatTensor) -> Integers:
    """Take ``max|w| / (2**(n-1) - 1)`` for the scale and round."""
    w = np.asarray(t.values)
    axes = tuple(range(w.ndim - 1)) if t.spec.per_axis else None
    steps = 2 ** (t.spec.num_bits - 1) - 1
    scale = np.abs(w).max(axis=axes) / np.float32(steps)
    return np.clip(np.round(w / scale), -steps - 1, steps)


def rounded_quotient(t: qmath.QatTensor) -> Integers:
    """Take the right scale, but ``round(w / scale)`` for the arithmetic."""
    q = t.quantize()
    limit = 2 ** (t.spec.num_bits - 1)
    low, high = -limit + t.spec.narrow_range - q.zero_point, limit - 1 - q.zero_point
    return np.clip(np.round(np.asarray(t.values) / q.scale), low, high)


def exact(t: qmath.QatTensor) -> Integers:
    """Ask qmath."""
    return centred(t.quantize())


def centred(q: qmath.QuantizedTensor) -> Integers:
    """Return integers relative to their zero point."""
    return q.values.astype(np.int32) - q.zero_point


SHORTCUTS: dict[str, Callable[[qmath.QatTensor], Integers]] = {
    "min and max recomputed from the kernel": recomputed_range,
    "`scale = max(abs(w)) / (2**(n-1) - 1)`": largest_magnitude,
    "`round(w / scale)` with the right scale": rounded_quotient,
    "qmath": exact,
}


def table() -> str:
    """Return the counts as a Markdown table."""
    with np.load(HERE / "golden" / "samples.npz") as file:
        golden = dict(file)
    wrong = {name: dict.fromkeys(SAMPLES, 0) for name in SHORTCUTS}
    elements = dict.fromkeys(SAMPLES, 0)
    for sample in SAMPLES:
        model = qmath.load(HERE / "samples" / f"{sample}.h5")
        for tensor in model.tensors.values():
            if tensor.role != "weight":
                continue
            trained = golden[f"{sample}/{tensor.name}"]
            integers = np.rint(trained / tensor.quantize().scale)
            elements[sample] += integers.size
            for name, shortcut in SHORTCUTS.items():
                wrong[name][sample] += int((shortcut(tensor) != integers).sum())
    lines = [f"| wrong integers of | {' | '.join(f'{s} ({elements[s]:,})' for s in SAMPLES)} |"]
    lines.append("|---|" + "--:|" * len(SAMPLES))
    for name, counts in wrong.items():
        lines.append(f"| {name} | {' | '.join(f'{counts[s]:,}' for s in SAMPLES)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
