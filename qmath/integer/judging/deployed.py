"""A deployed TFLite file beside its model: what the converter made of each kernel, and its run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath.containers.tflite.schema import IDENTIFIER
from qmath.errors import QmathError
from qmath.integer.executor import Executor, batches, counted_from
from qmath.integer.profiles.exact import Profile
from qmath.integer.profiles.tflite import Kernel, kernels
from qmath.integer.profiles.xnnpack import Xnnpack
from qmath.integer.program import Linear, Program, QuantizedStep, Requantize, unrounded_sums
from qmath.model import QatModel, QatTensor
from qmath.readers.source import as_model

__all__ = ["KernelChange", "as_held", "as_packed", "changes", "is_tflite", "paired", "run_deployed"]

Array = NDArray[Any]
_SAME = 2e-6  # of two scales that differ by roundings of float32 alone


@dataclass(frozen=True)
class KernelChange:
    """What a converter made of one weight.

    Attributes
    ----------
    name : str
        The model's tensor.
    deployed : str
        The tensor of the file, ``""`` where it has none.
    elements : int
        How many integers there are.
    differing : int
        How many differ from training's, in channels with a negative gamma from their negatives.
    num_bits : tuple of int
        Training's width and the file's.
    scales : tuple of int
        How many scales follow from training, and how many the file has.
    turned : int
        Channels whose integers are negated, for a negative gamma of a batch normalization.
    ulps : int
        The largest difference between scales, in float32's last places, where none is another.
    largest : float
        The largest difference between real values, in steps of training's scale.
    biases : int
        How many biases differ from those that follow from training.
    is_float : bool
        Whether the file holds it as floats.
    """

    name: str
    deployed: str
    elements: int
    differing: int = 0
    num_bits: tuple[int, int] = (0, 0)
    scales: tuple[int, int] = (0, 0)
    turned: int = 0
    ulps: int = 0
    largest: float = 0.0
    biases: int = 0
    is_float: bool = False

    @property
    def is_changed(self) -> bool:
        """Whether the integers are other than training's, but for signs that a gamma turns."""
        return bool(self.differing) or self.is_float or not self.deployed

    @property
    def sentence(self) -> str:
        """What was done, in words."""
        if not self.deployed:
            return "not in the file"
        if self.is_float:
            return "left float"
        before, after = self.num_bits
        parts = []
        if self.differing:
            verb = "requantized"
            if before != after:
                verb = f"regridded from {before} to {after} bits"
            parts.append(f"{verb}{' per channel' * (self.scales[0] == 1 < self.scales[1])}")
        elif before != after:
            parts.append(f"as trained, {before} bits kept in {after}")
        else:
            parts.append("as trained")
        if self.turned:
            parts.append(f"{self.turned} channels negated for a negative gamma")
        if self.ulps:
            parts.append(f"scales off by up to {self.ulps} ulp")
        if self.biases:
            parts.append(f"{self.biases} biases off")
        return "; ".join(parts)


def is_tflite(path: object) -> bool:
    """Whether a path leads to a TFLite file."""
    if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] == IDENTIFIER
    except OSError:
        return False


def changes(program: Program, deployed: QatModel) -> tuple[KernelChange, ...]:
    """Return what a file holds of each weight that a program computes with, in order.

    Parameters
    ----------
    program : Program
        Of the trained model.
    deployed : QatModel
        The file.
    """
    found: list[KernelChange] = []
    for linear, kernel, tensor in _with_counterparts(program, deployed):
        if tensor is None:
            found.append(KernelChange(linear.name, "", np.asarray(linear.weights).size))
        else:
            found.append(_change(linear, kernel, tensor, deployed))
    return tuple(found)


def as_held(profile: Profile, program: Program, model: object) -> Profile:
    """Return a profile that computes a TFLite file with its own weights as wide as it holds them.

    What its user told the profile counts, and other models are left as they are.

    Parameters
    ----------
    profile : Profile
    program : Program
    model : path, QatModel or Program
        What the program was made of.
    """
    if not isinstance(profile, Xnnpack) or profile.int4 is not None:
        return profile
    if isinstance(model, (str, os.PathLike)) and is_tflite(model):
        model = as_model(model)
    if not isinstance(model, QatModel):
        return profile
    is_file = any(tensor.spec.op == "tflite" for tensor in model.tensors.values())
    return as_packed(profile, program, model) if is_file else profile


