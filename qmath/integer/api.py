"""The two calls behind ``qmath run`` and ``qmath diff``, and the profiles by name."""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import ArrayLike, NDArray

from qmath._progress import Progress
from qmath._text import html_table
from qmath.containers.stored_arrays import Rows
from qmath.errors import QmathError
from qmath.integer.arguments import (
    check_against,
    check_callbacks,
    check_reducers,
    check_workers,
    kept_names,
    labels_of,
)
from qmath.integer.claiming import claimed
from qmath.integer.comparison import Comparison, compare_stream
from qmath.integer.cuts import Layers, bind, checked_cuts, checked_layers, missing
from qmath.integer.executor import Executor
from qmath.integer.judging.axes import Axes
from qmath.integer.judging.deployed import as_held, as_packed, changes, is_tflite, run_deployed
from qmath.integer.judging.element import Element, explained
from qmath.integer.judging.files import arrays_of, shapes_of
from qmath.integer.judging.integers import RawArray, Yours, integers_of
from qmath.integer.lowering.lower import lower
from qmath.integer.profiles.exact import Exact, Profile
from qmath.integer.profiles.fixed import Integer
from qmath.integer.profiles.litert import Litert
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.profiles.tflm import Tflm
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import Program
from qmath.integer.reducers import Accuracy, Activation, Activations, Kept, Reducer, outputs_of
from qmath.integer.resuming import Resumption, Sink
from qmath.integer.running import Running, Totals
from qmath.integer.shards import reduced
from qmath.integer.streams import Data, Stream, chosen_inputs, opened
from qmath.kernels._arrays import as_array
from qmath.model import QatModel
from qmath.readers.source import as_model

__all__ = [
    "PROFILES",
    "Engine",
    "Run",
    "diff",
    "element",
    "profile_named",
    "program_against",
    "program_of",
    "run",
]

Array = NDArray[Any]
Source = str | os.PathLike[str] | QatModel | Program
Against = str | os.PathLike[str] | Mapping[str, ArrayLike]
Engine = Callable[[Program, Profile], Executor]

PROFILES: dict[str, type[Any]] = {
    "exact": Exact,
    "integer": Integer,
    "tflite": Tflite,
    "xnnpack": Xnnpack,
    "litert": Litert,
    "tflm": Tflm,
}


@dataclass(frozen=True, eq=False)
class Run:
    """What a model computed.

    Attributes
    ----------
    outputs : dict of str to ndarray
        Real values, float32, of each output, by the name of its tensor.
    integers : dict of str to ndarray
        Unsigned integers, as TensorFlow counts, of each quantized tensor.
    program : Program
        What was run; `program.float_layers` are the layers that ran in float32.
    missing : dict of str to tuple of str
        By cut point that neither a function nor data stood for, the tensors that need it, which are
        in neither `outputs` nor `integers`.
    engine : str
        What ran it, ``"numpy"`` or ``"c"``.
    examples : int
        How many there were.
    activations : dict of str to Activation
        How the integers of each quantized tensor are used, if that was asked for.
    accuracy : float or None
        The share of labels that are at the output's largest value, where there are labels.
    """

    outputs: dict[str, Array]
    integers: dict[str, Array]
    program: Program
    missing: dict[str, tuple[str, ...]]
    engine: str = "numpy"
    examples: int = 0
    activations: dict[str, Activation] = field(default_factory=dict)
    accuracy: float | None = None

    def __repr__(self) -> str:
        words = [f"engine {self.engine}", f"outputs {', '.join(self.outputs) or 'none'}"]
        words += [f"integers of {len(self.integers)} tensors"]
        words += [f"accuracy {self.accuracy:.4f}"] if self.accuracy is not None else []
        words += [f"nothing behind {', '.join(self.missing)}"] * bool(self.missing)
        return f"<Run of {self.examples} examples: {'; '.join(words)}>"

    def _repr_html_(self) -> str:
        """Show in a notebook how activations use their integers, else what was computed."""
        rows: list[dict[str, object]] = [
            {
                "tensor": name,
                "integers used": f"{use.used}/{len(use.counts)}",
                "clipped": use.clipped,
                "SQNR dB": None if use.sqnr is None else f"{use.sqnr:.1f}",
            }
            for name, use in self.activations.items()
        ] or [
            {"tensor": name, "shape": array.shape, "dtype": array.dtype}
            for name, array in {**self.outputs, **self.integers}.items()
        ]
        return html_table(repr(self)[1:-1], rows)


