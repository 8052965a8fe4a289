"""What XLA computes: the fake-quant ops, compiled for this CPU, in a process of their own.

``python -m reference.jit CALLS ANSWERS`` computes what a pickle of `Call` describes. XLA reads its
flags once, so that with and without fused multiply-adds are two processes.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NO_FMA", "Call", "answer", "answers"]

ARGS = "fake_quant_with_min_max_args"
NO_FMA = "--xla_cpu_max_isa=AVX"


@dataclass(frozen=True)
class Call:
    """One call of an op of ``tf.quantization``.

    Attributes
    ----------
    op : str
    arrays : tuple of ndarray
        What the compiled function takes: inputs, or gradients and inputs, and then the range unless
        it is constant.
    num_bits : int
    narrow_range : bool
    constants : tuple
        The range, if it is compiled in; floats for the ops whose range is an attribute.
    """

    op: str
    arrays: tuple[np.ndarray, ...]
    num_bits: int
    narrow_range: bool
    constants: tuple[Any, ...] = ()


def answers(calls: Sequence[Call], *, fma: bool) -> list[tuple[np.ndarray, ...]]:
    """Return what each call gives under XLA, with or without fused multiply-adds; () if refused."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {"XLA_FLAGS": flags if fma else f"{flags} {NO_FMA}"}
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "calls"), Path(folder, "answers")
        asked.write_bytes(pickle.dumps(list(calls)))
        command = [sys.executable, "-m", "reference.jit", str(asked), str(answered)]
        subprocess.run(command, check=True, env=environment)
        found: list[tuple[np.ndarray, ...]] = pickle.loads(answered.read_bytes())
        return found


@lru_cache(maxsize=64)  # of ranges that are compiled in there are thousands
def _compiled(op: str, num_bits: int, narrow_range: bool, ends: tuple[float, ...] | None) -> Any:
    import tensorflow as tf

    function = getattr(tf.quantization, op)
    settings = {"num_bits": num_bits, "narrow_range": narrow_range}
    return tf.function(
        lambda *arguments: function(*arguments, *(ends or ()), **settings), jit_compile=True
    )


def answer(call: Call) -> tuple[np.ndarray, ...]:
    """Return what a call gives in this process, with the flags of XLA as they are."""
    import tensorflow as tf

    ends = tuple(map(float, call.constants)) if call.op.startswith(ARGS) else None
    compiled = _compiled(call.op, call.num_bits, call.narrow_range, ends)
    if call.constants and ends is None:
        function, constants = compiled.python_function, call.constants
        compiled = tf.function(lambda *arrays: function(*arrays, *constants), jit_compile=True)
    try:
        found = compiled(*map(tf.constant, call.arrays))
    except tf.errors.OpError:  # of a range whose ends are subnormal
        return ()
    return tuple(np.asarray(a) for a in (found if isinstance(found, (tuple, list)) else (found,)))


def main(arguments: Sequence[str]) -> None:
    """Answer the calls of one file in another."""
    from reference import oracle  # noqa: F401, which sets TensorFlow up

    calls = pickle.loads(Path(arguments[0]).read_bytes())
    Path(arguments[1]).write_bytes(pickle.dumps([answer(call) for call in calls]))


if __name__ == "__main__":
    # The calls are of the module by its name, not of `__main__`.
    from reference import jit

    jit.main(sys.argv[1:])