def as_packed(profile: Profile, program: Program, deployed: QatModel) -> Profile:
    """Return a profile that computes a model with weights as wide as a file holds them.

    Under `Xnnpack` it is the widths that tell which kernels run; others are returned as they are.

    Parameters
    ----------
    profile : Profile
    program : Program
        Of the model, trained or the file's own.
    deployed : QatModel
        The file.
    """
    if not isinstance(profile, Xnnpack):
        return profile
    packed: dict[str, int] = {}
    for linear, _, tensor in _with_counterparts(program, deployed):
        if tensor is not None and tensor.recovered is not None and tensor.recovered.num_bits < 8:
            packed[linear.name] = tensor.recovered.num_bits
    return Xnnpack(None, profile.converts, profile.int4, packed) if packed else profile


def run_deployed(
    program: Program,
    model: QatModel,
    deployed: Program,
    inputs: Mapping[str, ArrayLike],
    profile: Profile,
) -> dict[str, Array]:
    """Return the unsigned integers that a file computes, by the names of the model's steps.

    A tensor without a counterpart, of other parameters or shape, is left out. Weights that the
    file packs are computed with as LiteRT does, or under ``xnnpack`` as its option says.

    Parameters
    ----------
    program : Program
        Of the trained model.
    model : QatModel
        The file.
    deployed : Program
        Of the file.
    inputs : mapping of str to array-like
    profile : Profile

    Raises
    ------
    QmathError
        The two have other inputs, or no quantized tensor in common.
    """
    executor = Executor(deployed, as_packed(profile, deployed, model))
    arrays = executor.checked(_renamed(program, deployed, inputs))
    pairs = paired(program, deployed)
    if not pairs:
        raise QmathError(
            "the TFLite file has no quantized tensor with the scale, zero point and shape of one "
            "of the model's: it is of another model, or was quantized after training"
        )
    parts: dict[str, list[Array]] = {name: [] for name in pairs}
    for start, batch in batches(arrays, executor.examples):
        with counted_from(start):
            made = executor.run(batch, keep=set(pairs.values()))
        for name, theirs in pairs.items():
            if theirs in made:
                parts[name].append(made[theirs])
    return {name: np.concatenate(values) for name, values in parts.items() if values}


def paired(program: Program, deployed: Program) -> dict[str, str]:
    """Return the step of a file for each of the model's, by scale, zero point and shape.

    Of several the one of the same name, else the first that is left: they are in the same order.
    """
    free = list(deployed.quantized)
    found: dict[str, str] = {}
    for step in program.quantized:
        fitting = [other for other in free if _fits(step, other)]
        if fitting:
            other = next((o for o in fitting if o.name == step.name), fitting[0])
            free.remove(other)
            found[step.name] = other.name
    return found


def _fits(step: QuantizedStep, other: QuantizedStep) -> bool:
    a, b = step.params, other.params
    return (a.num_bits, a.zero_point, tuple(step.shape)) == (
        b.num_bits,
        b.zero_point,
        (*other.shape,),
    ) and abs(a.scale - b.scale) <= _SAME * a.scale


def _renamed(
    program: Program, deployed: Program, inputs: Mapping[str, ArrayLike]
) -> dict[str, ArrayLike]:
    names = list(deployed.inputs)
    if all(name in inputs for name in names):
        return {name: inputs[name] for name in names}
    ours = list(program.inputs)
    if [deployed.inputs[n] for n in names] != [program.inputs[n] for n in ours]:
        raise QmathError(
            f"the TFLite file has the inputs {dict(deployed.inputs)}, and the model "
            f"{dict(program.inputs)}"
        )
    return {theirs: inputs[own] for theirs, own in zip(names, ours, strict=True)}


def _is_kernel(name: str, tensor: QatTensor) -> bool:
    return tensor.role == "weight" or name.rpartition("/")[2] in ("kernel", "depthwise_kernel")


def _weighted(program: Program) -> Iterator[tuple[Linear, Kernel | None]]:
    """Yield each operation with weights once, and what TFLite's converter should make of it."""
    seen: set[str] = set()
    for step in program.steps:
        made: Sequence[Kernel] = ()
        if isinstance(step, Requantize):
            try:
                made = kernels(step)
            except QmathError:  # it is no operation of TFLite
                made = ()
        for value in unrounded_sums(step):
            for term in value.terms:
                for op in term.ops:
                    if op.weights is not None and op.name not in seen and term.origin:
                        seen.add(op.name)
                        yield op, next((k for k in made if k.weights == op.name), None)


