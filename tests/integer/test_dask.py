"""A Dask cluster of two processes, one of which is killed half way."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.integer import shards
from tests.cli.running import run
from tests.helpers import read_npz
from tests.integer.test_streams import assert_same

distributed = pytest.importorskip("distributed")

SAMPLE, DATA = "reference/samples/default8.h5", "reference/samples/digits_test.npz"
DIGITS = read_npz(DATA)


# What Dask leaves to the garbage collector is its own affair.
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_costs_its_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SECONDS", 0.0)  # a task for each batch
    images, labels = (np.tile(x, (20,) + (1,) * (x.ndim - 1)) for x in DIGITS.values())
    given: dict[str, Any] = {"labels": labels, "activations": True}
    whole = qmath.run(SAMPLE, images, **given)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        killed: list[int] = []

        def kill(done: int, total: int) -> None:
            if done > total // 2 and not killed:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        executor = client.get_executor()
        found = qmath.run(SAMPLE, images, **given, executor=executor, workers=2, progress=kill)
        assert killed
        assert_same(found, whole)
        arguments = ["run", SAMPLE, DATA, "--labels", "labels"]
        result = run(*arguments, "--scheduler", cluster.scheduler_address)
        assert result.stdout == run(*arguments).stdout
