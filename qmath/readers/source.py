"""What `inspect`, `export`, `verify`, `run` and `diff` take: a file, or a model in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qmath.errors import QmathError
from qmath.model import QatModel

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer


def as_model(
    model: str | os.PathLike[str] | QatModel,
    quantizers: Mapping[str, Quantizer] | None,
    *,
    force: bool = False,
    architecture: str | os.PathLike[str] | None = None,
    isolate: bool = False,
) -> QatModel:
    """Return `model`, loaded with `quantizers` and `architecture` if it is a path."""
    if isinstance(model, QatModel):
        refuse_file_options(quantizers, architecture, isolate)
        return model
    from qmath.readers.loading import load  # needs the extra that reads files

    return load(model, quantizers, force=force, architecture=architecture, isolate=isolate)


def refuse_file_options(
    quantizers: Mapping[str, Quantizer] | None,
    architecture: str | os.PathLike[str] | None,
    isolate: bool,
) -> None:
    """Raise if something is given that only the reading of a file could heed."""
    if quantizers or architecture is not None or isolate:
        raise QmathError(
            "quantizers, architecture and isolate apply to a file: give its path, or pass them "
            "to qmath.load"
        )
