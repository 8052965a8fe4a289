"""Every statement about a tensor's quantizer, from file and user → one `QuantSpec`.

Statements are `Fact`s. `SOURCES` ranks where they come from; if any two of them differ, that is
an error that shows both, never a choice made in silence. Only a graph, which is what runs, wins
over a config, with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qmath.errors import ContradictionError
from qmath.model import QatTensor, QuantSpec
from qmath.readers import notes
from qmath.readers.settings.facts import SOURCES, Fact, Found
from qmath.readers.settings.hints import with_hints
from qmath.readers.settings.ratio import is_mirrored, trained_channels, width_from_ratio
from qmath.readers.settings.tfmot import config_facts
from qmath.readers.settings.user import hear

__all__ = ["settle"]

_FIELDS = ("op", "quantizer", "num_bits", "per_axis", "symmetric", "narrow_range")


def settle(
    found: Sequence[Found], quantizers: Mapping[str, Any] | None = None, *, force: bool = False
) -> tuple[dict[str, QatTensor], list[str]]:
    """Turn what was found into tensors with settings and evidence.

    Parameters
    ----------
    found : sequence of Found
        All tensors of a model.
    quantizers : mapping, optional
        What the user says, as in `qmath.load`.
    force : bool, optional
        Let the user win over what the file proves, instead of raising.

    Returns
    -------
    tensors : dict of str to QatTensor
    notes : list of str

    Raises
    ------
    ContradictionError
        Two sources disagree.
    QmathError
        A key of `quantizers` matches nothing, or two that disagree match one tensor.
    """
    found, user, told = hear(found, quantizers or {})
    weights: dict[str, list[str]] = {}
    for item in found:
        if item.role == "weight":
            weights.setdefault(item.layer.path, []).append(item.weight)
    tensors: dict[str, QatTensor] = {}
    for item in found:
        spec = QuantSpec()
        evidence: dict[str, str] = {}
        if item.role != "float":
            facts = [*item.facts, *_shape_facts(item), *user.get(item.name, ())]
            if not _is_live(item):
                facts += config_facts(
                    item.layer, item.role, item.weight, weights.get(item.layer.path, ())
                )
                facts += _ratio_facts(item, facts)
            spec, evidence = _decide(item, facts, force, told)
            if spec.quantizer == "NoQuantizer":  # the user forced it
                if item.values is None:  # without its quantizer, an activation is no tensor
                    continue
                item = replace(item, role="float", min=None, max=None)
        tensors[item.name] = QatTensor(
            item.name,
            item.role,
            item.values,
            item.min,
            item.max,
            spec,
            evidence,
            stored=item.stored,
        )
    return with_hints(tensors, found), told


def _is_live(item: Found) -> bool:
    """Tell whether a live quantizer speaks for a tensor."""
    return any(fact.source == "live quantizer" for fact in item.facts)


def _shape_facts(item: Found) -> list[Fact]:
    """Return what it means that a range is stored: a quantizer with variables, of that shape."""
    if item.min is None or not item.is_stored:
        return []
    says = f"its stored range, of shape {item.min.shape}, says"
    return [
        Fact("op", "vars", "range shape", says),
        Fact("per_axis", item.min.ndim == 1, "range shape", says),
    ]


def _ratio_facts(item: Found, facts: Iterable[Fact]) -> list[Fact]:
    """Return what the ratio of a weight's range proves, unless another quantizer left it."""
    if (
        item.role != "weight"
        or item.min is None
        or item.max is None
        or not item.is_stored
        or any(fact.field == "quantizer" and fact.value != "LastValueQuantizer" for fact in facts)
    ):
        return []
    num_bits = width_from_ratio(item.min, item.max)
    if num_bits is None:
        return []
    says = f"its stored range, with max/-min = {2**num_bits - 2}/{2**num_bits}, says"
    values = {"num_bits": num_bits, "narrow_range": False, "symmetric": True}
    ratio = [Fact(field, value, "range ratio", says) for field, value in values.items()]
    # What a graph runs is certain, so a range that looks like another width's is so by chance.
    run = {fact.field: fact.value for fact in facts if fact.source == "graph"}
    return ratio if all(run.get(fact.field, fact.value) == fact.value for fact in ratio) else []


def _decide(
    item: Found, facts: Sequence[Fact], force: bool, told: list[str]
) -> tuple[QuantSpec, dict[str, str]]:
    """Let the first source of each field state it, and every other agree."""
    chosen: dict[str, Fact] = {}
    for field in _FIELDS:
        claims = sorted(
            (fact for fact in facts if fact.field == field),
            key=lambda fact: SOURCES.index(fact.source),
        )
        if not claims:
            continue
        best = claims[0]
        if best.source == "graph":
            overruled = [c for c in claims if c.source == "config" and c.value != best.value]
            told += [
                notes.overruled(item.name, field, best.says, best.value, c.says, c.value)
                for c in overruled
            ]
            claims = [claim for claim in claims if claim not in overruled]
        if any(claim.value != best.value for claim in claims):
            best = next((claim for claim in claims if claim.source == "user"), best)
            _contradict(item.name, best, [c for c in claims if c.value != best.value], force, told)
        chosen[field] = best
    values = {field: fact.value for field, fact in chosen.items()}
    if values.get("op") == "none":
        del values["op"]
    spec = QuantSpec(**values)
    _check_symmetry(item, spec, chosen, force, told)
    return spec, {field: fact.source for field, fact in chosen.items() if field != "op"}


def _check_symmetry(
    item: Found, spec: QuantSpec, chosen: Mapping[str, Fact], force: bool, told: list[str]
) -> None:
    """Raise if a symmetric `LastValueQuantizer` cannot have left the stored range."""
    if (
        spec.quantizer != "LastValueQuantizer"
        or not spec.symmetric
        or _is_live(item)
        or chosen["symmetric"].source == "graph"
        or spec.narrow_range is None
        or spec.num_bits is None
        or item.min is None
        or item.max is None
    ):
        return
    if not trained_channels(item.min, item.max)[0].size:
        return
    ratio = 1.0 if spec.narrow_range else 1 - 2.0 ** (1 - spec.num_bits)
    if (
        is_mirrored(item.min, item.max)
        if spec.narrow_range
        else (width_from_ratio(item.min, item.max) == spec.num_bits)
    ):
        return
    low, high = np.atleast_1d(item.min), np.atleast_1d(item.max)
    worst = int(np.argmax(np.abs(low * ratio + high)))
    range_says = Fact(
        "symmetric",
        f"not True: {low[worst]} to {high[worst]} is not max/-min = {ratio}",
        "range ratio",
        "its stored range says",
    )
    _contradict(item.name, chosen["symmetric"], [range_says], force, told)


def _contradict(
    name: str, best: Fact, rivals: Sequence[Fact], force: bool, told: list[str]
) -> None:
    said = [f"{fact.says} {fact.field} is {fact.value}" for fact in (best, *rivals)]
    if not force:
        remedy = (
            "correct your setting"
            if best.source == "user"
            else "the file was edited, or trained with other settings than it says"
        )
        raise ContradictionError(
            f"{name}: {', but '.join(said)}; {remedy}, or pass force=True "
            f"(--force) to let the first win"
        )
    told.append(notes.forced(name, best.field, said[0], " and ".join(said[1:])))
