import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import qmath
from qmath import QatTensor
from qmath.inspection.drawing import Block, blocks, drawing
from qmath.inspection.html import plots, render
from qmath.inspection.report import Row, inspect
from tests.exports.models import CONV, DENSE, model, unknown, weight

VOID = {"meta", "path", "circle", "br", "input"}


class Page(HTMLParser):
    """Checks that tags close in order; collects attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, _, attrs):
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_a_page_holds_the_verdict_the_table_and_every_remedy():
    changes = {"dw/post_activation": unknown("dw/post_activation")}
    report = inspect(model(**changes))
    page = Page(render(report))
    assert "activations 4/5 ready" in page.text
    for row in report.rows:
        assert row.tensor in page.text
    for item in report.warnings:
        assert item.remedy in page.text
        assert item.message in page.text
    assert "a note" in page.text


def test_a_page_loads_and_runs_nothing():
    page = render(inspect(model()))
    assert "default-src 'none'" in page
    names = {name for name, _ in Page(page).attributes}
    assert not names & {"src", "style", "srcset", "onload", "onclick"}
    links = [value for name, value in Page(page).attributes if name == "href"]
    assert links
    assert all(link.startswith(("#t-", "#s-")) for link in links)
    assert "url(" not in page
    assert "@import" not in page


def test_links_lead_to_sections_and_weights_and_nowhere_else():
    attributes = Page(render(inspect(model()))).attributes
    links = {value for name, value in attributes if name == "href"}
    anchors = {f"#{value}" for name, value in attributes if name == "id"}
    assert links == {anchor for anchor in anchors if anchor.startswith(("#t-", "#s-"))}
    assert sum(link.startswith("#t-") for link in links) == 4


def test_every_switch_has_a_rule_that_hides_rows():
    page = render(inspect(model()))
    switches = re.findall(r'<input type="checkbox" id="([^"]*)"', page)
    assert len(switches) > 2
    for switch in switches:
        assert f"body:has(#{switch}:" in page


def test_the_graph_has_every_step_with_its_width():
    report = inspect("reference/samples/nbit4.h5")
    rows = blocks(report.program)
    page = Page(drawing(rows))
    assert [row.name for row in rows][1:] == [step.name for step in report.program.steps]
    for row in rows:
        assert row.name in page.text
        assert row.words in page.text
    (dense,) = (row for row in rows if row.name == "dense/post_activation")
    fixed = qmath.quantize_model(qmath.load("reference/samples/nbit4.h5")).constants
    bits = fixed["dense/post_activation.accumulator_bits"].max()
    assert f"dense, {bits}-bit sum, 8-bit integers" in dense.words
    assert drawing(rows).count("V") == sum(len(row.reads) for row in rows)


def test_branches_have_lanes_of_their_own():
    names = [("a", ()), ("b", ("a",)), ("c", ("a",)), ("d", ("b", "c")), ("e", ("d",))]
    rows = [Block(name, "integers", "", reads) for name, reads in names]
    places = re.findall(r'<circle class="integers" cx="(\d+)"', drawing(rows))
    assert len({places[1], places[2]}) == 2
    assert places[3] in (places[1], places[2])
    assert places[4] == places[3]


def test_unknown_widths_are_not_drawn_as_known():
    page = inspect("reference/samples/question.h5").to_html()
    assert "integers of unknown width" in page
    assert "if unknown widths are 8" in page


def test_equal_reports_give_equal_pages():
    assert render(inspect(model())) == render(inspect(model()))


def test_names_from_a_file_are_text():
    name = '<script>alert("x")</script>&\x1b[31m/kernel'
    tensor = replace(weight("x", np.ones((2, 2), np.float32), DENSE), name=name)
    source = replace(model(**{name: tensor}), source="<b>.h5", notes=("<i>",))
    page = render(inspect(source))
    assert "<script" not in page
    assert "\x1b" not in page
    assert name.replace("\x1b", "\\x1b") in Page(page).text


def test_a_model_without_anything_quantized():
    page = Page(render(inspect(replace(model(), tensors={}))))
    assert "Nothing in this model is quantized" in page.text
    assert "Weights" not in page.text


@pytest.mark.parametrize(("num_bits", "bars"), [(2, 4), (4, 16), (8, 256), (10, 256), (16, 256)])
def test_a_histogram_counts_every_value_once(num_bits, bars):
    values = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    spec = replace(DENSE, num_bits=num_bits)
    (row,) = inspect(replace(model(), tensors={"d/kernel": weight("d/kernel", values, spec)})).rows
    assert len(row.histogram) == bars
    assert sum(row.histogram) == row.elements == 1000
    assert row.lowest == -(2 ** (num_bits - 1))
    if num_bits <= 8:
        assert np.count_nonzero(row.histogram) == row.integers_used


def test_a_histogram_shows_where_the_integers_are():
    tensor = QatTensor("d/kernel", "weight", np.float32([[-7.0, 0.0, 0.0, 7.0]]), np.float32(-7),
                       np.float32(7), replace(CONV, per_axis=False))  # fmt: skip
    (row,) = inspect(replace(model(), tensors={"d/kernel": tensor})).rows
    assert (row.lowest, row.histogram) == (-7, (1, *[0] * 6, 2, *[0] * 6, 1))
    page = render(inspect(replace(model(), tensors={"d/kernel": tensor})))
    assert "3 of 15 integers used; unused: -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6" in page
    bars, marks = re.findall(r'<path class="(?:bar|unused)" d="([^"]*)"', page)
    assert bars.count("M") == 3
    assert marks.count("M") == 12


def test_channels_are_drawn_between_their_ends():
    plot = plots.channels([-1.0, 0.0, None, -2.0], [1.0, 0.0, 3.0, 0.0])
    assert plot.count("<circle") == 1
    assert re.search(r'class="bar" d="([^"]*)"', plot)[1].count("M") == 2
    assert ">1</text>" in plot
    assert ">-2</text>" in plot


def test_many_channels_are_few_elements():
    row = Row("d/kernel", "weight", min=(-1.0,) * 4096, max=(1.0,) * 4096)
    assert plots.channels(row.min, row.max).count("<") < 20
