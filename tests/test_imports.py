"""Importing and using the core loads neither TensorFlow, Keras nor any extra."""

from __future__ import annotations

import subprocess
import sys

FOREIGN = {
    "tensorflow", "keras", "tf_keras", "tensorflow_model_optimization", "h5py", "google.protobuf",
    "google_crc32c", "onnx", "flatbuffers", "click", "rich", "hypothesis", "jax", "torch", "scipy",
    "qmath.engine",
}  # fmt: skip
USE = """
import numpy as np, qmath
q = qmath.quantize(np.ones((2, 3)), [-1, -1, -1], [1, 1, 1], 4, per_axis=True)
q.dequantize()
qmath.fake_quant_with_min_max_vars_gradient([1.0], [2.0], -1, 1)
quantizer = qmath.MovingAverageQuantizer(8, False, False, False)
quantizer(np.ones(3), True, quantizer.build())
"""


def foreign_modules(code: str) -> set[str]:
    """Return which foreign modules a fresh interpreter has loaded after running `code`."""
    report = f"\nimport sys; print(*set({sorted(FOREIGN)!r}) & sys.modules.keys())"
    run = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_the_core_loads_nothing_foreign() -> None:
    assert foreign_modules(USE) == set()


def test_this_test_can_fail() -> None:
    assert foreign_modules("import sys; sys.modules['h5py'] = sys") == {"h5py"}


def test_every_public_name_exists() -> None:
    import qmath

    assert [name for name in qmath.__all__ if not hasattr(qmath, name)] == []
    assert set(qmath.__all__) <= set(dir(qmath))