def program_of(
    model: Source,
    *,
    require_integer: bool = False,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    layers: Layers | None = None,
) -> Program:
    """Return the integer program of a model or file.

    Parameters
    ----------
    model : path, QatModel or Program
        As for `qmath.export`; a program is returned as it is.
    require_integer : bool
        Raise if a layer has to run in float32, naming each and what would have to be quantized.
    input_shapes : mapping of str to tuple, optional
        Shapes without the batch of the inputs, and of the outputs of layers that qmath cannot
        compute, where the model leaves them open. `run` and `diff` take them from the data.
    layers : mapping of str to callable, optional
        Functions of layers that qmath cannot compute, by the layer's name or class, see
        `qmath.integer.cuts.bind`.

    Returns
    -------
    Program

    Raises
    ------
    QmathError
        See `qmath.load` and `qmath.integer.lowering.lower.lower`.
    """
    layers = checked_layers(layers)
    if isinstance(model, Program):
        program = model
    else:
        program = lower(as_model(model), input_shapes, layers=layers)
    program = bind(program, layers) if layers else program
    if require_integer and program.float_layers:
        float_layers = "; ".join(
            f"{name}: {remedy}" for name, remedy in program.float_layers.items()
        )
        raise QmathError(f"these layers run in float32: {float_layers}")
    return program


def run(
    model: Source,
    inputs: Data,
    *,
    engine: Engine = Executor,
    profile: str = "integer",
    require_integer: bool = False,
    layers: Layers | None = None,
    cuts: Mapping[str, ArrayLike] | None = None,
    keep: Collection[str] | None = None,
    labels: ArrayLike | Rows | None = None,
    activations: bool = False,
    reducers: Sequence[Reducer] = (),
    workers: int = 1,
    executor: concurrent.futures.Executor | None = None,
    progress: Progress | None = None,
    resume: str | os.PathLike[str] | None = None,
    sink: Sink | None = None,
    **options: Any,
) -> Run:
    """Run a model in integers: `qmath.run`, whose parameters these are, on any engine.

    Parameters
    ----------
    engine : callable, optional
        What makes the program ready to run; `qmath.run` takes it by its name.
    """
    check_workers(workers)
    check_callbacks(progress, executor, sink)
    check_reducers(reducers)
    kept_file = None if resume is None else Resumption(resume, sink)
    beside = labels_of(labels)
    data = opened(inputs)
    program = program_of(
        model,
        require_integer=require_integer,
        input_shapes=_shapes(data) | _shapes(checked_cuts(cuts)),
        layers=layers,
    )
    judged = as_held(profile_named(profile, **options), program, model)
    made = engine(program, judged)
    stream = Stream(made, _chosen(program, inputs, data), cuts, beside)
    stream.check()
    if made.engine != Executor.engine and (workers > 1 or executor is not None):
        raise QmathError(
            f"the engine {made.engine!r} computes in this process: leave out workers and executor"
        )
    own: list[Reducer] = [Kept(kept_names(program, keep))]
    own += [Activations(program.quantized)] if activations else []
    own += [Accuracy.of(program)] if labels is not None else []
    after = None if sink is None else _into(sink, program)
    with claimed(kept_file.path if kept_file else None):
        total = reduced(
            Running(made, [*own, *reducers]), stream, workers=workers, executor=executor,
            progress=progress, resume=kept_file, after=after,
        )  # fmt: skip
        if kept_file is not None and sink is None:
            kept_file.remove()
    for given, found in zip(reducers, total.reducers[len(own) :], strict=True):
        given.merge(found)
    results = {type(reducer): reducer.result() for reducer in total.reducers[: len(own)]}
    tensors = results[Kept]
    quantized = program.quant_params
    return Run(
        outputs_of(program, tensors),
        {name: x for name, x in tensors.items() if name in quantized},
        program,
        missing(program, stream.names),
        made.engine,
        total.examples,
        results.get(Activations, {}),
        results.get(Accuracy),
    )


