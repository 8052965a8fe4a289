"""What `inspect`, `export`, `verify`, `run` and `diff` take: a file, or a loaded model."""

from __future__ import annotations

import os

from qmath.model import QatModel

__all__ = ["as_model"]


def as_model(model: str | os.PathLike[str] | QatModel) -> QatModel:
    """Return `model`, loaded without options if it is a path.

    Examples
    --------
    >>> as_model("reference/samples/question.h5").tensors["conv1/kernel"].spec.num_bits
    4
    """
    if isinstance(model, QatModel):
        return model
    from qmath.readers.loading import load  # needs the extra that reads files

    return load(model)
