"""Ask TensorFlow itself whether an export is right: ``python -m reference.verify MODEL OUT``.

The model gives names, floats and ranges; the exported file, read with NumPy alone, gives integers,
scales, zero points and the settings, so that no options are needed. Every quantized weight must be
TensorFlow's fake-quantized one in every bit; of an activation, whose values no file holds, what
TensorFlow makes of points across its range must be the real values of its integers, and reach the
first and the last of them. Exit status 1, and the first differing element, where that is not so.

So far this believes what qmath believes: that the quantizer of a stored range is TFMOT's own. Where
no file names its class, that is assumed, and said. ``--against FORWARD.npz`` assumes nothing: the
file is what `reference.dump` saw a forward pass use. Each weight must be its kernel in every bit,
float or quantized; with activations in it, just those must be quantized, and their values be real
values of their integers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

import qmath
from qmath.containers.array_file import read_arrays
from reference import oracle
from reference.against import KERNELS, against, bits, real_values

__all__ = ["Check", "check", "main"]

Arrays = Mapping[str, NDArray[Any]]
Float32Array = NDArray[np.float32]

_SETTINGS = ("quantizer", "num_bits", "narrow_range", "per_axis", "op")
_POINTS = 4097
_TOLD_BY_FILES = ("live quantizer", "graph", "config")


@dataclass
class Check:
    """What was compared, and every difference in words."""

    weights: int = 0
    elements: int = 0
    ranges: int = 0
    kernels: int = 0
    assumed: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def check(model: Path, output: Path, forward: Arrays | None = None) -> Check:
    """Compare an ``.npz`` export with what TensorFlow computes from the model's floats.

    Parameters
    ----------
    model : Path
        What `qmath.load` reads.
    output : Path
        What `qmath.export` wrote.
    forward : mapping of str to ndarray, optional
        What `reference.dump` wrote.
    """
    tensors = qmath.load(model).tensors
    with np.load(output, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    entries = json.loads(arrays["manifest"].tobytes())["tensors"]
    found = Check()
    for names, where in ((tensors.keys() - entries.keys(), "the file"),
                         (entries.keys() - tensors.keys(), "the model")):  # fmt: skip
        found.differences += [f"{name}: not in {where}" for name in sorted(names)]
    for name, tensor in tensors.items():
        entry = entries.get(name)
        if entry is None:
            continue
        found.differences += _contradictions(tensor, entry)
        if entry["role"] == "weight":
            found.weights += 1
            found.elements += np.size(tensor.values)
            found.differences += _weight(tensor, entry, arrays)
        elif entry["num_bits"] is not None:
            found.ranges += 1
            found.differences += _range(tensor, entry, arrays)
    if forward is None:
        found.assumed += [name for name, entry in entries.items() if _is_assumed(entry)]
    else:
        found.kernels = sum(name.startswith(KERNELS) for name in forward)
        found.differences += map(str, against(entries, arrays, forward))
    return found


def _is_assumed(entry: dict[str, Any]) -> bool:
    """Tell whether no file says which class quantized a tensor."""
    source = entry.get("evidence", {}).get("num_bits")
    return source is not None and source not in _TOLD_BY_FILES


def _contradictions(tensor: qmath.QatTensor, entry: dict[str, Any]) -> Iterator[str]:
    """Yield where the file says something else than the model, and not that the user said it."""
    told = {key for key, source in entry.get("evidence", {}).items() if source == "user"}
    if entry["role"] != tensor.role and not told:
        yield f"{tensor.name}: a tensor of role {entry['role']}, in the model {tensor.role}"
    for key in _SETTINGS:
        known = getattr(tensor.spec, key) if tensor.role != "float" else None
        if known is not None and key not in told and entry.get(key) != known:
            yield f"{tensor.name}: {key} is {entry.get(key)}, in the model {known}"


def _weight(tensor: qmath.QatTensor, entry: dict[str, Any], arrays: Arrays) -> Iterator[str]:
    name, stored = tensor.name, np.asarray(tensor.values)
    real = real_values(name, entry, arrays)
    expected = _fake_quant(stored, tensor, entry)
    if real.shape != expected.shape:
        yield f"{name}: of shape {real.shape}, in the model {expected.shape}"
        return
    differs = np.argwhere(bits(real) != bits(expected))
    if len(differs):
        at = tuple(differs[0].tolist())
        yield (
            f"{name}{list(at)}: the file gives {real[at]!s}, TensorFlow {expected[at]!s} "
            f"for {stored[at]!s} ({len(differs)} of {real.size} differ)"
        )


def _range(tensor: qmath.QatTensor, entry: dict[str, Any], arrays: Arrays) -> Iterator[str]:
    name = tensor.name
    scale, zero_point = arrays[f"{name}.scale"], arrays[f"{name}.zero_point"]
    low, high = _ends(tensor, entry)
    margin = (float(high) - float(low)) / 8
    points = np.linspace(low - margin, high + margin, _POINTS).astype(np.float32)
    faked = _fake_quant(points, tensor, entry)
    with np.errstate(invalid="ignore"):  # a dead range has the scale 0
        integers = np.nan_to_num(np.rint(faked / scale)).astype(np.int32)
    real = integers.astype(np.float32) * scale
    differs = np.flatnonzero(bits(real) != bits(faked))
    if differs.size:
        at = differs[0]
        yield (
            f"{name}.scale: TensorFlow gives {faked[at]!s} for {points[at]!s}, no multiple of "
            f"{scale!s} ({differs.size} of {points.size} points)"
        )
    limits = [int(entry["narrow_range"]), 2 ** entry["num_bits"] - 1]
    reached = [int(integers.min() + zero_point), int(integers.max() + zero_point)]
    if scale and reached != limits:
        yield f"{name}: TensorFlow reaches {reached} with its zero point, its width says {limits}"


def _fake_quant(x: NDArray[Any], tensor: qmath.QatTensor, entry: dict[str, Any]) -> Float32Array:
    """Ask TensorFlow for the fake-quantized values, with the settings of the exported file."""
    low, high = _ends(tensor, entry)
    width, narrow = entry["num_bits"], entry["narrow_range"]
    if entry["per_axis"]:
        return oracle.fake_quant_with_min_max_vars_per_channel(x, low, high, width, narrow)
    if entry["op"] == "args":
        return oracle.fake_quant_with_min_max_args(x, float(low), float(high), width, narrow)
    return oracle.fake_quant_with_min_max_vars(x, low, high, width, narrow)


def _ends(tensor: qmath.QatTensor, entry: dict[str, Any]) -> tuple[Float32Array, Float32Array]:
    """Return the model's range; one told as a `FixedQuantizer`'s arguments is in the file only."""
    if tensor.min is not None and tensor.max is not None:
        return tensor.min, tensor.max
    low, high = (
        np.array([int(pattern, 16) for pattern in entry[key]], np.uint32).view(np.float32)
        for key in ("min_bits", "max_bits")
    )
    return low.reshape(()), high.reshape(())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts and differences of one export; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.verify", description="Ask TensorFlow whether an export is right."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--against", metavar="FORWARD.npz", type=Path, help="what reference.dump saw MODEL use"
    )
    options = parser.parse_args(arguments)
    try:
        forward = read_arrays(options.against) if options.against else None
        found = check(options.model, options.output, forward)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        print(f"{options.output}: cannot be compared with {options.model}: {error}",
              file=sys.stderr)  # fmt: skip
        return 2
    verdict = "differs from" if found.differences else "equals"
    print(
        f"{options.output}: {verdict} TensorFlow; {found.weights} weights of {found.elements:,} "
        f"elements, {found.ranges} ranges compared"
        + (f", {found.kernels} kernels of the forward pass" if options.against else "")
    )
    if found.assumed:
        print(
            f"  assumed, as no file names the class: that TFMOT's own quantizer used the stored "
            f"range of {', '.join(found.assumed)}; --against a dump of the forward pass tells"
        )
    for line in found.differences:
        print(f"  {line}")
    return int(bool(found.differences))


if __name__ == "__main__":
    sys.exit(main())
