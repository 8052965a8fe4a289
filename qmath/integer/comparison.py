"""Compare two runs of a model, layer by layer: teacher-forced, and free-running."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._progress import Progress
from qmath.errors import QmathError
from qmath.integer.differences import (
    LISTED,
    Comparison,
    Difference,
    LayerDifference,
    counted,
    largest_of,
)
from qmath.integer.executor import Executor, counted_from
from qmath.integer.judging.explanations import Trial, agreeing_profile
from qmath.integer.judging.integers import Yours, integers_of_reals
from qmath.integer.judging.mistakes.case import Case
from qmath.integer.judging.noise import noise_of
from qmath.integer.profiles.exact import Profile
from qmath.integer.program import FloatStep, Program, QuantizedStep, QuantParams
from qmath.integer.resuming import Resumption
from qmath.integer.running import Executing
from qmath.integer.shards import reduced
from qmath.integer.streams import Part, Stream
from qmath.kernels.affine import smallest_dtype

__all__ = ["Comparison", "Difference", "LayerDifference", "compare", "integers_of_dump"]

Array = NDArray[Any]


def compare(
    program: Program,
    inputs: Mapping[str, ArrayLike],
    profile: Profile,
    reference: Profile | Mapping[str, Array] | Yours,
    progress: Progress | None = None,
) -> Comparison:
    """Compare a profile with another, or with integers that were computed elsewhere.

    Parameters
    ----------
    program : Program
    inputs : mapping of str to array-like
        Data of each input.
    profile : Profile
        Whose integers are judged.
    reference : Profile, mapping of str to ndarray, or Yours
        A second profile, or the unsigned integers of quantized tensors; where a tensor has none,
        the layers after it start from the profile's. Which mistakes explain `Yours` is tried.
    progress : callable, optional
        Called with how many examples are done, and of how many.

    Returns
    -------
    Comparison
        Of what can be computed. Behind a cut point without data, each run goes on from the
        reference's integers.
    """
    stream = Stream(Executor(program, profile), inputs)
    stream.check()
    return compare_stream(stream, reference, progress)


def compare_stream(
    stream: Stream,
    reference: Profile | Mapping[str, Array] | Yours,
    progress: Progress | None = None,
    *,
    workers: int = 1,
    executor: concurrent.futures.Executor | None = None,
    resume: Resumption | None = None,
) -> Comparison:
    """Compare what a stream's executor makes of its data, which have been checked.

    Parameters
    ----------
    stream : Stream
    reference, progress
        As for `compare`.
    workers, executor, resume
        As for `qmath.integer.shards.reduced`. Mistakes are tried anew.
    """
    yours = reference if isinstance(reference, Yours) else None
    reference = reference.integers if isinstance(reference, Yours) else reference
    if stream.length == 0:
        raise _without_examples()
    judged, made = stream.executor, stream.executor.given.quant_params
    steps = [step for step in judged.program.quantized if step.name in made]
    if isinstance(reference, Mapping):
        steps = _in_reference(steps, reference, stream.length)
        stream = stream.with_beside({step.name: reference[step.name] for step in steps})
    names = [step.name for step in steps]
    other = None if isinstance(reference, Mapping) else reference
    trials = {name: Trial(beyond_noise=name in yours.reals) for name in names} if yours else {}
    if workers > 1 or executor is not None or resume is not None:
        job = _Comparing(judged, other, names)
        layers = reduced(
            job, stream, workers=workers, executor=executor, progress=progress, resume=resume
        ).layers
        if yours is not None and any(layer.teacher_forced for layer in layers):
            # Mistakes are tried in the order of the examples.
            reduced(_Comparing(judged, other, names, trials), stream, progress=progress)
    else:
        job = _Comparing(judged, other, names, trials)
        layers = reduced(job, stream, progress=progress).layers
    if layers and not any(layer.elements for layer in layers):
        raise _without_examples()
    if not layers:
        raise QmathError(
            f"nothing can be compared: {', '.join(sorted(names))} need a layer that qmath cannot "
            "compute; give its outputs (--cut NAME=FILE)"
        )
    if yours is None:
        return Comparison(tuple(layers))
    return _with_explanations(layers, trials, stream, yours)


def _without_examples() -> QmathError:
    return QmathError("the data hold no examples: nothing can be compared")


class _Layers:
    """The differences of each layer compared, none yet if nothing was."""

    def __init__(self) -> None:
        self.layers: list[LayerDifference] = []

    def merge(self, other: _Layers) -> None:
        """Add those of examples that follow."""
        if self.layers and other.layers:
            pairs = zip(self.layers, other.layers, strict=True)
            self.layers = [own.joined(further) for own, further in pairs]
        else:
            self.layers = self.layers or other.layers

    def state(self) -> list[dict[str, Any]]:
        """See `qmath.integer.resuming.Keepable`."""
        return [asdict(layer) for layer in self.layers]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """See `qmath.integer.resuming.Keepable`."""
        self.layers = [_restored(**layer) for layer in state]


def _restored(
    *, differences: list[dict[str, Any]], histogram: list[list[int]], **fields: Any
) -> LayerDifference:
    listed = (Difference(**{**d, "index": tuple(d["index"])}) for d in differences)
    pairs = ((step, number) for step, number in histogram)
    return LayerDifference(differences=tuple(listed), histogram=tuple(pairs), **fields)


class _Comparing(Executing[_Layers]):
    """A comparison of the steps `names` with another profile, or with what is beside the data."""

    def __init__(
        self,
        executor: Executor,
        other: Profile | None,
        names: Sequence[str],
        trials: Mapping[str, Trial] | None = None,
    ) -> None:
        super().__init__(executor)
        self._profile_against, self._names, self._trials = other, names, trials or {}

    @cached_property
    def _other(self) -> Executor | None:
        profile = self._profile_against
        return None if profile is None else Executor(self._program, profile)

    @cached_property
    def _steps(self) -> list[QuantizedStep]:
        planned = self.executor.program
        return [step for step in planned.quantized if step.name in self._names]

    def empty(self) -> _Layers:
        """See `Job`."""
        return _Layers()

    def add(self, total: _Layers, part: Part) -> None:
        """See `Job`."""
        judged, other = self.executor, self._other
        batch = judged.converted(part.inputs)
        found = _Layers()
        with counted_from(part.start):
            expected = part.beside if other is None else other.run(batch, keep=self._names)
            found.layers = _compare_batch(
                judged, batch, expected, self._steps, part.start, self._trials
            )
        total.merge(found)


def _with_explanations(
    layers: Sequence[LayerDifference],
    trials: Mapping[str, Trial],
    stream: Stream,
    yours: Yours,
) -> Comparison:
    """Return a comparison with integers that were given, and which mistakes explain them."""
    executor = stream.executor
    explained = [_explained(layer, trials[layer.name]) for layer in layers]
    differing = [layer for layer in explained if not layer.explained]
    is_partial = len(yours.integers) < len(executor.quant_params)
    agreeing = None
    if differing and (is_partial or any(map(_is_of_a_profile, differing))):
        agreeing = agreeing_profile(executor, stream)
    if agreeing is not None:
        name = f"profile {agreeing}"
        explained = [_explained(layer, trials[layer.name], name) for layer in layers]
    return Comparison(tuple(explained), yours.notes, agreeing)


def _is_of_a_profile(layer: LayerDifference) -> bool:
    found = layer.explanation
    return found is not None and found.name.startswith("profile")


def _explained(layer: LayerDifference, trial: Trial, preferred: str = "") -> LayerDifference:
    """Return the layer with what explains it better than noise."""
    found = trial.explanation(preferred)
    if layer.near and (trial.beyond_noise or found is None or not found.complete):
        found = None
    return replace(layer, explanation=found)


def _in_reference(
    steps: list[QuantizedStep], reference: Mapping[str, Array], examples: int | None
) -> list[QuantizedStep]:
    """Return the steps that the reference holds, in the shapes that the data give."""
    held = [step for step in steps if step.name in reference]
    if not held:
        raise QmathError(
            "the reference holds none of the model's quantized tensors: "
            f"{', '.join(step.name for step in steps[:5])}, …"
        )
    for step in held:
        found, expected = reference[step.name].shape, (examples, *step.shape)
        if found != expected:
            raise QmathError(
                f"{step.name}: the reference has shape {found}, the data give {expected}"
            )
    return held


def _compare_batch(
    executor: Executor,
    batch: Mapping[str, Array],
    expected: Mapping[str, Array],
    steps: list[QuantizedStep],
    start: int,
    trials: Mapping[str, Trial],
) -> list[LayerDifference]:
    """Compare the integers of one batch, whose first example has the number `start`."""
    forcing = {
        step.name: _clamped(expected[step.name], step.params)
        for step in steps
        if step.name in expected
    }
    forced = executor.run(batch, forced=forcing)
    steps = [step for step in steps if step.name in forcing and step.name in forced]
    wrong = {step.name: forced[step.name] != expected[step.name] for step in steps}
    # What forces nothing else than what is computed anyway changes nothing.
    free = forced
    if any(w.any() for w in wrong.values()):
        free = executor.run(batch, restart=forcing)
        steps = [step for step in steps if step.name in free]
    values = {**batch, **forced, **forcing}
    layers = []
    for step in steps:
        want, differs = expected[step.name], wrong[step.name]
        layer = LayerDifference(
            name=step.name,
            elements=want.size,
            teacher_forced=int(np.count_nonzero(differs)),
            free_running=int(np.count_nonzero(free[step.name] != want)),
            largest=0,
            near_ties=0,
            farthest_tie=None,
            noise=None,
        )
        trial = trials.get(step.name)
        if layer.teacher_forced or (trial is not None and trial.differences):
            zero_point = step.params.zero_point
            own, yours = (x.astype(np.int32) - zero_point for x in (forced[step.name], want))
            case = Case(executor, step, own, yours, values)
            layer = _measured(layer, case, start) if layer.teacher_forced else layer
            if trial is not None and trial.applies(layer.near):
                trial.add(case)
        layers.append(layer)
    return layers


def _measured(layer: LayerDifference, case: Case, start: int) -> LayerDifference:
    """Return the layer with what its differences are, and how far they are from their ties."""
    step, wrong = case.step, case.own != case.yours
    own, yours = case.own[wrong], case.yours[wrong]
    difference = np.abs(own - yours)
    steps = np.unique(own - yours, return_counts=True)
    ties: list[float | None] = [None] * layer.teacher_forced
    noises = ties
    near = 0
    noise = noise_of(step, case.rows, case.values, case.source_scale)
    if noise is not None:
        assert case.y is not None
        y, bound = case.y[wrong], noise[wrong]
        distance = np.abs(y - np.floor(y) - 0.5)
        near = int(((difference == 1) & (distance <= bound)).sum())
        ties, noises = distance.tolist(), bound.tolist()
    first = np.array([start, *(0,) * (wrong.ndim - 1)])
    zero_point = step.params.zero_point
    elements = zip(
        (np.argwhere(wrong)[:LISTED] + first).tolist(),
        (own + zero_point).tolist(), (yours + zero_point).tolist(), ties, noises, strict=False,
    )  # fmt: skip
    return replace(
        layer,
        largest=int(difference.max()),
        near_ties=near,
        farthest_tie=largest_of(ties),
        noise=largest_of(noises),
        differences=tuple(Difference(tuple(index), *rest) for index, *rest in elements),
        histogram=counted(zip(*(x.tolist() for x in steps), strict=True)),
    )


def _clamped(integers: Array, params: QuantParams) -> Array:
    """Return integers that later layers may start from: those without a clamp leave the range."""
    is_whole = params.low == 0 and params.high == (1 << params.num_bits) - 1
    if is_whole and integers.dtype == smallest_dtype(params.num_bits, signed=False):
        return integers
    return np.clip(integers, params.low, params.high)


def integers_of_dump(program: Program, dump: Mapping[str, Array]) -> dict[str, Array]:
    """Return the integers of fake-quantized float tensors, exactly.

    Parameters
    ----------
    program : Program
    dump : mapping of str to ndarray
        Fake-quantized float32 tensors by the names of the program's steps.

    Raises
    ------
    QmathError
        A value is no integer times its scale: the dump is of another model.
    """
    integers: dict[str, Array] = {}
    for step in program.steps:
        if isinstance(step, FloatStep) or step.name not in dump:
            continue
        integers[step.name] = integers_of_reals(np.asarray(dump[step.name]), step.params, step.name)
    return integers
