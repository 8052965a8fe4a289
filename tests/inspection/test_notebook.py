"""What a notebook shows of the objects that qmath returns, and tables of many reports."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.model import QatModel

SAMPLES = Path("reference/samples")
MODEL = qmath.load(SAMPLES / "default8.h5")
IMAGES = next(iter(np.load(SAMPLES / "digits_test.npz").values()))[:4]


def shown() -> dict[str, object]:
    bundle = qmath.quantize_model(MODEL)
    return {
        "QatModel": MODEL,
        "Bundle": bundle,
        "Program": bundle.program,
        "Report": qmath.inspect(MODEL),
        "Run": qmath.run(MODEL, IMAGES, activations=True),
        "Comparison": qmath.diff(MODEL, IMAGES, profile="integer", against="tflite"),
    }


class Closed(HTMLParser):
    """Notes the text, and fails where a tag is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        del attrs
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", list(shown()))
def test_objects_are_short_in_a_cell(name: str) -> None:
    found = shown()[name]
    assert repr(found).startswith(f"<{name} of ")
    assert len(repr(found)) < 200
    assert "\n" not in repr(found)
    page = Closed()
    page.feed(found._repr_html_())
    page.close()
    assert not page.open
    assert "dense" in page.text
    assert len(found._repr_html_()) < 10_000


def test_what_holds_arrays_shows_none() -> None:
    kernel = MODEL.tensors["conv1/kernel"]
    assert repr(kernel) == (
        "<QatTensor 'conv1/kernel': weight, float32 of shape (3, 3, 1, 16), 8 bits, 16 ranges>"
    )
    assert repr(kernel.quantize()) == (
        "<QuantizedTensor: int8 of shape (3, 3, 1, 16), 8 bits, signed, narrow, 16 scales along "
        "axis 3>"
    )
    assert repr(MODEL.tensors["conv1/post_activation"]).endswith(": activation, 8 bits, 1 range>")
    hostile = qmath.QatTensor("a\nb\x1b", "float", [1.0])
    assert repr(hostile) == r"<QatTensor 'a\nb\x1b': float, numbers of shape (1,)>"


def test_a_verification_is_one_line(tmp_path: Path) -> None:
    qmath.export(MODEL, tmp_path / "out.npz")
    equal = qmath.verify(MODEL, tmp_path / "out.npz")
    assert repr(equal) == f"<Verification: equal; 14 tensors, {equal.elements:,} elements>"
    other = qmath.verify(SAMPLES / "nbit4.h5", tmp_path / "out.npz")
    assert repr(other).startswith(f"<Verification: differs in {len(other.differences)}; ")


def test_a_name_from_a_file_is_text() -> None:
    tensor = next(iter(MODEL.tensors.values()))
    name = "<script>alert(1)</script>" + "x" * 200
    hostile = QatModel({name: qmath.QatTensor(name, "activation", None, tensor.min, tensor.max,
                                              tensor.spec)}, source="<b>\x1b")  # fmt: skip
    page = hostile._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "x" * 100 not in page


def test_records_of_many_reports_are_one_table() -> None:
    names = ["default8", "integer4", "nbit4", "question"]
    reports = [qmath.inspect(SAMPLES / f"{name}.h5") for name in names]
    records = [record for report in reports for record in report.to_records()]
    assert len({tuple(record) for record in records}) == 1
    assert {type(value) for record in records for value in record.values()} == {
        str, int, float, bool, type(None),
    }  # fmt: skip
    widths = {(r["source"], r["num_bits"]) for r in records if r["role"] == "weight"}
    assert {(Path(source).stem, bits) for source, bits in widths} == {
        ("default8", 8), ("integer4", 4), ("nbit4", 4), ("question", 4),
    }  # fmt: skip


def test_a_report_is_the_page_that_the_command_writes() -> None:
    from qmath.inspection.html import render

    report = qmath.inspect(MODEL)
    assert report.to_html() == render(report)
