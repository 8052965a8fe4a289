"""Data in parts: the same results however they are given, divided and computed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath.containers.stored_arrays import open_arrays
from qmath.integer import shards
from qmath.integer.api import PROFILES, element, program_of
from qmath.integer.deployment import deploy
from qmath.integer.executor import Executor
from qmath.integer.judging.deployed import run_deployed
from qmath.integer.profiles.tflite import Tflite
from qmath.integer.program import Requantize
from qmath.integer.reducers import Computed, Reducer
from qmath.readers.source import as_model
from tests.helpers import read_npz

Array = np.ndarray[Any, Any]
SAMPLE = "reference/samples/default8.h5"
DIGITS = read_npz("reference/samples/digits_test.npz")
IMAGES, LABELS = DIGITS["images"], DIGITS["labels"]
PROGRAM = program_of(SAMPLE)
BATCH = Executor(PROGRAM).examples
BROKEN = IMAGES.copy()
BROKEN[300, 3, 4] = np.nan  # in the third batch
WHOLE = qmath.run(PROGRAM, IMAGES, labels=LABELS, activations=True)


class Sliced:
    """What has a shape, a dtype and slices, as a Zarr array has, and says how much it gave."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape, self.dtype, self.most = array.shape, array.dtype, 0

    def __getitem__(self, rows: slice) -> Array:
        found = self._array[rows]
        self.most = max(self.most, len(found))
        return found


def as_shards(folder: Path) -> str:
    for i, at in enumerate(range(0, 360, 100)):
        np.savez(folder / f"shard{i}.npz", image=IMAGES[at : at + 100])
    return str(folder / "shard*.npz")


def saved(folder: Path, save: Callable[..., None], name: str) -> Path:
    save(folder / name, IMAGES)
    return folder / name


def in_columns(folder: Path) -> Path:
    np.save(folder / "columns.npy", np.asfortranarray(IMAGES))
    return folder / "columns.npy"


SOURCES: dict[str, Callable[[Path], Any]] = {
    "an array": lambda _: IMAGES,
    "lists": lambda _: IMAGES[:360].tolist(),
    "a mapping": lambda _: {"image": IMAGES},
    "slices": lambda _: Sliced(IMAGES),
    "batches": lambda _: (IMAGES[at : at + 50] for at in range(0, 360, 50)),
    "large batches": lambda _: iter([IMAGES[:300], IMAGES[300:]]),
    "batches by name": lambda _: ({"image": IMAGES[at : at + 7]} for at in range(0, 360, 7)),
    "an npy": lambda folder: saved(folder, np.save, "x.npy"),
    "an npy in columns": in_columns,
    "an npz": lambda folder: str(saved(folder, np.savez, "x.npz")),
    "a compressed npz": lambda folder: saved(folder, np.savez_compressed, "x.npz"),
    "a memory map": lambda folder: np.load(saved(folder, np.save, "x.npy"), mmap_mode="r"),
    "shards": as_shards,
}


def assert_same(found: Any, expected: Any) -> None:
    """Assert that two runs are equal, bit for bit."""
    for own, others in ((found.integers, expected.integers), (found.outputs, expected.outputs)):
        assert list(own) == list(others)
        for name, x in others.items():
            assert own[name].dtype == x.dtype
            np.testing.assert_array_equal(own[name], x, err_msg=name)
    assert found.examples == expected.examples
    assert found.accuracy == expected.accuracy
    assert list(found.activations) == list(expected.activations)
    for name, use in expected.activations.items():
        own = found.activations[name]
        np.testing.assert_array_equal(own.counts, use.counts)
        assert (own.clipped, own.sqnr) == (use.clipped, use.sqnr)


