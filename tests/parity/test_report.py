"""`inspect` and `run` agree on what TFMOT left float, on models that TFMOT quantized."""

from __future__ import annotations

import pytest

import qmath
from qmath.inspection.report import inspect
from qmath.integer.lowering.lower import lower
from reference import models

NAMES = ("every_layer", "annotated", "lazy", "reduction", "nested", "w4a8")


@pytest.mark.parametrize("name", NAMES)
def test_the_report_says_what_the_program_is(name):
    source = qmath.from_keras(models.build(name))
    float_layers = lower(source).float_layers
    layers = {node.name: node.layer for node in source.graph.nodes}
    report = inspect(source)
    assert report.verdict.integer_only is not bool(float_layers)
    found = [item for item in report.warnings if item.kind.startswith("float-")]
    assert {item.where for item in found} == {layers[name] for name in float_layers}
    assert all(item.remedy for item in found)
