"""Every long call tells how much is done."""

import pytest

import qmath
from qmath._progress import Pace
from tests.helpers import read_npz

SAMPLE = "reference/samples/default8.h5"
IMAGES = read_npz("reference/samples/digits_test.npz")["images"]


@pytest.mark.parametrize("verb", ["export", "inspect", "verify", "run", "diff"])
def test_progress_ends_at_its_total(tmp_path, verb):
    out = tmp_path / "out.npz"
    model = qmath.load(SAMPLE)
    tensors = len(model.tensors)
    if verb == "verify":
        qmath.export(model, out)
    given, total = {
        "export": ((model, out), tensors),
        "inspect": ((model,), tensors),
        "verify": ((model, out), tensors),
        "run": ((model, IMAGES), len(IMAGES)),
        "diff": ((model, IMAGES), len(IMAGES)),
    }[verb]
    calls = []
    getattr(qmath, verb)(*given, progress=lambda *call: calls.append(call))
    assert len(calls) > 1
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


@pytest.mark.parametrize(
    ("passed", "done", "total", "words"),
    [
        (2.0, 500, 2000, "250/s, 6 s left"),
        (10.0, 5, 100, "0.5/s, 3:10 left"),
        (1.0, 100_000, 720_000_000, "100,000/s, 1:59:59 left"),
        (1.0, 100, 0, "100/s"),
        (1.0, 100, 100, "100/s"),
        (0.0, 100, 200, ""),
    ],
)
def test_the_pace_is_a_rate_and_the_time_left(passed, done, total, words):
    seconds = iter([5.0, 5.0 + passed])
    pace = Pace(lambda: next(seconds))
    assert pace.words(0, total) == ""
    assert pace.words(done, total) == words


def test_the_pace_does_not_count_what_was_done_before():
    seconds = iter([5.0, 7.0, 20.0, 21.0])
    pace = Pace(lambda: next(seconds))
    assert pace.words(1_000_000, 1_001_000) == ""
    assert pace.words(1_000_200, 1_001_000) == "100/s, 8 s left"
    assert pace.words(50, 1_001_000) == ""  # of a second pass, which begins anew
    assert pace.words(100, 0) == "50/s"
