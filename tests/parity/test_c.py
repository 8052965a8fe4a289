"""C programs of models that TFMOT quantized, compiled and run on their test vectors."""

from __future__ import annotations

import pytest

import qmath
from qmath.exports.writing import export
from tests.exports.compiling import compiled, needs_compiler, run

pytest.importorskip("tensorflow_model_optimization")

from reference import models

ISLANDS = {"every_layer", "lazy"}


@needs_compiler
@pytest.mark.parametrize("name", ["every_layer", "residual", "lazy", "w2a2", "w4a8", "w16a16"])
def test_the_integer_model_in_c(tmp_path, name):
    place = tmp_path / "out"
    bundle = export(qmath.from_keras(models.build(name)), place, format="c", packing="lsb")
    assert bool(bundle.program.float_layers) == (name in ISLANDS)
    status, output = run(compiled(place, options=("-O2",)))
    assert status == 0, output
    assert output.endswith(", 2 test vectors\n")
