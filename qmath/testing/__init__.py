"""Tests for other people's code: what a format of another package has to do."""

from __future__ import annotations

from qmath.testing.exporters import check_exporter, sample_models

__all__ = ["check_exporter", "sample_models"]
