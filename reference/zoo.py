"""Every model in every container: ``python -m reference.zoo OUT``, then ``… --check OUT``.

The first writes the models of `reference.zoo_models`, each with what Keras itself says that it
holds, and needs TensorFlow. The second reads every file with qmath and compares, bit by bit: each
weight with its range, each range of an activation, and all that was left float. It prints a table:

=  equal, every tensor under its layer's name;
≈  equal, but the container does not tell the names of all layers;
?  asked: equal, once qmath is told quantizers of the training script;
e  explained: not what Keras holds, for a reason that is listed below the table;
≠  different;
   (nothing) Keras could not write it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import qmath
from qmath.quantizers import Quantizer

__all__ = ["READINGS", "Outcome", "check"]

GOLDEN = Path(__file__).parent / "golden" / "zoo"
# What is read, by container; "+" gives the architecture from config.json.
READINGS = (
    "whole.h5", "names.h5", "names.h5+", "model.keras", "model.weights.h5+", "checkpoint",
    "checkpoint+", "keras_saved", "tf_saved", "exported",
)  # fmt: skip
# Model, reading, what is said of it, and why that is right.
EXPLAINED = (
    (
        "fixed_weight",
        "*",
        "lacks fixed/kernel; has fixed/kernel",
        "no variable and no config tells of its FixedQuantizer: it reads as float, with a note",
    ),
    ("subclassed", "*+", "refused: *it holds no layers*", "such a model has no architecture"),
    (
        "subclassed",
        "model.keras",
        "refused: *the model is no Sequential or Functional one*",
        "variables have no names there, and such a model has no architecture to tell them",
    ),
)


def _last(num_bits: int) -> qmath.LastValueQuantizer:
    return qmath.LastValueQuantizer(num_bits, False, True, False)


_AVERAGE = qmath.MovingAverageQuantizer(8, False, False, False)
# By model, where several models could be the same file without names.
ANSWERS: Mapping[str, Mapping[str, Quantizer]] = {
    "bias": {"CConfig.weights": _last(8)},
    "conv1d": {"CConfig.weights": _last(4), "CConfig.output": _AVERAGE},
    "embedding": {"EConfig.weights": _last(5)},
    "fixed_weight": {"DConfig.weights": _last(5)},
    "gru": {"gru/gru_cell/recurrent_kernel": _last(4), "gru/gru_cell/bias": _last(9)},
    "lstm": {"LstmConfig.output": _AVERAGE},
    "simple_rnn": {"RnnConfig.weights": _last(6)},
}


class Tensor(NamedTuple):
    """What a tensor holds: the bytes of its values and of its range."""

    leaf: str
    values: bytes | None
    low: bytes | None
    high: bytes | None


class Outcome(NamedTuple):
    """What came of reading one container, and why."""

    mark: str
    why: str = ""


def expected(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the layer's path and the content of every tensor that Keras says a model holds."""
    tensors: dict[tuple[str, str, str], dict[str, bytes]] = {}
    with np.load(folder / "expected.npz") as arrays:
        for key in arrays.files:
            number, path, leaf, part = key.split("|")
            tensors.setdefault((number, path, leaf), {})[part] = arrays[key].tobytes()
    for (_, path, leaf), parts in tensors.items():
        yield path, Tensor(leaf, *(parts.get(part) for part in ("values", "min", "max")))


def read(
    folder: Path, reading: str, told: Mapping[str, Quantizer] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and content of every tensor that qmath reads, told these quantizers."""
    architecture = folder / "config.json" if reading.endswith("+") else None
    model = qmath.load(folder / reading.removesuffix("+"), told, architecture=architecture)
    for name, tensor in model.tensors.items():
        parts = (
            None if part is None else np.asarray(part).tobytes()
            for part in (tensor.values, tensor.min, tensor.max)
        )
        yield name, Tensor(name.rpartition("/")[2], *parts)


def check(folder: Path, reading: str) -> Outcome | None:
    """Compare one container of a model with what Keras says; ``None`` if there is none."""
    if not (folder / reading.removesuffix("+")).exists():
        return None
    if reading.endswith("+") and not (folder / "config.json").exists():
        return None
    wanted = list(expected(folder))
    try:
        outcome = _compared(wanted, list(read(folder, reading)))
    except qmath.QmathError as error:
        outcome = Outcome("≠", f"refused: {str(error).replace(f'{folder}/', '')}")
        if told := ANSWERS.get(folder.name) if "told by" in outcome.why else None:
            outcome = _compared(wanted, list(read(folder, reading, told)))
            outcome = Outcome("?", f"told {', '.join(told)}") if outcome.mark == "=" else outcome
    if outcome.mark == "≠":
        said = (folder.name, reading, outcome.why)
        for *patterns, why in EXPLAINED:
            if all(map(fnmatch.fnmatchcase, said, patterns)):
                return Outcome("e", why)
    return outcome


def _compared(wanted: Sequence[tuple[str, Tensor]], found: Sequence[tuple[str, Tensor]]) -> Outcome:
    content, held = (Counter(tensor for _, tensor in side) for side in (wanted, found))
    if content != held:
        lacks, has = (list((a - b).elements()) for a, b in ((content, held), (held, content)))
        names = [f"lacks {path}/{t.leaf}" for path, t in wanted if t in lacks]
        names += [f"has {name}" for name, t in found if t in has]
        return Outcome("≠", "; ".join(names))
    # Each tensor belongs to one of the layers that hold such a one.
    places: dict[Tensor, set[str]] = {}
    for path, tensor in wanted:
        places.setdefault(tensor, set()).add(path)
    other = [
        name
        for name, tensor in found
        if not any(name.startswith(f"{path}/") for path in places[tensor])
    ]
    return Outcome("≈", f"named otherwise: {', '.join(other)}") if other else Outcome("=")


def report(root: Path) -> int:
    """Print the table of all models below a folder; return how many differ."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    table = Table("model", *READINGS)
    marks: Counter[str] = Counter()
    reasons: dict[tuple[str, str], list[str]] = {}
    folders = sorted(path.parent for path in root.rglob("expected.npz"))
    for folder in track(folders, "reading …", console=Console(stderr=True), transient=True):
        row = []
        name = str(folder.relative_to(root))
        for reading in READINGS:
            outcome = check(folder, reading)
            row.append(outcome.mark if outcome else "")
            if outcome:
                marks[outcome.mark] += 1
            if outcome and outcome.why:
                reasons.setdefault(outcome, []).append(f"{name} {reading}")
        table.add_row(name, *row)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for (mark, why), places in reasons.items():
        console.print(f"{mark} {', '.join(places)}: {why}", markup=False)
    counts = ", ".join(f"{marks[mark]} {mark}" for mark in "=≈?e≠")
    console.print(f"{len(folders)} models, {marks.total()} readings: {counts}")
    return marks["≠"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the zoo, or check it."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.zoo", description="Write, or check, every model in every file."
    )
    parser.add_argument("out", type=Path, help="the folder of the models; those there are kept")
    parser.add_argument("--check", action="store_true", help="compare what qmath reads")
    parser.add_argument("--only", metavar="NAME,…", help="these models")
    parser.add_argument("--without", default="", metavar="NAME,…", help="but not these containers")
    options = parser.parse_args(arguments)
    if options.check:
        return int(report(options.out) > 0)
    from reference.zoo_models import CONTAINERS, MODELS, write

    containers = [name for name in CONTAINERS if name not in options.without.split(",")]
    for name in options.only.split(",") if options.only else MODELS:
        if not (options.out / name).exists():
            failed = write(name, options.out / name, containers)
            print(name, json.dumps(failed, indent=1) if failed else "", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
