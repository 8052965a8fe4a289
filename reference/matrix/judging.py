"""Judge one live model: every container, every format, TensorFlow's integers, C, ONNX Runtime."""

from __future__ import annotations

import io
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qmath.errors import QmathError
from qmath.exports.bundle import quantize_model
from qmath.exports.onnx.qdq import Onnx
from qmath.exports.registry import FORMATS
from qmath.integer.api import program_of
from qmath.integer.comparison import LayerDifference, compare, integers_of_dump
from qmath.integer.executor import Executor
from qmath.integer.profiles.exact import Exact, Profile
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import FloatStep, Program, QuantizeStep
from qmath.quantizers import Quantizer
from reference.dump import dump, inputs_of
from reference.onnxruntime import session_outputs
from reference.zoo_models import CONTAINERS
from tests.exports.compiling import compiled
from tests.exports.compiling import run as run_program

__all__ = ["READ", "Count", "Verdict", "judge"]

Arrays = Mapping[str, NDArray[Any]]
READ = ("whole.h5", "model.keras", "exported")
JUDGED = (Exact(), Integer())


@dataclass
class Count:
    """How many integers of a run were compared with TensorFlow's, and how many differ.

    Attributes
    ----------
    integers : int
    differing : int
    explained : int
        Of those that differ: by one, and nearer to a tie than TensorFlow's own float32 noise.
    beside_floats : int
        Of those that differ: by one, of what a layer in float32 gave, whose noise has no bound.
    listed : list of str
        The tensors in which some differ.
    """

    integers: int = 0
    differing: int = 0
    explained: int = 0
    beside_floats: int = 0
    listed: list[str] = field(default_factory=list)

    @property
    def unexplained(self) -> int:
        """How many differ for no known reason."""
        return self.differing - self.explained - self.beside_floats