@pytest.mark.parametrize("source", SOURCES)
def test_however_the_data_are_given_the_results_are_the_same(source: str, tmp_path: Path) -> None:
    data = SOURCES[source](tmp_path)
    assert_same(qmath.run(PROGRAM, data, labels=LABELS, activations=True), WHOLE)
    data = SOURCES[source](tmp_path)
    found = qmath.diff(PROGRAM, data, profile="tflite", against="exact")
    assert found == qmath.diff(PROGRAM, IMAGES, profile="tflite", against="exact")
    assert found.first is not None
    own, others = (qmath.run(PROGRAM, IMAGES, profile=p).integers for p in ("tflite", "exact"))
    name = found.first.name  # the first, which starts from the same integers in both
    steps = own[name].astype(int) - others[name]
    values, counts = np.unique(steps[steps != 0], return_counts=True)
    assert found.first.histogram == tuple(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("source", SOURCES)
def test_a_nan_is_named_by_its_place_in_all_data(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "IMAGES", BROKEN)
    words = re.escape("image: the input at (300, 3, 4, 0) is NaN")
    for call in (qmath.run, qmath.diff):
        with pytest.raises(qmath.QmathError, match=words):
            call(PROGRAM, SOURCES[source](tmp_path), profile="tflite")
    with (
        concurrent.futures.ThreadPoolExecutor(2) as executor,
        pytest.raises(qmath.QmathError, match=words) as found,
    ):
        qmath.run(PROGRAM, SOURCES[source](tmp_path), executor=executor)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)  # as processes send it


def test_a_nan_of_a_deployed_file_is_named_by_its_place_in_all_data() -> None:
    words = re.escape("the input at (300, 3, 4, 0) is NaN")
    with pytest.raises(qmath.QmathError, match=words):
        qmath.run("reference/golden/tflite/default8.tflite", BROKEN)
    deployed = as_model("reference/golden/tflite/default8.tflite")
    with pytest.raises(qmath.QmathError, match=words):
        run_deployed(PROGRAM, deployed, program_of(deployed), {"image": BROKEN}, Tflite())


@pytest.mark.parametrize("against", [None, "exact"])
def test_a_nan_before_one_integer_is_named_by_its_place_in_all_data(against: str | None) -> None:
    with pytest.raises(qmath.QmathError, match=re.escape("the input at (300, 3, 4, 0) is NaN")):
        element(PROGRAM, BROKEN, "conv1[300,0,0,0]", against=against)


def test_a_nan_in_given_vectors_is_named_by_its_place_in_all_of_them() -> None:
    with pytest.raises(qmath.QmathError, match=re.escape("the input at (300, 3, 4, 0) is NaN")):
        deploy(qmath.load(SAMPLE), BROKEN, 31, vector_bytes=0)


def test_batches_without_examples_are_as_an_array_without() -> None:
    none = qmath.run(PROGRAM, IMAGES[:0], labels=LABELS[:0], activations=True)
    for batches in ([IMAGES[:0]], [IMAGES[:0]] * 2):
        found = qmath.run(PROGRAM, iter(batches), labels=LABELS[:0], activations=True)
        assert (found.examples, found.accuracy) == (0, none.accuracy)
        for name, x in none.integers.items():
            assert (found.integers[name].shape, found.integers[name].dtype) == (x.shape, x.dtype)
        assert not any(use.counts.any() for use in found.activations.values())
    for data in (IMAGES[:0], iter([IMAGES[:0]] * 2)):
        with pytest.raises(qmath.QmathError, match="hold no examples: nothing can be compared"):
            qmath.diff(PROGRAM, data)
    some = [IMAGES[:0], IMAGES[:200], IMAGES[:0], IMAGES[200:], IMAGES[:0]]
    assert_same(qmath.run(PROGRAM, iter(some), labels=LABELS, activations=True), WHOLE)


def test_what_is_read_by_slices_is_never_read_at_once() -> None:
    images = Sliced(np.tile(IMAGES, (100, 1, 1, 1)))
    assert qmath.run(PROGRAM, images, keep=()).examples == 36000
    assert images.most < 36000


def test_the_use_of_integers_is_what_the_results_say() -> None:
    assert WHOLE.activations.keys() == WHOLE.integers.keys()
    for name, use in WHOLE.activations.items():
        values, counts = np.unique(WHOLE.integers[name], return_counts=True)
        np.testing.assert_array_equal(np.flatnonzero(use.counts), values)
        np.testing.assert_array_equal(use.counts[values], counts)
        assert use.used == len(values)
    flat = WHOLE.activations["flatten"]
    assert flat.clipped is flat.sqnr is None
    # Of the last layer, without an activation, from its exact accumulators.
    step = PROGRAM.step("dense/post_activation")
    assert isinstance(step, Requantize)
    (sums,) = Executor(PROGRAM).accumulators(step, WHOLE.integers)
    (term,) = step.value.terms
    y = (sums.astype(np.float64) * term.scale + step.value.offset) / step.params.scale
    low, high = step.params.limits
    relative = WHOLE.integers[step.name].astype(int) - step.params.zero_point
    use = WHOLE.activations[step.name]
    assert use.clipped == np.count_nonzero((y < low - 0.5) | (y >= high + 0.5)) > 0
    assert use.sqnr is not None
    expected = 10 * math.log10((y**2).sum() / ((relative - y) ** 2).sum())
    assert use.sqnr == pytest.approx(expected, rel=1e-9)


