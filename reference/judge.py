"""Is anything wrong in silence? ``python -m reference.judge [OUT] [--case NAME] [--json FILE]``.

Every model of `reference.judge_models`, from every container and live, is read without options,
exported and run, and compared with what TensorFlow's forward pass used: each kernel in every bit,
which activations are quantized, their integers, and the outputs. Of each the table says:

=  right;
≈  right as far as compared, kernels and names of activations: qmath does not run it;
a  assumed: right or wrong, qmath says that it assumes (a setting's provenance, or a note that names
   the tensor or its layer);
?  asked: settings are missing, and right, assumed or refused when answered as the training script
   would;
!  asked, and wrong in silence when answered so;
r  refused;
≠  wrong in silence;
   (nothing) Keras cannot write it.

The exit status is 1 if anything is wrong in silence. Models in OUT are kept for the next time:
``--check`` reads what is there, and with ``--without live`` needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import qmath
from qmath.integer.api import profile_named, program_of
from qmath.integer.comparison import compare, integers_of_dump
from qmath.model import missing_settings
from reference.against import Difference, against

__all__ = ["READINGS", "Cell", "judge", "judged_case"]

Arrays = Mapping[str, NDArray[Any]]
Load = Callable[[Mapping[str, Any] | None], qmath.QatModel]

# "+" gives the architecture from config.json.
READINGS = (
    "whole.h5", "names.h5+", "model.keras", "model.weights.h5+", "checkpoint+", "keras_saved",
    "tf_saved", "exported", "live",
)  # fmt: skip
WORDS = {
    "=": "right", "≈": "right as far as compared", "a": "assumed", "?": "asked",
    "!": "asked, then wrong", "r": "refused", "≠": "wrong",
}  # fmt: skip
WRONG = ("!", "≠")
# Float32 sums of a few products, in parts of the largest output.
_NOISE = 1e-5


class Cell(NamedTuple):
    """What came of reading one container, and why."""

    mark: str
    why: str = ""


def judge(load: Load, forward: Arrays, data: Arrays, answers: Mapping[str, Any]) -> Cell:
    """Read a model without options, and compare it with a forward pass.

    Parameters
    ----------
    load : callable
        Reads it with quantizers that the user tells, or with ``None``.
    forward : mapping of str to ndarray
        What `reference.dump` wrote.
    data : mapping of str to ndarray
        The inputs, by name.
    answers : mapping of str to quantizer
        What the user can say when asked, by the option's key.
    """
    cell, asked = _judged(load, None, forward, data)
    keys = set(re.findall(r'--quantizer "?([^=" ]+)=', asked))
    if cell.mark != "?" or not keys or not keys <= answers.keys():
        return cell
    answered, _ = _judged(load, {key: answers[key] for key in keys}, forward, data)
    return Cell("!" if answered.mark in WRONG else "?", f"{answered.mark} {answered.why}".strip())


def _judged(
    load: Load, quantizers: Mapping[str, Any] | None, forward: Arrays, data: Arrays
) -> tuple[Cell, str]:
    """Return what is to be said, and the options that were asked for."""
    try:
        model = load(quantizers)
        asked = " ".join(item.option for item in missing_settings(model))
        differences, not_run = _differences(model, forward, data)
    except qmath.MissingSettingsError as error:
        return Cell("?", str(error)), str(error)
    except qmath.QmathError as error:
        return Cell("r", str(error)), ""
    silent = [difference for difference in differences if not _is_told(model, difference.tensor)]
    # What one tensor's difference does to the outputs is told with it.
    silent = [d for d in silent if not d.tensor.startswith("outputs/") or len(differences) == 1]
    if silent:
        return Cell("≠", "; ".join(map(str, silent))), asked
    if asked:
        return Cell("?", asked), asked
    if differences or any("assumed" in str(t.provenance) for t in model.tensors.values()):
        return Cell("a", "; ".join(map(str, differences))), ""
    return Cell("≈" if not_run else "=", not_run), ""


def _differences(
    model: qmath.QatModel, forward: Arrays, data: Arrays
) -> tuple[list[Difference], str]:
    """Return how a model's export and run differ from a forward pass, and why it did not run."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.npz"
        qmath.export(model, output)
        with np.load(output) as file:
            arrays = {name: file[name] for name in file.files}
    entries = json.loads(arrays["manifest"].tobytes())["tensors"]
    differences = [
        difference
        for difference in against(entries, arrays, forward)
        # Nothing is said yet of what is asked for.
        if not _is_open(entries.get(difference.tensor))
    ]
    try:
        differences += _run(model, forward, data, {item.tensor for item in differences})
    except qmath.QmathError as error:
        return differences, str(error)
    return differences, ""


def _is_open(entry: Mapping[str, Any] | None) -> bool:
    return entry is not None and entry["role"] != "float" and entry["num_bits"] is None


def _run(
    model: qmath.QatModel, forward: Arrays, data: Arrays, known: set[str]
) -> Iterator[Difference]:
    """Yield where integers or outputs differ by more than float32 noise explains."""
    program = program_of(model, input_shapes={name: x.shape[1:] for name, x in data.items()})
    flips = False
    if not known:  # else there is nothing more to find, and the integers may not exist
        reference = integers_of_dump(program, forward)
        for layer in compare(program, data, profile_named("exact"), reference).layers:
            flips |= layer.free_running > 0
            if not layer.explained:
                yield Difference(
                    layer.name,
                    f"{layer.teacher_forced} of {layer.elements} integers differ, by up to "
                    f"{layer.largest}",
                )
    outputs = qmath.run(program, data, profile="exact").outputs.values()
    for i, output in enumerate(outputs if not flips else ()):
        expected = forward[f"outputs/{i}"]
        error = float(np.abs(output - expected).max())
        if error > _NOISE * float(np.abs(expected).max()):
            yield Difference(f"outputs/{i}", f"off by {error:.3g}")


