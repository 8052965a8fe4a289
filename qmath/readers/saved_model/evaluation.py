"""What a tensor is that depends on variables and constants alone, op by op, in NumPy.

Ops are looked up in `evaluation_ops`. Where the last bits of an op depend on the build of
TensorFlow, everything after it is computed again with the largest and the smallest result that it
may have; what then differs is not known, and no integers are told of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.errors import FileFormatError, QmathError
from qmath.readers.saved_model.evaluation_ops import EXACT, INEXACT, NotEvaluatedError, constant
from qmath.readers.saved_model.functions import (
    FunctionGraph,
    Output,
    Source,
    VariableSource,
    key_of,
)

__all__ = ["Evaluator", "NotEvaluatedError"]

Array = NDArray[Any]

# Of elements that ops compute, in all; a network of 100 million weights takes a tenth.
_ELEMENTS = 1 << 32
_SPARE = 1 << 20  # of a result, besides four times those of the largest variable on the way
_OPS = 10_000  # for one tensor; quantizers take some ten
_MOST_INEXACT = 5


class Evaluator:
    """Evaluates tensors of one graph, within a budget.

    Parameters
    ----------
    graph : FunctionGraph
    read : callable
        Returns a variable, which may be lazy, by its number; raises `NotEvaluatedError`.
    where : str
        The file, for error messages.
    """

    def __init__(self, graph: FunctionGraph, read: Callable[[int], Any], where: str) -> None:
        self._graph = graph
        self._read = read
        self._where = where
        self._elements = _ELEMENTS
        self._most = _SPARE

    def values(self, *sources: Source) -> list[Array]:
        """Return what these tensors are, in every bit.

        Raises
        ------
        NotEvaluatedError
            An op is not in the table, or the bits depend on the build of TensorFlow.
        FileFormatError
            An op gets what TensorFlow refuses, or the graph is larger than any network's.
        """
        return self._evaluated(sources, range(len(sources)))

    def before(self, source: Source, result: Source) -> Array:
        """Return what a tensor is, of which `result` is made, which alone is sure in every bit.

        Raises
        ------
        NotEvaluatedError, FileFormatError
            As of `values`.
        """
        return self._evaluated((source, result), (1,))[0]

    def _evaluated(self, sources: Sequence[Source], sure: Iterable[int]) -> list[Array]:
        orders = [self._ordered(source) for source in sources]
        order = list({key_of(output): output for found in orders for output in found}.values())
        read = {
            s for output in order for s in self._inputs(output) if isinstance(s, VariableSource)
        }
        sizes = [math.prod(np.shape(self._read(source.node))) for source in read]
        self._most = _SPARE + 4 * max(sizes, default=0)
        first, errs = self._run(order, {}, sources)
        keys = [key for key, can_err in errs.items() if can_err]
        if len(keys) > _MOST_INEXACT:
            raise NotEvaluatedError(f"{len(keys)} ops whose last bits TensorFlow does not define")
        for signs in product((-1, 1), repeat=len(keys)) if keys else ():
            again, _ = self._run(order, dict(zip(keys, signs, strict=True)), sources)
            if any(first[i].tobytes() != again[i].tobytes() for i in sure):
                names = ", ".join(sorted({o.node.op for o in order if key_of(o) in keys}))
                raise NotEvaluatedError(f"a result that depends on the last bits of {names}")
        return first

    def _run(
        self, order: Sequence[Output], signs: Mapping[object, int], sources: Sequence[Source]
    ) -> tuple[list[Array], dict[object, bool]]:
        """Evaluate ops once, inexact ones as far off as `signs` say; tell which can be off."""
        values: dict[object, Array] = {}
        errs: dict[object, bool] = {}
        for output in order:
            inputs = [self._value(values, source) for source in self._inputs(output)]
            result, error = self._computed(output, inputs)
            self._elements -= result.size
            if self._elements < 0:
                raise self._damaged("its quantizers compute more than any network's")
            key = key_of(output)
            if error is not None:
                errs[key] = bool(error.any())
                result = result + np.float32(signs.get(key, 0)) * error
            values[key] = result
        return [self._value(values, source) for source in sources], errs

    def _computed(self, output: Output, inputs: list[Array]) -> tuple[Array, Array | None]:
        node = output.node
        if _most_elements(node.op, inputs) > self._most:
            raise self._damaged("its quantizers compute more than any network's")
        try:
            with np.errstate(all="ignore"):
                if node.op == "Const":
                    return constant(node), None
                if node.op in EXACT:
                    return EXACT[node.op](node, inputs), None
                return INEXACT[node.op](node, inputs)
        except QmathError as error:
            raise NotEvaluatedError(f"{node.op}: {error}") from None
        except (ValueError, IndexError, TypeError, ArithmeticError, MemoryError):
            raise self._damaged(
                f"the op {node.op} ({output.name}) has inputs that it refuses"
            ) from None

    def _value(self, values: dict[object, Array], source: Source) -> Array:
        key = key_of(source)
        if key not in values:
            if not isinstance(source, VariableSource):
                raise NotEvaluatedError("an input of the model")
            values[key] = np.asarray(self._read(source.node))
        return values[key]

    def _inputs(self, output: Output) -> Iterator[Source]:
        for tensor in output.node.input:
            if not tensor.startswith("^"):
                yield self._graph.source(output.frame, tensor)

    def _ordered(self, source: Source) -> list[Output]:
        """Return the ops that a tensor depends on, after those that feed them."""
        order: list[Output] = []
        state: dict[object, bool] = {}  # whether an op is in order; False while its inputs are not
        stack = [(source, False)]
        while stack:
            current, is_ready = stack.pop()
            if not isinstance(current, Output):
                continue
            key = key_of(current)
            if is_ready:
                state[key] = True
                order.append(current)
                continue
            if key in state:
                if not state[key]:
                    raise self._damaged(f"{current.name} follows from itself")
                continue
            op = current.node.op
            if op != "Const" and op not in EXACT and op not in INEXACT:
                raise NotEvaluatedError(f"the op {op}")
            if current.output.rpartition(":")[2] not in ("", "0"):
                raise NotEvaluatedError(f"another output of the op {op} than its first")
            if len(state) >= _OPS:
                raise self._damaged("its quantizers compute more than any network's")
            state[key] = False
            stack.append((current, True))
            fed = list(self._inputs(current))
            # What is under way and asked for again by another op feeds itself.
            stack += [(f, False) for f in fed if not state.get(key_of(f), False)]
        return order

    def _damaged(self, reason: str) -> FileFormatError:
        shown = "".join(c for c in reason[:200] if c.isprintable())
        return FileFormatError(f"{self._where}: {shown}; the file is damaged or hostile")


def _most_elements(op: str, inputs: Sequence[Array]) -> int:
    """Return how many elements an op may make of its inputs; 0 if they do not fit together."""
    if op in ("Pack", "ConcatV2"):
        return sum(x.size for x in inputs)
    try:
        return math.prod(np.broadcast_shapes(*(x.shape for x in inputs)))
    except ValueError:  # ops that broadcast refuse them, others make no more than they get
        return max(x.size for x in inputs)
