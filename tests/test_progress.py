"""Every long call tells how much is done."""

import pytest

import qmath
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