def test_what_a_relu_cuts_off_is_not_clipped() -> None:
    use = WHOLE.activations["relu6/output"]
    assert use.counts[0] > 10_000
    assert use.clipped is not None
    assert use.clipped < 1000


def test_the_accuracy_is_that_of_the_outputs() -> None:
    predictions = WHOLE.outputs["dense/post_activation"].argmax(1)
    assert WHOLE.accuracy == (predictions == LABELS).mean()
    for labels in (LABELS[:, np.newaxis], np.eye(10, dtype=int)[LABELS], LABELS.tolist()):
        assert qmath.run(PROGRAM, IMAGES, labels=labels, keep=()).accuracy == WHOLE.accuracy


def test_only_what_is_kept_is_returned() -> None:
    found = qmath.run(PROGRAM, IMAGES, keep=["conv1/post_activation"])
    assert list(found.integers) == ["conv1/post_activation"]
    assert found.outputs == {}
    found = qmath.run(PROGRAM, IMAGES, keep=PROGRAM.outputs)
    assert_same(
        dataclasses.replace(found, accuracy=WHOLE.accuracy, activations=WHOLE.activations),
        dataclasses.replace(
            WHOLE, integers={"dense/post_activation": WHOLE.integers["dense/post_activation"]}
        ),
    )


class Largest(Reducer):
    """The largest integer of the first layer: a reducer of one's own."""

    names = frozenset({"conv1/post_activation"})

    def __init__(self) -> None:
        self.value = 0
        self.starts: list[int] = []

    def empty(self) -> Largest:
        return Largest()

    def add(self, computed: Computed) -> None:
        self.value = max(self.value, int(computed.results["conv1/post_activation"].max()))
        self.starts.append(computed.start)

    def merge(self, other: Largest) -> None:
        self.value = max(self.value, other.value)
        self.starts += other.starts

    def result(self) -> int:
        return self.value


@pytest.mark.parametrize("threads", [0, 2])
def test_a_reducer_of_ones_own(threads: int) -> None:
    own = Largest()
    if threads:
        with concurrent.futures.ThreadPoolExecutor(threads) as executor:
            qmath.run(PROGRAM, IMAGES, keep=(), reducers=[own], executor=executor)
    else:
        qmath.run(PROGRAM, IMAGES, keep=(), reducers=[own])
    assert own.result() == WHOLE.integers["conv1/post_activation"].max()
    assert own.starts == [0, BATCH, 2 * BATCH]


