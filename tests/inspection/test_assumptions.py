"""What a file does not show of a quantizer: counted, shown in its row, and on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qmath import QatModel
from qmath.inspection.cells import cells
from qmath.inspection.html import render
from qmath.inspection.report import Report, Row, inspect
from qmath.model import assumed_tensors, own_quantized
from tests.cli.running import run
from tests.exports.models import model, unknown
from tests.readers.builders import entry, kernel, sequential, write

ASSUMED = "assumed: TFMOT's own quantizer"
UNSEEN = "quantized by its own config, not in the file"


def assuming(*names: str) -> QatModel:
    provenance = {"quantizer": ASSUMED, "num_bits": "range ratio"}
    tensors = model().tensors
    return model(**{name: replace(tensors[name], provenance=provenance) for name in names})


def unseen(name: str) -> QatModel:
    """Return a model one of whose weights is a float of which a note says that it is none."""
    tensor = replace(model().tensors[name], role="float", min=None, max=None)
    source = model(**{name: tensor})
    note = f"{name}: {UNSEEN.partition(',')[0]} MyConfig, which left no range."
    return replace(source, notes=(*source.notes, note))


def row(report: Report, name: str) -> Row:
    return next(row for row in report.rows if row.tensor == name)


@pytest.mark.parametrize(
    ("names", "summary"),
    [
        ((), "weights 4/4 ready, activations 5/5 ready, integer-only: yes"),
        (("conv/kernel", "dense/kernel"),
         "weights 4/4 ready, 2 assumed, activations 5/5 ready, integer-only: yes"),
        (("conv/kernel", "conv/post_activation"),
         "weights 4/4 ready, 1 assumed, activations 5/5 ready, 1 assumed, integer-only: yes"),
    ],
)  # fmt: skip
def test_the_verdict_counts_assumptions(names: tuple[str, ...], summary: str) -> None:
    source = assuming(*names)
    report = inspect(source)
    assert str(report.verdict) == summary
    assert assumed_tensors(source) == names
    assert {row.tensor for row in report.rows if row.assumed} == set(names)
    found = json.loads(json.dumps(report.as_dict()))
    assert found["summary"] == summary
    assert found["verdict"]["weights_assumed"] == sum("kernel" in name for name in names)
    page = render(report)
    for fact in summary.split(", "):
        assert f"</b> {fact}</li>" in page
    assert page.count("range ratio, rest assumed") == len(names)


def test_what_is_not_ready_is_not_counted_as_assumed() -> None:
    tensor = replace(unknown("dw/post_activation"), provenance={"quantizer": ASSUMED})
    report = inspect(model(**{"dw/post_activation": tensor}))
    assert str(report.verdict).startswith("weights 4/4 ready, activations 4/5 ready, integer")
    assert row(report, "dw/post_activation").assumed


def test_the_column_shows_the_assumption_once() -> None:
    provenance = {"quantizer": ASSUMED, "num_bits": ASSUMED, "symmetric": "graph"}
    assert cells(Row("x", "weight", provenance=provenance))["learnt from"] == ASSUMED
    assert cells(Row("x", "weight"))["learnt from"] == "unknown"


def test_a_weight_whose_quantizer_left_nothing_is_no_plain_float() -> None:
    source = unseen("dense/kernel")
    assert own_quantized(source) == ("dense/kernel",)
    report = inspect(source)
    found = row(report, "dense/kernel")
    assert (found.role, found.ready, found.problem) == ("weight", False, UNSEEN)
    assert found.shape == (16, 3)
    assert cells(found)["scheme"] == UNSEEN
    assert cells(found)["range"] == ""
    assert str(report.verdict).startswith("weights 3/4 ready, activations")
    (item,) = [item for item in report.warnings if item.kind == "own-quantizer"]
    assert item.where == "dense/kernel"
    assert "from_keras" in item.remedy
    page = render(report)
    assert page.count(f'<td data-title="scheme">{UNSEEN}</td>') == 1
    assert json.loads(json.dumps(report.as_dict()))["rows"][8]["problem"] == UNSEEN


def test_a_plain_float_model_prints_its_note_first(tmp_path: Path) -> None:
    floats = {name: values for name, values in kernel().items() if name.startswith("d/")}
    layers = [entry("Dense", "d", units=4, activation="linear")]
    path = write(tmp_path / "float.h5", sequential(*layers), {"d": floats})
    lines = run("inspect", path).stdout.splitlines()
    assert lines[1] == "weights 0/0 ready, activations 0/0 ready, integer-only: no"
    assert lines[2].startswith("note: Nothing in this model is quantized")
    assert lines[4] == "1 float tensor: d/kernel"
    assert sum(line.startswith("note:") for line in lines) == 1


def test_a_note_on_an_activation_changes_no_row() -> None:
    note = "conv/post_activation: quantized by its own config, and its integers are not known."
    report = inspect(replace(model(), notes=(note,)))
    assert report.rows == inspect(model()).rows