def _is_told(model: qmath.QatModel, name: str) -> bool:
    """Tell whether qmath says of a tensor that it assumes, or does not know."""
    tensor = model.tensors.get(name)
    if tensor is not None and "assumed" in str(tensor.provenance):
        return True
    layer = re.escape(name.rpartition("/")[0])
    among_layers = re.compile(rf"left no range in [^:]*(?<![\w/]){layer}(?![\w/])")
    return any(name in note or among_layers.search(note) for note in model.notes)


def judged_case(
    name: str, root: Path, readings: Sequence[str] = READINGS, *, keep: bool = False
) -> dict[str, Cell]:
    """Judge a model in some containers, after writing them if `keep` does not find them.

    Parameters
    ----------
    name : str
        One of `reference.judge_models.MODELS`.
    root : Path
        Its files are in the folder of its name in here.
    readings : sequence of str, optional
        Some of `READINGS`.
    keep : bool, optional
        Do not write what is there.
    """
    folder, live = root / name, None
    if not keep or not (folder / "case.json").exists():
        from reference.judge_models import write

        containers = {"config.json", *(reading.removesuffix("+") for reading in readings)}
        live = write(name, folder, sorted(containers - {"live"}))
    told = json.loads((folder / "case.json").read_text())
    answers = {
        key: getattr(qmath, kind)(**arguments) for key, (kind, arguments) in told["answers"].items()
    }
    with np.load(folder / "data.npz") as file:
        data = dict(file)
    with np.load(folder / "FORWARD.npz") as file:
        forward = dict(file)
    cells = {}
    for reading in readings:
        if reading == "live":
            cells[reading] = _judge_live(name, live, data, answers)
        elif (path := folder / reading.removesuffix("+")).exists():
            architecture = folder / "config.json" if reading.endswith("+") else None
            load = partial(qmath.load, path, architecture=architecture)
            cell = judge(lambda told, load=load: load(quantizers=told), forward, data, answers)
            cells[reading] = Cell(cell.mark, cell.why.replace(f"{folder}/", ""))
    return cells


def _judge_live(name: str, model: Any, data: Arrays, answers: Mapping[str, Any]) -> Cell:
    from reference.judge_models import build, forward

    model = build(name) if model is None else model
    used = forward(model, data)
    return judge(lambda _: qmath.from_keras(model), used, data, answers)


def table(found: Mapping[str, Mapping[str, Cell]], readings: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table, the reasons of what is wrong, and the totals."""
    width = max(map(len, found))
    yield f"{'':{width}}  {'  '.join(readings)}"
    for name, row in found.items():
        marks = (f"{row[r].mark if r in row else '':^{len(r)}}" for r in readings)
        yield f"{name:{width}}  {'  '.join(marks)}".rstrip()
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for name, row in found.items():
        for reading, cell in row.items():
            if cell.mark in WRONG:
                reasons.setdefault((cell.mark, name, cell.why), []).append(reading)
    for (mark, name, why), places in reasons.items():
        yield f"{mark} {name}, {', '.join(places)}: {why[:300]}"
    marks = Counter(cell.mark for row in found.values() for cell in row.values())
    counts = ", ".join(f"{marks[mark]} {word}" for mark, word in WORDS.items())
    yield f"models: {len(found)}, readings: {marks.total()}: {counts}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the models that the command line names, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.judge", description="Look for what is wrong in silence."
    )
    parser.add_argument("out", type=Path, nargs="?", help="the folder of the models")
    parser.add_argument("--case", action="append", metavar="NAME", help="this model; repeatable")
    parser.add_argument("--check", action="store_true", help="read the models that are in OUT")
    parser.add_argument("--without", default="", metavar="NAME,…", help="but not these readings")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes; default: 2")
    parser.add_argument("--json", metavar="FILE", help="write every cell to FILE")
    options = parser.parse_args(arguments)
    readings = [name for name in READINGS if name not in options.without.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        root = options.out or Path(folder)
        names = options.case or _names(root, options.check)
        work = partial(judged_case, root=root, readings=readings, keep=options.check)
        start = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        with ProcessPoolExecutor(options.jobs, start) as pool:
            found = dict(zip(names, pool.map(work, names), strict=True))
    print("\n".join(table(found, readings)))
    if options.json:
        cells = {
            name: {r: cell._asdict() for r, cell in row.items()} for name, row in found.items()
        }
        Path(options.json).write_text(json.dumps(cells, indent=1, ensure_ascii=False) + "\n")
    return int(any(cell.mark in WRONG for row in found.values() for cell in row.values()))


def _names(root: Path, check: bool) -> list[str]:
    """Return the models that are there, or all that there can be."""
    if check:
        return sorted(path.parent.name for path in root.glob("*/case.json"))
    from reference.judge_models import MODELS

    return list(MODELS)


if __name__ == "__main__":
    sys.exit(main())
