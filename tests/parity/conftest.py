"""The parity part needs TensorFlow and TFMOT, the `reference` extra; without them it skips."""

import os

import coverage
import pytest

pytest.importorskip("tensorflow", reason="the parity tests need the `reference` extra")
pytest.importorskip("tensorflow_model_optimization", reason="needs the `reference` extra")


@pytest.fixture(scope="session", autouse=True)
def unmeasured() -> None:
    """Measure no coverage from here on: these tests come last, and TensorFlow would be slow."""
    if measured := coverage.Coverage.current():
        measured.stop()
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        os.environ.pop(name, None)
