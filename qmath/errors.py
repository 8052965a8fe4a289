"""The errors and warnings of qmath: one family, each message naming the remedy."""

from __future__ import annotations

__all__ = [
    "ContradictionError",
    "FileFormatError",
    "MissingExtraError",
    "MissingSettingsError",
    "OutputError",
    "QmathError",
    "QmathWarning",
    "VerificationError",
]


class QmathError(ValueError):
    """Base class of every error that qmath raises on bad input."""


class FileFormatError(QmathError):
    """A file is damaged, hostile, or not one that Keras or TensorFlow wrote."""


class MissingSettingsError(QmathError):
    """A tensor's quantizer settings are in no file; the message says how to supply them."""


class ContradictionError(QmathError):
    """Two sources disagree about a tensor's quantizer; the message shows both."""


class MissingExtraError(QmathError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class OutputError(QmathError):
    """An output cannot be written; what was there before is untouched."""


class VerificationError(QmathError):
    """An exported file does not hold what the model says."""


class QmathWarning(UserWarning):
    """TFMOT does something its documentation does not say, and qmath reproduces it."""
