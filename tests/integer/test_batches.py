"""How data are cut: nothing depends on it but time and memory."""

import numpy as np
import pytest

from qmath.integer import executor as module
from qmath.integer.api import program_of
from qmath.integer.executor import Executor, batches
from qmath.integer.profiles.fixed import Integer
from tests.exports import networks

DEFAULT = "reference/samples/default8.h5"


@pytest.mark.parametrize("examples", [1, 3, 7, 8])
def test_batches_hold_every_example_once(examples):
    x = np.arange(7 * 2).reshape(7, 2)
    parts = [part["x"] for _, part in batches({"x": x}, examples)]
    assert {len(part) for part in parts[:-1]} <= {examples}
    assert np.array_equal(np.concatenate(parts), x)


def test_no_batch_is_larger_than_the_cache(monkeypatch):
    executor = Executor(program_of(networks.layers(32, weight_bits=8)))
    sizes = [np.prod(step.shape) for step in executor.program.steps]
    assert executor.examples > 1
    assert executor.examples * np.mean(sizes) <= module._MEAN_ELEMENTS
    monkeypatch.setattr(module, "_MOST_ELEMENTS", 2 * max(sizes))
    assert executor.examples == 2
    monkeypatch.setattr(module, "_MOST_ELEMENTS", 1)
    assert executor.examples == 1


def test_integers_do_not_depend_on_the_batch():
    program = program_of(DEFAULT)
    executor = Executor(program, Integer())
    (name, shape), count = next(iter(program.inputs.items())), 150
    x = np.random.default_rng(0).uniform(0, 1, (count, *shape)).astype(np.float32)
    whole = executor.run({name: x})
    for examples in (1, executor.examples):
        parts = [executor.run(batch) for _, batch in batches({name: x}, examples)]
        for step in program.steps:
            joined = np.concatenate([part[step.name] for part in parts])
            assert np.array_equal(joined, whole[step.name])
