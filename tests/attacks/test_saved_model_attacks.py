"""Hostile SavedModels: refused with one error, within bounded memory and time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.jail import judge
from tests.readers.test_saved_model import ATTACKS, SMALL, edit  # noqa: F401 (a fixture)


@pytest.mark.parametrize(
    ("attack", "said"), ATTACKS.items(), ids=lambda x: getattr(x, "__name__", None)
)
def test_attack(edit: Callable[..., Path], attack: Callable[..., object], said: str) -> None:  # noqa: F811
    outcome, words = judge(edit(SMALL / "keras_saved", attack))
    assert outcome == "FileFormatError", words
    assert re.search(said, words), words


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "keras_metadata.pb", "variables/variables.index"]
)
def test_a_file_without_end(tmp_path: Path, name: str) -> None:
    """A hole of a terabyte takes no room on the disk."""
    copy = tmp_path / "model"
    shutil.copytree(SMALL / "keras_saved", copy)
    with open(copy / name, "r+b") as file:
        file.truncate(1 << 40)
    outcome, words = judge(copy)
    assert outcome == "FileFormatError", words
    assert name.rpartition("/")[2] in words