def _into(sink: Sink, program: Program) -> Callable[[Totals], None]:
    """Return what moves the results that a run has kept to a sink."""

    def move(total: Totals) -> None:
        tensors = total.reducers[0].taken()
        outputs = outputs_of(program, tensors)
        sink.write(
            {f"output/{name}": x for name, x in outputs.items()}
            | {name: x for name, x in tensors.items() if name in program.quant_params}
        )

    return move


def diff(
    model: Source,
    inputs: Data,
    *,
    profile: str = "integer",
    against: Against = "exact",
    axes: Axes | None = None,
    layers: Layers | None = None,
    cuts: Mapping[str, ArrayLike] | None = None,
    workers: int = 1,
    executor: concurrent.futures.Executor | None = None,
    progress: Progress | None = None,
    resume: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Comparison:
    """Compare a profile with another, with your own integers, or with what training computed.

    Parameters
    ----------
    model, inputs, profile, layers, cuts, workers, executor, progress, resume, **options
        As for `run`. What needs a layer that qmath cannot compute starts from the reference's
        integers where it has them, and is left out elsewhere.
    against : str, path, or mapping of str to array-like
        A second profile; a TFLite file, whose own integers are those that `profile` makes of it,
        or ``tflite`` if that is no runtime's; or arrays by the names of quantized tensors, or a
        file or folder of them: integers, signed or unsigned, or dequantized float32, such as what
        ``python -m reference.dump`` writes from the live Keras model. Some tensors are enough.
    axes : str or mapping of str to str, optional
        The order of the axes in `against`, such as ``"NCHW"``; of some tensors, by their names.

    Returns
    -------
    Comparison
        For each layer how many integers differ, teacher-forced and free-running, and which
        mistake explains it.

    Raises
    ------
    QmathError
        As `run`; what is compared with is of another model or of other data.

    Examples
    --------
    >>> import numpy as np
    >>> import qmath
    >>> images = np.load("reference/samples/digits_test.npz")["images"]
    >>> comparison = qmath.diff("reference/samples/default8.h5", images, against="exact")
    >>> sum(layer.teacher_forced for layer in comparison.layers)
    0
    """
    check_workers(workers)
    check_callbacks(progress, executor)
    check_against(against)
    kept_file = None if resume is None else Resumption(resume)
    data = opened(inputs)
    shapes = _shapes(data) | _shapes(checked_cuts(cuts))
    program = program_against(model, None if axes else against, shapes, layers)
    judged = as_held(profile_named(profile, **options), program, model)
    judged = _judged(judged, program, against)
    stream = Stream(Executor(program, judged), _chosen(program, inputs, data), cuts)
    stream.check()
    reference = _reference(stream, against, axes)
    with claimed(kept_file.path if kept_file else None):
        comparison = compare_stream(
            stream, reference, progress, workers=workers, executor=executor, resume=kept_file
        )
        if kept_file is not None:
            kept_file.remove()
    if not isinstance(against, Mapping) and is_tflite(against):
        comparison = replace(comparison, kernels=changes(program, as_model(against)))
    return comparison


def element(
    model: Source,
    inputs: Data,
    at: str,
    *,
    profile: str = "integer",
    against: Against | None = None,
    axes: Axes | None = None,
    layers: Layers | None = None,
    cuts: Mapping[str, ArrayLike] | None = None,
    **options: Any,
) -> Element:
    """Explain one integer: what it is computed from, and what each profile makes of it.

    Parameters
    ----------
    model, inputs, profile, axes, layers, cuts, **options
        As for `diff`; `profile` computes the layers before.
    at : str
        ``TENSOR[i, j, …]``, the example first; without it, that of the first example.
    against : optional
        As for `diff`; yours are the layers before, where you gave them.

    Returns
    -------
    Element

    Raises
    ------
    QmathError
        As `diff`; there is no such tensor or element.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.load("reference/samples/digits_test.npz")["images"]
    >>> found = element("reference/samples/default8.h5", images, "conv1[3,3,5]")
    >>> found.tensor, found.index, found.integers["exact"], f"{float(found.step):.4f}"
    ('conv1/post_activation', (0, 3, 3, 5), 86, '-33.7898')
    """
    if against is not None:
        check_against(against)
    data = opened(inputs)
    shapes = _shapes(data) | _shapes(checked_cuts(cuts))
    program = program_against(model, None if axes else against, shapes, layers)
    judged = _judged(profile_named(profile, **options), program, against)
    executor = Executor(program, judged)
    stream = Stream(executor, _chosen(program, inputs, data), cuts)
    arrays = executor.checked(stream.whole())
    reference = None if against is None else _reference(stream, against, axes)
    profiles = {name: profile_named(name) for name in PROFILES} | {profile: judged}
    return explained(executor, arrays, at, profiles, reference)


def program_against(
    model: Source,
    against: Against | None,
    input_shapes: Mapping[str, tuple[int, ...]],
    layers: Layers | None = None,
) -> Program:
    """Return a program, to be compared with data that may tell the shapes of cut points.

    Parameters
    ----------
    model, input_shapes, layers
        As for `program_of`.
    against : path, mapping or None
        As for `diff`; a file is read for its shapes only if one is lacking.

    Raises
    ------
    QmathError
        As for `program_of`; there is no such file.
    """
    if isinstance(against, Mapping):
        input_shapes = {**_shapes(against), **input_shapes}
    program = program_of(model, input_shapes=input_shapes, layers=layers)
    is_known = all(cut.is_shaped for cut in program.cuts)
    if is_known or against is None or isinstance(against, Mapping) or against in PROFILES:
        return program
    return program_of(model, input_shapes={**shapes_of(against), **input_shapes}, layers=layers)


def _judged(profile: Profile, program: Program, against: Against | None) -> Profile:
    """Return the profile of a run that is compared: with weights as packed as in a TFLite file."""
    if against is None or isinstance(against, Mapping) or not is_tflite(against):
        return profile
    return as_packed(profile, program, as_model(against))


def _reference(stream: Stream, against: Against, axes: Axes | None) -> Profile | Yours:
    """Return what a run is compared with: a profile by its name, else integers."""
    if isinstance(against, str) and against in PROFILES:
        if axes is not None:
            raise QmathError(f"the profile {against!r} has no axes of its own: leave them out")
        return profile_named(against)
    executor, examples = stream.executor, stream.length
    program = executor.given
    if examples is None:
        raise QmathError(
            "integers are compared with data of known length: give arrays or files, not an "
            "iterable of batches"
        )
    if not isinstance(against, Mapping) and is_tflite(against):
        if axes is not None:
            raise QmathError("a TFLite file has axes of its own: leave them out")
        own = executor.profile if isinstance(executor.profile, Tflite) else Tflite()
        model = as_model(against)
        made = run_deployed(program, model, program_of(model), stream.whole(), own)
        return integers_of(program, made, examples, dict)
    if isinstance(against, Mapping):
        arrays: Mapping[str, Array | RawArray] = {
            name: as_array(x, f"{name}: yours") for name, x in against.items()
        }
    else:
        arrays = arrays_of(against, program, examples)
    first = functools.cache(lambda: executor.run(stream.first().inputs))
    return integers_of(program, arrays, examples, first, axes)


def profile_named(name: str, **options: Any) -> Profile:
    """Return a profile by its name, with its options.

    Raises
    ------
    QmathError
        There is no such profile, or it has no such option.

    Examples
    --------
    >>> profile_named("integer", multiplier_bits=16)
    Integer(multiplier_bits=16)
    """
    if not isinstance(name, str) or name not in PROFILES:
        raise QmathError(f"there is no profile {name!r}; use one of: {', '.join(PROFILES)}")
    for option in options:
        if option not in inspect.signature(PROFILES[name]).parameters:
            raise QmathError(f"the profile {name!r} has no option {option!r}")
    profile: Profile = PROFILES[name](**options)
    return profile


def _chosen(program: Program, inputs: Data, data: Any) -> Any:
    """Return the data, of a file those that are the inputs'."""
    if isinstance(inputs, (str, os.PathLike)):
        return chosen_inputs(os.fspath(inputs), data, program)
    return data


def _shapes(inputs: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of named data without the batch."""
    if not isinstance(inputs, Mapping):
        return {}
    held = {name: x if hasattr(x, "shape") else as_array(x, name) for name, x in inputs.items()}
    return {name: tuple(x.shape[1:]) for name, x in held.items()}