@dataclass
class Verdict:
    """What became of one model.

    Attributes
    ----------
    name : str
    kind : str
        ``integer``, ``float`` or ``cut``: the least that some layer of it is. ``refused``: there
        is no integer model. ``not built``: Keras or TFMOT refuses it.
    floats, cuts : list of str
        The layers that run in float32, and those that qmath cannot run, with their classes.
    counts : dict of str to Count
        By profile, and ``onnxruntime``.
    did : list of str
        Everything that was tried and is right.
    refusals : dict of str to str
        What qmath or TensorFlow refused, by what was tried, each with its reason.
    faults : dict of str to str
        Wrong integers, failing self-checks and exceptions that are not qmath's own.
    seconds : float
    """

    name: str
    kind: str = "integer"
    floats: list[str] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)
    did: list[str] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Note how the body ends: it is right, refused, or at fault."""
        try:
            yield
        except QmathError as error:
            self.refusals[what] = _one_line(str(error))
        except WrongError as error:
            self.faults[what] = _one_line(str(error))
        except Exception as error:  # whatever is not qmath's own is a fault
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.faults[what] = _one_line(f"{type(error).__name__} at {where}: {error}")
        else:
            self.did.append(what)


class WrongError(Exception):
    """Something that qmath made is not right."""


def _one_line(text: str) -> str:
    return re.sub(r"/\S*/(?=[\w.]+)", "", " ".join(text.split()))[:600]


def judge(
    verdict: Verdict, model: Any, folder: Path, data: Arrays,
    told: Mapping[str, Quantizer] | None = None, containers: tuple[str, ...] = READ,
) -> None:  # fmt: skip
    """Try everything with a live model, and note it in the verdict.

    Parameters
    ----------
    verdict : Verdict
    model : tf_keras.Model
    folder : Path
        An empty one.
    data : mapping of str to ndarray
        By the inputs' names.
    told : mapping of str to quantizer, optional
        What a user answers, of a config of his own.
    containers : tuple of str, optional
        Of `reference.zoo_models.CONTAINERS`.
    """
    with verdict.trying("from_keras"):
        live = qmath.from_keras(model)
    if "from_keras" not in verdict.did:
        verdict.kind = "refused"
        return
    paths = dict(_saved(verdict, model, folder, containers))
    inputs = inputs_of(model, data)
    with verdict.trying("program"):
        program = program_of(live)
        _describe(verdict, program)
        dumped = dump(model, inputs)
        integers = integers_of_dump(program, dumped)
    if "program" not in verdict.did:
        verdict.kind = "refused"
        program = None
    if program is not None:
        inputs = dict(inputs) | _of_cuts(program, dumped)
        for profile in JUDGED:
            with verdict.trying(profile.name):
                verdict.counts[profile.name] = _count(program, inputs, profile, integers)
    source = None
    for container, path in paths.items():
        with verdict.trying(f"load {container}"):
            # The ops of a SavedModel show the settings.
            loaded = qmath.load(path, None if path.is_dir() else told)
            _check_weights(live, loaded)
            if program is not None:
                _check_equal(live, loaded, inputs)
            source = source or loaded
    source = source or live
    _export(verdict, source, folder)
    if program is not None:
        with verdict.trying("onnxruntime"):
            verdict.counts["onnxruntime"] = _in_onnx_runtime(source, inputs)


def _saved(
    verdict: Verdict, model: Any, folder: Path, containers: tuple[str, ...]
) -> Iterator[tuple[str, Path]]:
    for container in containers:
        path = folder / container
        try:
            with redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # .h5 is legacy
                CONTAINERS[container](model, str(path))
        except Exception as error:  # Keras has its own reasons
            reason = f"Keras: {type(error).__name__}: {error}"
            verdict.refusals[f"save {container}"] = _one_line(reason)
        else:
            yield container, path


def _describe(verdict: Verdict, program: Program) -> None:
    verdict.floats = list(program.float_layers)
    verdict.cuts = [f"{cut.name} ({cut.class_name})" for cut in program.cuts]
    if verdict.cuts:
        verdict.kind = "cut"
    elif verdict.floats:
        verdict.kind = "float"


def _of_cuts(program: Program, dumped: Arrays) -> dict[str, NDArray[Any]]:
    """Return what the quantizer behind each cut returns: it quantizes that to the same integers."""
    return {
        cut.name: dumped[f"{cut.name}/output"]
        for cut in program.cuts
        if f"{cut.name}/output" in dumped
    }


def _count(
    program: Program,
    inputs: Arrays,
    profile: Profile,
    integers: Arrays,
    *,
    inputs_by_one: bool = False,
) -> Count:
    """Compare a profile with integers, teacher-forced."""
    found = Count()
    if not integers:
        return found
    for layer in compare(program, inputs, profile, integers).layers:
        found.integers += layer.elements
        if not layer.teacher_forced:
            continue
        by_one = _of_floats(program, layer.name) or (
            inputs_by_one and isinstance(program.step(layer.name), QuantizeStep)
        )
        found.differing += layer.teacher_forced
        if layer.near:
            found.explained += layer.teacher_forced
        elif by_one and layer.largest <= 1 and layer.teacher_forced <= _most(layer):
            found.beside_floats += layer.teacher_forced
        found.listed.append(_listed(layer))
    return found


def _most(layer: LayerDifference) -> int:
    """Return how many integers float32 noise may move by one: ties are rare."""
    return 3 + layer.elements // 500


def _of_floats(program: Program, name: str) -> bool:
    """Tell whether a quantized tensor is made of what is not an integer."""
    step = program.step(name)
    return isinstance(step, QuantizeStep) and step.source in _float_steps(program)


def _float_steps(program: Program) -> set[str]:
    return {step.name for step in program.steps if isinstance(step, FloatStep)}


def _listed(layer: LayerDifference) -> str:
    line = f"{layer.name}: {layer.teacher_forced} of {layer.elements:,} by up to {layer.largest}"
    if layer.farthest_tie is not None and layer.noise is not None:
        line += f", tie within {layer.farthest_tie:.1e}, noise {layer.noise:.1e}"
    return line + ("" if layer.near else ", beyond noise")


def _check_weights(first: qmath.QatModel, second: qmath.QatModel) -> None:
    """Raise unless the integers of two readings stand for the same weights."""
    for name, tensor in first.tensors.items():
        other = second.tensors.get(name)
        if other is not None and tensor.role == other.role == "weight":
            one, same = tensor.quantize().dequantize(), other.quantize().dequantize()
            if not np.array_equal(one, same):
                raise WrongError(f"{name} is not the live model's")


def _check_equal(first: qmath.QatModel, second: qmath.QatModel, inputs: Arrays) -> None:
    """Raise unless two readings of a model give the same integers."""
    one, other = (_integers(program_of(model), inputs) for model in (first, second))
    shared = [name for name in one if name in other]
    if len(shared) < len(one) // 2:
        raise WrongError(f"steps {sorted(one)}, from the live model {sorted(other)}")
    for name in shared:
        if not np.array_equal(one[name], other[name]):
            raise WrongError(f"{name} is not the live model's")


def _integers(program: Program, inputs: Arrays) -> Arrays:
    """Return a program's integers; of a SavedModel's ops are made other cuts, or none."""
    return Executor(program).run({k: x for k, x in inputs.items() if k in program.feeds})


def _export(verdict: Verdict, source: qmath.QatModel, folder: Path) -> None:
    for format in FORMATS:
        path = folder / f"exported.{format}"
        with verdict.trying(f"export {format}"):
            qmath.export(source, path, format=format)
            found = qmath.verify(source, path, format=format)
            if not found.ok:
                raise WrongError(f"verify: {'; '.join(found.differences)}")
    if "export c" in verdict.did:
        with verdict.trying("self-check in C"):
            status, output = run_program(compiled(folder / "exported.c"))
            if status or not output:
                raise WrongError(f"status {status}: {output}")


def _in_onnx_runtime(source: qmath.QatModel, inputs: Arrays) -> Count:
    bundle = quantize_model(source)
    file = io.BytesIO()
    Onnx().write(bundle, file)
    program = bundle.program
    assert program is not None
    results = _integers(program, inputs)
    # Such layers the graph leaves to whoever runs it.
    floats = {name: results[name] for name in _float_steps(program) & results.keys()}
    found, _ = session_outputs(file.getvalue(), {**floats, **inputs}, False, {})
    return _count(program, inputs, Exact(), found, inputs_by_one=True)
