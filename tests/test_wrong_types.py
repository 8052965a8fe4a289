"""What is of a wrong type is refused in one way, which says what is expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from tests.helpers import read_npz

MODEL = qmath.load("reference/samples/default8.h5")
IMAGES = read_npz("reference/samples/digits_test.npz")["images"][:4]
TENSOR = "flatten"
AXES = r"axes must be an order, 'NCHW', or \{TENSOR: order\}, got "
BATCH = r"the batch behind 4 examples is {}; give arrays \(N, …\), or mappings"
LABELS = r"labels must be an array of numbers .* got {} of shape \({}\)"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": "labels"}, r"got 'labels'; the command line alone .*\['labels'\]"),
        ({"labels": Path("x")}, "labels must be an array, got .*Path"),
        ({"labels": {"labels": [1]}}, "labels must be an array, got a dict"),
        ({"labels": 3}, LABELS.format(r"int\d+", "")),
        ({"labels": list("1234")}, LABELS.format("<U1", "4,")),
        ({"workers": "2"}, "workers must be a whole number of processes, got '2'"),
        ({"workers": None}, "workers must be a whole number of processes, got None"),
        ({"keep": 3}, "keep must be a list of tensors' names, got 3; of the outputs"),
        ({"keep": "outputs"}, r"'outputs'; .* keep=\['dense/post_activation'\]"),
        ({"keep": [3]}, "keep has 3, which is none of"),
        ({"reducers": [3]}, "reducers has 3; give a list"),
        ({"reducers": 3}, "reducers has 3; give a list"),
        ({"resume": 3}, "resume must be the path of a file, got 3"),
        ({"profile": ["exact"]}, r"there is no profile \['exact'\]"),
    ],
)
def test_run(given: dict[str, Any], words: str) -> None:
    with pytest.raises(qmath.QmathError, match=words):
        qmath.run(MODEL, IMAGES, **given)


@pytest.mark.parametrize(
    ("batch", "words"), [("a", "'a'"), ({}, r"\{\}"), (3, "3"), (None, "None")]
)
def test_batches(batch: Any, words: str) -> None:
    with pytest.raises(qmath.QmathError, match=BATCH.format(words)):
        qmath.run(MODEL, iter([IMAGES, batch]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"against": 3}, "against is of the type int; give the name of a profile"),
        ({"against": ["exact"]}, "against is of the type list"),
        ({"against": {3: IMAGES}}, "against has the name 3"),
        ({"axes": ["NCHW"]}, AXES + r"\['NCHW'\]"),
        ({"axes": {TENSOR: 3}}, AXES),
        ({"workers": "2"}, "workers must be a whole number"),
        ({"resume": 3}, "resume must be the path of a file, got 3"),
    ],
)
def test_diff(given: dict[str, Any], words: str) -> None:
    against = {TENSOR: np.zeros((4, 1))}
    with pytest.raises(qmath.QmathError, match=words):
        qmath.diff(MODEL, IMAGES, **{"against": against, **given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"format": 3}, "format must be the name of one, or a subclass .* got 3; .* npz"),
        ({"format": int}, "a subclass of qmath.exports.Exporter, got <class 'int'>"),
        ({"vectors": True}, "how many test vectors to draw, or arrays of inputs, got True"),
        ({"vectors": "two"}, "how many test vectors to draw, or arrays of inputs, got 'two'"),
        ({"layout": ["OHWI"]}, "no option 'layout'; in qmath.export it is called layouts"),
        ({"layouts": "OHWI"}, r"layouts must be a list of axis orders, \['OHWI'\], got 'OHWI'"),
        ({"layouts": [3]}, "layouts must be a list of axis orders"),
        ({"output": 3}, "output must be the path of a file or folder, got 3"),
    ],
)
def test_export(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(qmath.QmathError, match=words):
        qmath.export(MODEL, **{"output": tmp_path / "out.npz", **given})
    assert not list(tmp_path.iterdir())


def test_verify() -> None:
    output: Any = 3
    with pytest.raises(qmath.QmathError, match="output must be the path of a file or folder"):
        qmath.verify(MODEL, output)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantizers": ["a"]}, r"quantizers must be a mapping by names, .* got \['a'\]"),
        ({"shapes": ["a"]}, r"shapes must be a mapping by names, .* got \['a'\]"),
        ({"shapes": {3: 3}}, "shapes has 3, which is no layer"),
    ],
)
def test_load(given: dict[str, Any], words: str) -> None:
    with pytest.raises(qmath.QmathError, match=words):
        qmath.load(MODEL.source, **given)
