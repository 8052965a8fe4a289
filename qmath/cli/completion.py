"""What a shell completes: formats and their options, profiles, and names of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from qmath.errors import QmathError

if TYPE_CHECKING:
    from qmath.model import QatModel

__all__ = ["builds", "format_options", "formats", "kept", "keys", "runs"]


def formats(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the formats of an export that begin so."""
    from qmath.exports.registry import formats as known

    return [name for name in known() if name.startswith(incomplete)]


def format_options(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the options of the format on the line, with ``=`` behind; none if it says none."""
    from qmath.exports.registry import exporter_class

    given = context.params
    try:
        kind = exporter_class(given.get("output") or "", given.get("format_"))
    except QmathError:
        return []
    return [f"{name}=" for name in _beginning((o.name for o in kind.options), incomplete)]


def builds(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the builds that begin so."""
    from qmath.kernels.builds import BUILDS

    return _beginning(BUILDS, incomplete)


def runs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return what a run is compared with: profiles that begin so, and files."""
    from qmath.cli.settings import PROFILE

    profiles = map(CompletionItem, _beginning(PROFILE.choices, incomplete))
    return [CompletionItem(incomplete, type="file"), *profiles]  # in bash, if no profile fits


def kept(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the quantized tensors that a run can write, and the word for the model's outputs."""
    model = _model(context)
    return [] if model is None else _beginning(["outputs", *_computed(model)], incomplete)


def keys(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return what has a quantizer, with ``=`` behind: what follows is a value, not a name.

    That are the model's ``QuantizeConfig`` classes, and its tensors.
    """
    model = _model(context)
    if model is None:
        return []
    nodes = model.graph.nodes if model.graph else ()
    configs = {node.layer: node.quantize_config for node in nodes if node.quantize_config}
    found: dict[str, None] = {}
    for name, tensor in model.tensors.items():
        config = configs.get(name.rpartition("/")[0])
        role = "weights" if tensor.role == "weight" else tensor.role
        if config and role in ("weights", "activation", "output"):
            found[f"{config}.{role}"] = None
    return [f"{name}=" for name in _beginning([*found, *model.tensors], incomplete)]


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin so, if a shell takes them as they are."""
    from qmath._text import is_plain

    return [name for name in names if name.startswith(incomplete) and is_plain(name)]


def _computed(model: QatModel) -> list[str]:
    """Return the quantized tensors of a run; without settings, those that would be some."""
    from qmath.integer.api import program_of

    try:
        return [step.name for step in program_of(model).quantized]
    except QmathError:
        roles = ("input", "activation", "output")
        return [name for name, tensor in model.tensors.items() if tensor.role in roles]


def _model(context: click.Context) -> QatModel | None:
    """Return the first model on the line; ``None`` if there is none or it cannot be read."""
    from qmath.readers.loading import load

    # An option without its value ends click's reading, and leaves the rest as it is.
    paths = [*(context.params.get("paths") or ()), *context.args]
    try:
        return load(paths[0]) if paths else None
    except (QmathError, OSError):
        return None