@pytest.mark.parametrize("source", ["an array", "batches", "shards"])
def test_worker_processes_make_the_same_results(source: str, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = SOURCES[source](tmp_path)
    found = qmath.run(
        PROGRAM, data, labels=LABELS, activations=True, workers=2,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert_same(found, WHOLE)
    assert calls == sorted(calls)
    assert calls[-1] == (360, 0 if source == "batches" else 360)


def test_comparisons_by_an_executor_are_the_same() -> None:
    theirs = qmath.run(PROGRAM, IMAGES, profile="xnnpack").integers
    wrong = {"conv1/post_activation": theirs["conv1/post_activation"] ^ 1}
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        for profile in PROFILES:
            found = qmath.diff(PROGRAM, IMAGES, profile=profile, executor=executor)
            assert found == qmath.diff(PROGRAM, IMAGES, profile=profile)
        for against in (WHOLE.integers, theirs, wrong):
            found = qmath.diff(PROGRAM, IMAGES, against=against, executor=executor)
            assert found == qmath.diff(PROGRAM, IMAGES, against=against)


class Killing(Reducer):
    """What ends the worker that has the examples from 256 on, until a file is there."""

    names: frozenset[str] = frozenset()

    def __init__(self, path: str, is_lasting: bool, count: int = 0) -> None:
        self.path, self.is_lasting, self.count = path, is_lasting, count

    def empty(self) -> Killing:
        return Killing(self.path, self.is_lasting)

    def add(self, computed: Computed) -> None:
        if computed.start >= 256 and (self.is_lasting or not os.path.exists(self.path)):
            Path(self.path).touch()
            os._exit(1)
        self.count += len(computed.inputs["image"])

    def merge(self, other: Killing) -> None:
        self.count += other.count

    def result(self) -> int:
        return self.count


def test_a_lost_worker_costs_its_task_only(tmp_path: Path) -> None:
    killing = Killing(str(tmp_path / "killed"), is_lasting=False)
    found = qmath.run(
        PROGRAM, IMAGES, labels=LABELS, activations=True, reducers=[killing], workers=2
    )
    assert (tmp_path / "killed").exists()
    assert killing.result() == 360
    assert_same(found, WHOLE)


def test_examples_that_always_end_the_worker_are_named(tmp_path: Path) -> None:
    killing = Killing(str(tmp_path / "killed"), is_lasting=True)
    with pytest.raises(qmath.QmathError, match=f"lost twice with the examples {2 * BATCH} to 359"):
        qmath.run(PROGRAM, IMAGES, keep=(), reducers=[killing], workers=2)


def test_shards_take_about_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SECONDS", 1e9)
    starts = Largest()
    sizes: list[int] = []
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        qmath.run(
            PROGRAM, np.tile(IMAGES, (20, 1, 1, 1)), keep=(), reducers=[starts],
            executor=executor, workers=2, progress=lambda done, _: sizes.append(done),
        )  # fmt: skip
    lengths = np.diff([0, *sizes]).tolist()
    assert lengths[:5] == [BATCH, BATCH, BATCH, BATCH, 4 * BATCH]
    assert starts.starts == list(range(0, 7200, BATCH))


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (IMAGES, {"workers": 0}, "workers must be 1 or more, got 0"),
        (iter(()), {}, "the data hold no batches"),
        (iter([IMAGES[:9]]), {"labels": LABELS[:5]}, "labels: 5 of the examples from 0 on, of"),
        (iter([IMAGES[:5]]), {"labels": LABELS[:9]}, "labels: 9 are given, the data hold 5"),
        (iter([IMAGES[:0]]), {"labels": LABELS[:9]}, "labels: 9 are given, the data hold 0"),
        (iter([IMAGES[:9], IMAGES[:9, :4]]), {}, "must have shape (N, 8, 8, 1), got (9, 4, 8, 1)"),
        (iter([IMAGES * 200]), {}, "lie outside the range [0, 1]"),
        (Sliced(IMAGES * 200), {}, "lie outside the range [0, 1]"),
        (IMAGES, {"keep": "flatten"}, "keep must be a list of tensors' names, got 'flatten'"),
        (IMAGES, {"progress": 3}, "progress must be a function of two numbers"),
        (IMAGES, {"executor": 3}, "executor must have a method submit"),
        (IMAGES, {"sink": 3}, "sink must have a method write"),
    ],
)
def test_what_does_not_fit_is_an_error(data: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(qmath.QmathError, match=re.escape(words)):
        qmath.run(PROGRAM, data, **options)


def test_integers_are_compared_with_data_of_known_length() -> None:
    with pytest.raises(qmath.QmathError, match="compared with data of known length"):
        qmath.diff(PROGRAM, iter([IMAGES]), against=WHOLE.integers)


def test_what_cannot_be_sent_to_other_processes_is_named() -> None:
    class Local(Largest):
        def empty(self) -> Local:
            return Local()

    with pytest.raises(qmath.QmathError, match="give functions and reducers of a module"):
        qmath.run(PROGRAM, IMAGES, reducers=[Local()], workers=2)


def test_large_arrays_are_read_forward_and_again(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=IMAGES)
    (x,) = open_arrays(tmp_path / "x.npz").values()
    for rows in (slice(100, 200), slice(300, 360), slice(7), slice(350, 400), slice(400, 500)):
        np.testing.assert_array_equal(x[rows], IMAGES[rows])
