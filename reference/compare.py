"""Count differing integers: ``python -m reference.compare [--models NAME …] [--json FILE]``.

Each model runs in TensorFlow, and each of its quantized tensors is computed anew from
TensorFlow's own previous integers, once under every arithmetic profile (teacher forcing: no layer
answers for another's difference). The result is a Markdown table. The exit status is 1 if, at up
to 8 bits, an integer of the profiles `exact` or `integer` differs and the exact result is farther
from its rounding tie than the float32 noise of TensorFlow's own sums.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qmath.errors import QmathError
from qmath.integer.api import PROFILES
from qmath.integer.comparison import LayerDifference, compare, integers_of_dump
from qmath.integer.executor import Executor
from qmath.integer.lowering.lower import lower
from qmath.integer.profiles.exact import Profile
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import Program
from reference import models, samples
from reference.dump import dump, inputs_of

__all__ = ["CASES", "Case", "Result", "case", "profiles", "results"]

IMAGES = {"mobilenetv2": 8}
DEFAULT_IMAGES = 32
JUDGED = ("exact", "integer")
CASES = (*samples.RECIPES, *models.MODELS)


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its data, and what TensorFlow made of them.

    Attributes
    ----------
    name : str
    model : tf_keras.Model
    program : Program
    inputs : dict of str to ndarray
        Data of each input.
    dump : dict of str to ndarray
        TensorFlow's fake-quantized tensors and outputs.
    integers : dict of str to ndarray
        The same tensors as integers.
    """

    name: str
    model: Any
    program: Program
    inputs: dict[str, NDArray[Any]]
    dump: dict[str, NDArray[np.float32]]
    integers: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Result:
    """What one profile did on one model; `layers` is empty where the profile does not apply."""

    model: str
    profile: str
    layers: tuple[LayerDifference, ...]
    bits: Mapping[str, int]
    refusal: str = ""

    @property
    def elements(self) -> int:
        """How many integers were compared."""
        return sum(layer.elements for layer in self.layers)

    @property
    def differing(self) -> tuple[LayerDifference, ...]:
        """The tensors in which some integer differs."""
        return tuple(layer for layer in self.layers if layer.teacher_forced)

    @property
    def count(self) -> int:
        """How many integers differ."""
        return sum(layer.teacher_forced for layer in self.layers)

    @property
    def unexplained(self) -> tuple[LayerDifference, ...]:
        """The tensors in which an integer differs by more than float32 noise explains."""
        return tuple(layer for layer in self.layers if not layer.explained)

    @property
    def failures(self) -> tuple[LayerDifference, ...]:
        """Of the unexplained tensors, those that break the promise."""
        judged = self.unexplained if self.profile in JUDGED else ()
        return tuple(layer for layer in judged if self.bits[layer.name] <= 8)


def profiles() -> dict[str, Profile]:
    """Return every profile, and the integer one with shorter multipliers."""
    made: dict[str, Profile] = {}
    for name, profile in PROFILES.items():
        made[name] = profile()
        if name == "integer":
            made["integer, 16-bit multipliers"] = Integer(16)
    return made


def case(name: str, count: int | None = None) -> Case:
    """Return a sample or one of `reference.models`, run by TensorFlow on `count` examples."""
    if name in samples.RECIPES:
        model = samples.load(name)
        data = {"image": samples.digits().test_images[:count]}
    else:
        model = models.build(name)
        data = models.data(model, count or IMAGES.get(name, DEFAULT_IMAGES))
    inputs = inputs_of(model, data)
    program = lower(qmath.from_keras(model))
    dumped = dump(model, inputs)
    return Case(name, model, program, inputs, dumped, integers_of_dump(program, dumped))


def results(of: Case) -> Iterator[Result]:
    """Compare a model under every profile."""
    bits = {name: params.num_bits for name, params in Executor(of.program).quant_params.items()}
    for name, profile in profiles().items():
        try:
            layers = compare(of.program, of.inputs, profile, of.integers).layers
        except QmathError as error:
            yield Result(of.name, name, (), bits, str(error))
        else:
            yield Result(of.name, name, layers, bits)


def table(found: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of a Markdown table: differing integers of each model and profile."""
    columns = list(dict.fromkeys(result.profile for result in found))
    yield " | ".join(["| model", "bits", "integers", *columns, "farthest tie | float32 noise |"])
    yield "|---|---:" + "|---:" * (len(columns) + 3) + "|"
    by_model: dict[str, dict[str, Result]] = {}
    for result in found:
        by_model.setdefault(result.model, {})[result.profile] = result
    for model, row in by_model.items():
        exact = row["exact"]
        counts = [_count(row[column]) for column in columns]
        widths = "/".join(map(str, sorted(set(exact.bits.values()))))
        far, noise = "", ""
        ties = [layer for layer in exact.differing if layer.farthest_tie is not None]
        if ties:
            worst = max(ties, key=lambda layer: layer.farthest_tie or 0)
            far, noise = f"{worst.farthest_tie:.1e}", f"{worst.noise:.1e}"
        yield " | ".join([f"| {model}", widths, f"{exact.elements:,}", *counts, far, f"{noise} |"])


def _count(result: Result) -> str:
    if result.refusal:
        return "refused"
    far = 0
    if result.profile in JUDGED:
        far = sum(layer.teacher_forced - layer.near_ties for layer in result.differing)
    return f"{result.count:,}" + (f" ({far:,})" if far else "")


LEGEND = """
Integers that differ from TensorFlow's, teacher-forced. In brackets, of `exact` and `integer`: how
many of them lie farther from their rounding tie than the float32 noise of TensorFlow's own sums (no
brackets: none). The last columns are of `exact`, in integer steps: among what differs, the greatest
distance of the exact result from its tie, and the noise's bound in the same tensor."""


def listing(found: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each tensor in which a judged profile differs, and for each refusal."""
    lines: dict[str, list[str]] = {}
    for result in found:
        for layer in result.differing if result.profile in JUDGED else ():
            line = (
                f"{result.model}, {layer.name}, {result.bits[layer.name]} bits: "
                f"{layer.teacher_forced} of {layer.elements:,} by up to {layer.largest}"
            )
            if layer.farthest_tie is not None:
                line += f", tie within {layer.farthest_tie:.1e}, noise {layer.noise:.1e}"
            line += "" if layer.explained else ", UNEXPLAINED"
            lines.setdefault(line, []).append(result.profile)
    for line, names in lines.items():
        yield f"{line} ({', '.join(names)})"
    for result in found:
        if result.refusal:
            yield f"{result.model}, {result.profile}: refused: {result.refusal}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the models that the command line names, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.compare",
        description="Count integers that differ from TensorFlow's.",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=CASES,
        default=CASES,
        metavar="NAME",
        help=f"any of {', '.join(CASES)}; default: all",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"examples of each model; default: {DEFAULT_IMAGES}, "
        f"{IMAGES['mobilenetv2']} of mobilenetv2, all 360 of the samples",
    )
    parser.add_argument("--json", metavar="FILE", help="write every layer's numbers to FILE")
    options = parser.parse_args(arguments)
    found: list[Result] = []
    for name in options.models:
        print(f"{name} …", file=sys.stderr, flush=True)
        found += results(case(name, options.images))
    print("\n".join(table(found)))
    print(LEGEND)
    for line in listing(found):
        print(line)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([asdict(result) for result in found], file, indent=1)
    return int(any(result.failures for result in found))


if __name__ == "__main__":
    sys.exit(main())
