"""What a shell completes: the names of formats, and of a model's tensors and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from qmath.errors import QmathError

__all__ = ["formats", "keys", "tensors"]

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def formats(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the formats of an export that begin so."""
    from qmath.exports.registry import formats as known

    return [name for name in known() if name.startswith(incomplete)]


def tensors(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the model's tensors whose name begins so, if a shell takes the name as it is."""
    return _beginning(_tensors(context), incomplete)


def keys(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the same with ``=`` behind: what follows is a value, not a name."""
    return [f"{name}=" for name in _beginning(_tensors(context), incomplete)]


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    from qmath._text import is_plain

    return [name for name in names if name.startswith(incomplete) and is_plain(name)]


def _tensors(context: click.Context) -> list[str]:
    """Return the names of the first model on the line; none if it cannot be read."""
    from qmath.readers.loading import load

    # An option without its value ends click's reading, and leaves the rest as it is.
    paths = [*(context.params.get("paths") or ()), *context.args]
    try:
        return [name for path in paths[:1] for name in load(path).tensors]
    except (QmathError, OSError):
        return []
