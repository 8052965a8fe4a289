"""Hostile archives and JSON: refused with one error, or read right, in bounded memory and time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.attacks.archives import ATTACKS, READ, ordinary
from tests.attacks.jail import judge


@pytest.mark.once
@pytest.mark.parametrize("isolate", [False, True], ids=["here", "isolated"])
@pytest.mark.parametrize("name", ATTACKS)
def test_attack(tmp_path: Path, name: str, isolate: bool) -> None:
    build, message = ATTACKS[name]
    path = tmp_path / "model.keras"
    build(path)
    outcome, said = judge(path, isolate=isolate)
    assert outcome == "FileFormatError", said
    assert re.search(message, said), said
    assert str(path) in said
    assert len(said) < 2000


@pytest.mark.parametrize("name", READ)
def test_what_is_read_right(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.keras"
    READ[name](path)
    before = set(tmp_path.parent.rglob("*"))
    outcome, said = judge(path)
    assert outcome == "read", said
    assert json.loads(said)[0] == ["d/kernel", "d/post_activation"]
    assert set(tmp_path.parent.rglob("*")) == before


def test_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    ordinary(path)
    content = path.read_bytes()
    for size in range(0, len(content), len(content) // 10):
        path.write_bytes(content[:size])
        assert judge(path).outcome == "FileFormatError", size
