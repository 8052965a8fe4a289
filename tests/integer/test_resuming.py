"""Interrupted work goes on where it stopped, to the same result, and from nothing stale."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.integer import resuming, running
from qmath.integer.api import program_of
from qmath.integer.fingerprint import fingerprint
from tests.integer.test_streams import (
    BROKEN,
    IMAGES,
    LABELS,
    PROGRAM,
    SAMPLE,
    WHOLE,
    Largest,
    assert_same,
    in_columns,
)

RUN: dict[str, Any] = {"labels": LABELS, "activations": True}


def stopping(after: int) -> Callable[[int, int], None]:
    """Return a progress that interrupts when so many examples are done."""

    def progress(done: int, _: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    return progress


def stopped(path: Path, after: int = 100, **given: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        qmath.run(PROGRAM, IMAGES, **RUN, resume=path, progress=stopping(after), **given)
    assert path.exists()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_run_goes_on_to_the_same_result(threads: int, tmp_path: Path) -> None:
    path, calls = tmp_path / "done", []
    stopped(path)
    stopped(path, 200)  # and again, from where the first stopped
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = qmath.run(
            SAMPLE, in_columns(tmp_path), **RUN, resume=path, executor=pool if threads else None,
            progress=lambda *call: calls.append(call),
        )  # fmt: skip
    assert_same(found, WHOLE)
    assert calls == [(360, 360)]  # of three batches, the last
    assert not path.exists()


def test_what_an_executor_did_is_kept(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        stopped(tmp_path / "done", executor=pool)
    assert_same(qmath.run(PROGRAM, IMAGES, **RUN, resume=tmp_path / "done"), WHOLE)


def test_an_iterable_is_read_again_to_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "done"
    with pytest.raises(KeyboardInterrupt):
        qmath.run(PROGRAM, iter([IMAGES[:300], IMAGES[300:]]), **RUN, resume=path,
                  progress=stopping(100))  # fmt: skip
    batches = (IMAGES[at : at + 50] for at in range(0, 360, 50))
    assert_same(qmath.run(PROGRAM, batches, **RUN, resume=path), WHOLE)


@pytest.mark.parametrize("against", ["xnnpack", "integers"])
def test_a_comparison_goes_on_to_the_same_result(against: str, tmp_path: Path) -> None:
    path = tmp_path / "done"
    given: dict[str, Any] = {"profile": "tflite", "against": against}
    if against == "integers":
        given["against"] = {"conv1/post_activation": WHOLE.integers["conv1/post_activation"] ^ 1}
    whole = qmath.diff(PROGRAM, IMAGES, **given)
    assert whole.first is not None
    with pytest.raises(KeyboardInterrupt):
        qmath.diff(PROGRAM, IMAGES, **given, resume=path, progress=stopping(200))
    assert qmath.diff(PROGRAM, IMAGES, **given, resume=path) == whole
    assert not path.exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"inputs": np.where(np.arange(360) == 3, 0, IMAGES.T).T}, "is of other data"),
        ({"inputs": IMAGES[:359], "labels": LABELS[:359]}, "is of other data"),
        ({"inputs": IMAGES.astype(np.float64)}, "is of other data"),
        ({"labels": LABELS[::-1]}, "is of other data"),
        ({"activations": False}, "is of other options"),
        ({"keep": ["flatten"]}, "is of other options"),
        ({"profile": "exact"}, "is of other options"),
        ({"multiplier_bits": 16}, "is of other options"),
        ({"model": "reference/samples/nbit4.h5"}, "is of another model"),
    ],
)
def test_what_is_stale_is_refused_and_stays(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "done"
    stopped(path)
    content = path.read_bytes()
    with pytest.raises(qmath.QmathError, match=words):
        qmath.run(**{"model": PROGRAM, "inputs": IMAGES, **RUN, "resume": path, **changed})
    assert path.read_bytes() == content


def test_data_may_change_behind_what_is_done(tmp_path: Path) -> None:
    path, images = tmp_path / "done", IMAGES.copy()
    stopped(path)
    images[-1] = images[0]
    found = qmath.run(PROGRAM, images, **RUN, resume=path)
    assert_same(found, qmath.run(PROGRAM, images, **RUN))


@pytest.mark.parametrize("sizes", [None, 50, 150])
def test_a_nan_behind_what_is_done_is_named_by_its_place_in_all_data(
    sizes: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "done"

    def given(images: Any) -> Any:
        return images if sizes is None else (images[i : i + sizes] for i in range(0, 360, sizes))

    with pytest.raises(KeyboardInterrupt):
        qmath.run(PROGRAM, given(IMAGES), resume=path, progress=stopping(100))
    for _ in range(2):  # the second call goes on from where the error was
        with pytest.raises(qmath.QmathError, match=r"the input at \(300, 3, 4, 0\) is NaN"):
            qmath.run(PROGRAM, given(BROKEN), resume=path)


def test_an_interrupted_addition_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples would be counted again, and a part of them twice."""
    path, merge = tmp_path / "done", running.Totals.merge

    def interrupted(own: running.Totals, other: running.Totals) -> None:
        merge(own, other)
        if own.examples > 150:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running.Totals, "merge", interrupted)
        stopped(path, 999)
    assert_same(qmath.run(PROGRAM, IMAGES, **RUN, resume=path), WHOLE)


@pytest.mark.parametrize("content", [b"a text", b"", "arrays"])
def test_another_file_is_refused(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "done.npz"
    np.savez(path, x=IMAGES) if isinstance(content, str) else path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(qmath.QmathError, match=r"done\.npz"):
        qmath.run(PROGRAM, IMAGES, resume=path)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(qmath.OutputError, match="cannot write"):
        qmath.run(PROGRAM, IMAGES, resume=tmp_path / "none" / "done")


def test_reducers_without_a_state_are_named(tmp_path: Path) -> None:
    with pytest.raises(qmath.QmathError, match=r"Largest has no state\(\) and restore\(\)"):
        qmath.run(PROGRAM, IMAGES, reducers=[Largest()], resume=tmp_path / "done")


def test_the_file_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, times = tmp_path / "done", []
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(resuming.time, "monotonic", lambda: next(seconds))
    write = resuming._write
    monkeypatch.setattr(resuming, "_write", lambda *a: (times.append(a[1]["examples"]), write(*a)))
    images = np.tile(IMAGES, (20, 1, 1, 1))
    qmath.run(PROGRAM, images, keep=(), resume=path)
    steps = np.diff(times)
    assert len(steps) > 1
    assert set(steps.tolist()) == {20 * times[0]}  # at 4 s a batch, and for a writing


def test_a_fingerprint_is_that_of_the_content() -> None:
    one, other = program_of(SAMPLE), program_of(SAMPLE)
    assert fingerprint(one) == fingerprint(other) == fingerprint(PROGRAM)
    step = one.steps[0]
    changed = dataclasses.replace(step, params=dataclasses.replace(step.params, scale=0.5))
    steps = (changed, *one.steps[1:])
    assert fingerprint(dataclasses.replace(one, steps=steps)) != fingerprint(one)

    def holding(number: int) -> Callable[[int], int]:
        return lambda x: x + number

    held = [holding(number) for number in (1, 1, 2)]
    assert fingerprint(held[0]) == fingerprint(held[1]) != fingerprint(held[2])
    assert fingerprint(frozenset("abc")) == fingerprint(frozenset("cba"))
    loop: list[Any] = []
    loop.append(loop)
    assert fingerprint(loop)
