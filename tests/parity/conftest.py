"""The parity part needs TensorFlow and TFMOT, the `reference` extra; without them it skips."""

import pytest

pytest.importorskip("tensorflow", reason="the parity tests need the `reference` extra")
pytest.importorskip("tensorflow_model_optimization", reason="needs the `reference` extra")
