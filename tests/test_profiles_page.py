"""The table of docs/profiles.md: every cell names tests, and these are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from qmath.integer.api import PROFILES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
TESTS = dict(re.findall(r"^- \\\[(\w+)\]: `(\S+)`$", PAGE, re.MULTILINE))


def rows():
    table = PAGE[PAGE.index("| operation |") :].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return lines[0], lines[2:]


def test_every_cell_names_a_test():
    head, body = rows()
    assert [name.strip("`") for name in head[1:]] == ["tflite", "xnnpack", "litert", "tflm"]
    assert {name.strip("`") for name in head[1:]} == set(PROFILES) - {"exact", "integer"}
    named = set()
    for row in body:
        assert len(row) == len(head), row
        for cell in row[1:]:
            labels = re.findall(r"\[(\w+)\]", cell)
            assert labels, (row[0], cell)
            named.update(labels)
    assert named == set(TESTS)


@pytest.mark.parametrize("test", TESTS.values())
def test_the_test_exists(test):
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
