"""`qmath.run`, and the engines that it runs a program with."""

from __future__ import annotations

import concurrent.futures
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from qmath._progress import Progress
from qmath.containers.stored_arrays import Rows
from qmath.errors import QmathError, QmathWarning
from qmath.integer import api
from qmath.integer.cuts import Layers
from qmath.integer.executor import Executor
from qmath.integer.profiles.exact import Profile
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import Program
from qmath.integer.reducers import Reducer
from qmath.integer.resuming import Sink
from qmath.integer.streams import Data
from qmath.model import QatModel
from qmath.readers.source import as_model

__all__ = ["ENGINES", "engine_named", "run"]

ENGINES = ("numpy", "c")


def run(
    model: api.Source,
    inputs: Data,
    *,
    engine: str = "numpy",
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
) -> api.Run:
    """Run a model in integers.

    Parameters
    ----------
    model : path, QatModel or Program
        A file that is read without options, what `qmath.load` or `qmath.from_keras` returned, or
        what `qmath.integer.api.program_of` returned.
    inputs : array-like, mapping of str to array-like, path, or iterable of batches
        Float data, ``(N, …)``, for the one input, or for each by its name; or an ``.npy`` or
        ``.npz`` of them, or a pattern of such files, ``"shards/*.npz"``. Files, and what has a
        shape, a dtype and slices, such as a memory map or a Zarr array, are read part by part. An
        iterable gives batches, each an array or a mapping, and is read once.
    engine : str
        ``"numpy"``; or ``"c"``: what the export ``c`` writes, compiled by the system's compiler
        (``CC``, or ``cc``) and loaded. Its integers are those of NumPy, which computes float
        layers, and with a warning all of a model that has cut points or that C does not cover. A
        program alone is refused: it has no weights to export.
    profile : str
        ``"exact"``, ``"integer"``, ``"tflite"``, ``"xnnpack"``, ``"litert"`` or ``"tflm"``; of the
        engine ``"c"`` ``"integer"`` alone.
    require_integer : bool
        Raise if a layer has to run in float32, naming each and what would have to be quantized.
    layers : mapping of str to callable, optional
        Functions of layers that qmath cannot compute, by the layer's name or class: each takes the
        layer's inputs as float32 arrays of some of the examples, and returns its output.
    cuts : mapping of str to array-like, optional
        Recorded outputs of such layers, by name. What needs a layer that has neither is left out.
    keep : collection of str, optional
        The steps whose results to return; default: all, whose memory grows with the data.
    labels : array-like, optional
        Of each example the class number, or a one-hot row, for the accuracy.
    activations : bool
        Count how often each integer of each quantized tensor occurs, and what was clipped.
    reducers : sequence of Reducer
        To which the results are added, see `qmath.integer.reducers`.
    workers : int
        How many processes compute at once, with NumPy alone. The results are those of one, bit for
        bit.
    executor : concurrent.futures.Executor, optional
        What computes in place of processes of this call's own, such as Dask's
        ``Client.get_executor()``; `workers` is then how many tasks it can do at once.
    progress : callable, optional
        Called with how many examples are done, and of how many; 0 where an iterable does not say.
    resume : path, optional
        A file of what is done, kept while the work lasts: a call with the same arguments goes on
        from there after an interruption, and its result is that of one call, bit for bit. It is
        refused for another model, other options, or other data than those that are done. The
        results that are to be returned are in it, so leave out what is not needed (`keep`);
        reducers of your own need ``state`` and ``restore``.
    sink : Sink, optional
        What gets the results as they are made, in place of the `Run`, such as
        `qmath.exports.arrays.growing.GrowingNpz`: ``output/NAME`` of each output, and NAME of each
        quantized tensor. The file `resume` is its user's to remove then.
    **options
        Of the profile: ``multiplier_bits`` of ``"integer"``, ``rounding`` of ``"tflite"`` and
        ``"tflm"``, ``int4`` and ``packed`` of ``"xnnpack"``, see `Xnnpack`.

    Returns
    -------
    Run

    Raises
    ------
    QmathError
        The data do not fit the model; the model cannot be run; the engine has no compiler, or
        fails.

    Examples
    --------
    >>> import numpy as np
    >>> import qmath
    >>> digits = np.load("reference/samples/digits_test.npz")
    >>> result = qmath.run("reference/samples/default8.h5", digits["images"], profile="integer")
    >>> predictions = result.outputs["dense/post_activation"].argmax(axis=1)
    >>> print(f"{(predictions == digits['labels']).mean():.3f}")
    0.981
    """
    if engine == "c" and not isinstance(model, Program):
        model = as_model(model)
    return api.run(
        model, inputs, engine=engine_named(engine, model), profile=profile,
        require_integer=require_integer, layers=layers, cuts=cuts, keep=keep, labels=labels,
        activations=activations, reducers=reducers, workers=workers, executor=executor,
        progress=progress, resume=resume, sink=sink, **options,
    )  # fmt: skip


def engine_named(name: str, model: object) -> api.Engine:
    """Return what makes a program ready to run, by the engine's name.

    Parameters
    ----------
    name : str
        One of `ENGINES`.
    model : QatModel
        What the program is of; NumPy does without.

    Raises
    ------
    QmathError
        There is no such engine, or it cannot run this.
    """
    if name not in ENGINES:
        raise QmathError(f"there is no engine {name!r}; use one of: {', '.join(ENGINES)}")
    if name == "numpy":
        return Executor
    if not isinstance(model, QatModel):
        raise QmathError("the engine 'c' exports the weights: give it the model, not its program")
    return lambda program, profile: _compiled(model, program, profile)


def _compiled(model: QatModel, program: Program, profile: Profile) -> Executor:
    """Return an executor in C, or with a warning one in NumPy."""
    if not isinstance(profile, Integer):
        raise QmathError(f"the engine 'c' has the profile 'integer' alone, not {profile.name!r}")
    from qmath.engine.compiler import compiled
    from qmath.engine.library import Compiled
    from qmath.engine.source import exported, source_of

    try:
        source = source_of(exported(model, program, profile.multiplier_bits))
    except QmathError as error:
        warnings.warn(f"engine c: NumPy runs the model: {error}", QmathWarning, stacklevel=4)
        return Executor(program, profile)
    return Compiled(program, profile, source, compiled(source.files, source.main))