def _with_counterparts(
    program: Program, deployed: QatModel
) -> Iterator[tuple[Linear, Kernel | None, QatTensor | None]]:
    """Yield what `_weighted` does, each with the tensor of a file that holds its weights."""
    free = {name: t for name, t in deployed.tensors.items() if _is_kernel(name, t)}
    for linear, kernel in _weighted(program):
        name = _counterpart(linear, free)
        yield linear, kernel, None if name is None else free.pop(name)


def _counterpart(linear: Linear, free: Mapping[str, QatTensor]) -> str | None:
    layer, _, kernel = linear.name.rpartition("/")
    for name in (f"{layer}/{kernel}", f"{layer}/kernel", f"{layer}/depthwise_kernel"):
        if name in free and np.asarray(linear.weights).size == _size(free[name]):
            return name
    shape = np.asarray(linear.weights).shape
    return next((n for n, t in free.items() if np.shape(t.values) == shape), None)  # type: ignore[arg-type]


def _size(tensor: QatTensor) -> int:
    return int(np.prod(np.shape(tensor.values)))  # type: ignore[arg-type]


def _change(
    linear: Linear, kernel: Kernel | None, tensor: QatTensor, deployed: QatModel
) -> KernelChange:
    trained = np.asarray(linear.weights).astype(np.int32)
    if tensor.recovered is None:
        return KernelChange(linear.name, tensor.name, trained.size, is_float=True)
    theirs = tensor.recovered
    integers = (theirs.values.astype(np.int32) - theirs.zero_point).reshape(trained.shape)
    scale = np.broadcast_to(theirs.scale, theirs.values.shape).reshape(trained.shape)
    bits = (_bits(trained, kernel), theirs.num_bits)
    if kernel is None:
        wrong = int(np.count_nonzero(trained != integers))
        return KernelChange(
            linear.name, tensor.name, trained.size, wrong, bits, (0, theirs.scale.size)
        )
    assert kernel.weight_scale is not None
    assert kernel.weight_sign is not None
    sign, own = (_spread(linear, a) for a in (kernel.weight_sign, kernel.weight_scale))
    wanted = trained * sign
    own = np.broadcast_to(own, trained.shape)
    moved = np.abs(integers * scale.astype(np.float64) - wanted * own.astype(np.float64)) / own
    differing = int(np.count_nonzero(wanted != integers))
    bits_of = (np.ascontiguousarray(a, np.float32).view(np.int32) for a in (own, scale))
    ulps = np.abs(np.subtract(*bits_of, dtype=np.int64))
    return KernelChange(
        linear.name, tensor.name, trained.size, differing, bits,
        (kernel.weight_scale.size, theirs.scale.size),
        int(np.count_nonzero(kernel.weight_sign < 0)),
        0 if differing else int(np.max(ulps, initial=0)),
        float(np.max(moved, initial=0)),
        _biases(kernel, tensor.name, deployed, bool(differing)),
    )  # fmt: skip


def _bits(trained: Array, kernel: Kernel | None) -> int:
    """Return the width of the integers that training made, as far as they show it."""
    low, high = int(trained.min(initial=0)), int(trained.max(initial=0))
    own = max(high.bit_length(), (-1 - low).bit_length()) + 1
    return own if kernel is None else max(own, kernel.weight_bits)


def _biases(kernel: Kernel, name: str, deployed: QatModel, is_requantized: bool) -> int:
    """Return how many biases are not those that follow from training, in the same steps."""
    bias = deployed.tensors.get(f"{name.rpartition('/')[0]}/bias")
    if bias is None or bias.stored is None or is_requantized or kernel.bias is None:
        return 0
    found = np.asarray(bias.values)
    return int(np.count_nonzero(np.broadcast_to(kernel.bias, found.shape) != found))


def _spread(linear: Linear, array: Array) -> Array:
    """Return what each output channel has of its own, to broadcast against the weights."""
    if not array.ndim or array.size == 1:
        return array.reshape(())
    if linear.kind == "depthwise_conv2d":
        return array.reshape(np.asarray(linear.weights).shape[2:])
    return array.reshape(-1, 1) if linear.kind == "conv2d_transpose" else array
