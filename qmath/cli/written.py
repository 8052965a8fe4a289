"""The file that ``qmath run -o`` writes, example by example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmath.containers.stored_arrays import Rows
from qmath.errors import OutputError, QmathError
from qmath.exports.arrays.growing import GrowingNpz, Shaped
from qmath.exports.output.atomic import check_output, move, replacing
from qmath.integer.cuts import missing
from qmath.integer.describe import arrays as arrays_of
from qmath.integer.profiles.fixed import FixedPoint
from qmath.integer.program import Program, sources
from qmath.integer.resuming import keeps_outputs, outputs_beside
from qmath.kernels.affine import smallest_dtype

__all__ = ["Written", "written"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Written:
    """What is to be written.

    Attributes
    ----------
    output : Path or None
    program : Program
    computed : Program
        What is computed of it; results that it has no step for are not written.
    inputs, cuts : mapping of str to Rows
        The data.
    names : sequence of str
        The steps to write.
    constants : mapping
        Of requantized tensors, which are written, too.
    overwrite : bool
    """

    output: Path | None
    program: Program
    computed: Program
    inputs: Mapping[str, Rows]
    cuts: Mapping[str, Rows]
    names: Sequence[str]
    constants: Mapping[str, tuple[FixedPoint, ...]]
    overwrite: bool

    @property
    def kept(self) -> Sequence[str]:
        """The steps whose results a run has to keep."""
        return () if self.output is None else self.names

    @cached_property
    def _made(self) -> frozenset[str]:
        """The steps that are both written and computed."""
        lacking = missing(self.program, frozenset(self.inputs) | frozenset(self.cuts))
        made = {step.name for step in self.computed.steps} & set(self.names)
        return frozenset(made - {*lacking, *chain(*lacking.values())})

    @cached_property
    def quantized(self) -> list[str]:
        """The quantized tensors that are written."""
        return [step.name for step in self.program.quantized if step.name in self._made]

    def arrays(self) -> Iterator[tuple[str, Array | Shaped]]:
        """Yield the arrays in order."""
        program, (first, *_) = self.program, self.inputs.values()
        examples = first.shape[0]
        for name in program.outputs:
            if name in self._made:
                shape = (examples, *program.step(name).shape)
                yield f"output/{name}", Shaped(np.dtype(np.float32), shape)
        if self.constants:
            yield from arrays_of(program, self.constants).items()
        for name in self.constants:
            yield f"{name}.sources", np.array(sources(program.step(name)))
        for name in self.quantized:
            dtype = smallest_dtype(program.quant_params[name].num_bits, signed=False)
            shape = (examples, *program.step(name).shape)
            yield name, Shaped(np.dtype(dtype), shape)


@contextmanager
def written(to: Written, resume: Path | None) -> Iterator[GrowingNpz | None]:
    """Yield what writes the results; the output has its name after the block.

    With `resume`, the file of what is done is removed then, and what is written before lies beside
    it.
    """
    if to.output is None:
        yield None
    elif resume is None:
        with replacing(to.output, overwrite=to.overwrite) as file:
            grown = GrowingNpz(file, to.arrays())
            yield grown
            grown.finish()
    else:
        file = _opened(part := outputs_beside(resume), resume)
        try:
            with file:
                grown = GrowingNpz(file, to.arrays())
                yield grown
                grown.finish()
                grown.state()  # on the disk
        finally:
            if not resume.exists():
                part.unlink(missing_ok=True)
        check_output(to.output, overwrite=to.overwrite)
        move(part, to.output, overwrite=to.overwrite)
        resume.unlink(missing_ok=True)


def _opened(path: Path, resume: Path) -> BinaryIO:
    """Return the file of the outputs so far, a new one if nothing is done yet."""
    is_new = not resume.exists()
    try:
        return open(path, "x+b" if is_new else "r+b")
    except FileExistsError as error:
        raise OutputError(
            f"{path} exists, and {resume} does not, of which it would hold the outputs; remove "
            f"{path} if nobody needs it, or give --resume another name"
        ) from error
    except FileNotFoundError as error:
        if is_new:
            raise OutputError(f"cannot write {path}: the folder is not there") from error
        if not keeps_outputs(resume):
            raise QmathError(
                f"{resume} is of other options, a command without -o; remove it to begin anew, or "
                "leave out -o"
            ) from error
        raise OutputError(
            f"{path} is gone, which holds the outputs so far; remove {resume} to begin anew"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
