"""Every statement about a tensor's quantizer, from file and user → one `QuantSpec`.

Statements are `Fact`s. `SOURCES` ranks where they come from; if any two of them differ, that is
an error that shows both, never a choice made in silence. Only a graph, which is what runs, wins
over a config, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from qmath._text import as_glob, is_plain
from qmath.errors import ContradictionError, QmathError
from qmath.model import QatTensor, QuantSpec, Role
from qmath.readers import notes as words
from qmath.readers.architecture.config import LayerFacts
from qmath.readers.records import ASKED, SOURCES, Fact, StoredTensor
from qmath.readers.settings.checking import check_quantizers
from qmath.readers.settings.facts import is_width, quantizer_facts, settings_of
from qmath.readers.settings.hints import with_hints
from qmath.readers.settings.own import apply_own, is_own
from qmath.readers.settings.ranges import (
    is_mirrored,
    ratio_facts,
    shape_facts,
    trained_channels,
    width_from_ratio,
)
from qmath.readers.settings.tfmot import (
    activation_ranges,
    class_names,
    config_chain,
    config_facts,
    is_custom,
    is_never_called,
)

__all__ = ["resolve"]

_CLASS_KEY = re.compile(r"(?P<config>.+)\.(?P<role>weight|activation|output)s?")
_RAN = (ASKED, "recovered from the values", "graph")
FORCED = "user, forced"
ASSUMED = "assumed: TFMOT's own quantizer"
# What can be told of a tensor without a range.
_STATELESS = ("FixedQuantizer", "NoQuantizer")
_FIELDS = ("op", "quantizer", "num_bits", "per_axis", "symmetric", "narrow_range")


def resolve(
    stored: Sequence[StoredTensor],
    quantizers: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    layers: Sequence[LayerFacts] = (),
) -> tuple[dict[str, QatTensor], list[str]]:
    """Turn what is stored into tensors with settings and provenance.

    Parameters
    ----------
    stored : sequence of StoredTensor
        All tensors of a model.
    quantizers : mapping, optional
        What the user says, as in `qmath.load`.
    force : bool, optional
        Let the user win over what the file proves, instead of raising.
    layers : sequence of LayerFacts, optional
        All layers of the model, also those without variables.

    Returns
    -------
    tensors : dict of str to QatTensor
    notes : list of str

    Raises
    ------
    ContradictionError
        Two sources disagree.
    FileFormatError
        A quantizer in the file has an argument that none can have.
    QmathError
        A key of `quantizers` matches nothing, or two that disagree match one tensor.
    """
    check_quantizers(layers)
    stored, user, notes = match_user_settings(stored, quantizers or {}, layers)
    weights: dict[str, list[str]] = {}
    for item in stored:
        if item.role == "weight":
            weights.setdefault(item.layer.path, []).append(item.weight)
    tensors: dict[str, QatTensor] = {}
    for item in stored:
        spec = QuantSpec()
        provenance: dict[str, str] = {}
        if item.role != "float":
            facts = [*item.facts, *shape_facts(item), *user.get(item.name, ())]
            if not _is_live(item):
                facts += config_facts(
                    item.layer, item.role, item.weight, weights.get(item.layer.path, ())
                )
                facts += ratio_facts(item, facts)
            spec, provenance = _decide(item, facts, force, notes)
            if not _is_shown(facts):
                provenance["quantizer"] = ASSUMED
            if spec.quantizer == "NoQuantizer":  # the user forced it
                if item.values is None:  # without its quantizer, an activation is no tensor
                    continue
                item = replace(item, role="float", min=None, max=None)
        elif item.own and not user.get(item.name):
            notes.append(words.own_quantizer(item.name, item.own))
        tensors[item.name] = QatTensor(
            item.name,
            item.role,
            item.values,
            item.min,
            item.max,
            spec,
            provenance,
            stored=item.stored,
            recovered=item.recovered,
        )
    assumed = [name for name, t in tensors.items() if t.provenance.get("quantizer") == ASSUMED]
    if assumed:
        owners = {i.name: class_names(i.layer)[:1] for i in stored}
        configs = dict.fromkeys(config for name in assumed for config in owners[name])
        notes.append(words.assumed(assumed, list(configs)))
    unseen = _unseen_places(stored, tensors)
    if unseen:
        notes.append(words.unseen_places(unseen))
    return with_hints(tensors, stored), notes


def _unseen_places(stored: Sequence[StoredTensor], tensors: Mapping[str, QatTensor]) -> list[str]:
    """Return where a user's own config may quantize, and neither a range nor a graph shows it."""
    if any(fact.source == "graph" or _is_live(item) for item in stored for fact in item.facts):
        return []
    layers = {item.layer.path: item.layer for item in stored if item.layer.kind == "wrapper"}
    found = []
    for path, layer in layers.items():
        chain = config_chain(layer)
        if not chain or not is_custom(chain[-1]):
            continue
        if not {f"{path}/pre_activation", f"{path}/post_activation"} & tensors.keys():
            found.append(f"{path}/post_activation")
        if f"{path}/output" not in tensors:
            found.append(f"{path}/output")
    return found


def match_user_settings(
    stored: Sequence[StoredTensor], quantizers: Mapping[str, Any], layers: Sequence[LayerFacts] = ()
) -> tuple[list[StoredTensor], dict[str, list[Fact]], list[str]]:
    """Match what the user says to tensors.

    Parameters
    ----------
    stored : sequence of StoredTensor
        All tensors of a model.
    quantizers : mapping of str to quantizer
        By ``QuantizeConfig`` class and role (``MyConfig.weights``), or by tensor glob.
    layers : sequence of LayerFacts
        All layers of the model.

    Returns
    -------
    stored : list of StoredTensor
        The same; float tensors that the user gives a `FixedQuantizer` have its range, and so have
        activations and outputs, of which it leaves no variable.
    facts : dict of str to list of Fact
        By tensor name.
    notes : list of str

    Raises
    ------
    QmathError
        A value is no quantizer, a key matches nothing, or two that differ match one tensor.
    """
    items = {item.name: item for item in stored}
    facts: dict[str, list[Fact]] = {}
    keys: dict[str, str] = {}
    notes: list[str] = []
    for key, quantizer in quantizers.items():
        if is_own(quantizer):
            matched = _apply_own(key, quantizer, items, facts, keys)
            notes += [] if matched else [words.unused_option(key)]
            continue
        settings = settings_of(quantizer)
        is_fixed = settings.kind == "FixedQuantizer"
        width = settings.arguments.get("num_bits")
        if settings.kind is None or not (
            is_fixed or settings.kind == "NoQuantizer" or is_width(width)
        ):
            raise QmathError(
                f"quantizers[{key!r}] is {quantizer!r}; it takes one of qmath's "
                f"quantizers, of 2 to 16 bits"
            )
        ends = [settings.arguments.get(end) for end in ("init_min", "init_max")]
        if is_fixed and not all(isinstance(x, (int, float)) and abs(x) < 3e38 for x in ends):
            raise QmathError(
                f"quantizers[{key!r}] is {quantizer!r}; its init_min and init_max must be finite "
                "numbers"
            )
        stated = quantizer_facts(settings, "user", f"your quantizers[{key!r}] says")
        if is_fixed:
            items = _with_unstored(key, items, layers, ends)
        matches = _matches(key, list(items.values()), settings.kind)
        if not matches:
            notes.append(words.unused_option(key))
        for name in matches:
            if name in keys and _contents(facts[name]) != _contents(stated):
                raise _two_keys(name, keys[name], key)
            keys[name], facts[name] = key, stated
            if is_fixed and items[name].role == "float":
                items[name] = replace(
                    items[name],
                    role="weight",
                    is_stored=False,
                    min=np.asarray(ends[0], np.float32),
                    max=np.asarray(ends[1], np.float32),
                )
            if is_fixed and width != 8:
                notes.append(words.fixed_bits(name, width))
    return list(items.values()), facts, notes


def _apply_own(
    key: str, quantizer: Any, items: dict[str, StoredTensor], facts: dict[str, list[Fact]],
    keys: dict[str, str],
) -> list[str]:  # fmt: skip
    """Apply a quantizer of qmath's own to the tensors that its key means; return their names."""
    matches = _matches(key, list(items.values()), "FixedQuantizer")
    for name in matches:
        if name in keys:
            raise _two_keys(name, keys[name], key)
        says = f"your quantizers[{key!r}] says"
        items[name], facts[name] = apply_own(items[name], quantizer, says, items)
        keys[name] = key
    return matches


def _two_keys(name: str, one: str, other: str) -> QmathError:
    return QmathError(
        f"{name}: quantizers[{one!r}] and quantizers[{other!r}] both match it and differ; make one "
        f"of them narrower"
    )


def _with_unstored(
    key: str, items: dict[str, StoredTensor], layers: Sequence[LayerFacts], ends: Sequence[Any]
) -> dict[str, StoredTensor]:
    """Return all tensors with those that a key means of activations that left no variable."""
    parts = _CLASS_KEY.fullmatch(key)
    low, high = (np.asarray(end, np.float32) for end in ends)
    found: dict[str, list[StoredTensor]] = {}
    for layer in {
        item.path: item for item in (*layers, *(i.layer for i in items.values()))
    }.values():
        chain = config_chain(layer)
        if layer.kind != "wrapper" or (chain and not is_custom(chain[-1])):
            continue
        for name in (*(activation_ranges(layer) or ("post_activation",)), "output"):
            role: Role = "output" if name == "output" else "activation"
            item = StoredTensor(layer, name, None, low, high, role, is_stored=False)
            is_meant = item.name == key or (
                parts and parts["role"] == role and parts["config"] in class_names(layer)
            )
            if is_meant and item.name not in items and not is_never_called(layer, name):
                found.setdefault(layer.path, []).append(item)
    if parts and any(i.role == parts["role"] and parts["config"] in class_names(i.layer)
                     for i in items.values()):  # fmt: skip
        return items
    last = {item.layer.path: name for name, item in items.items()}
    whole: dict[str, StoredTensor] = {}
    for name, item in items.items():
        whole[name] = item
        if last[item.layer.path] == name:
            whole |= {new.name: new for new in found.pop(item.layer.path, [])}
    return whole | {new.name: new for rest in found.values() for new in rest}


def _contents(facts: Sequence[Fact]) -> set[tuple[str, Any]]:
    return {(fact.field, fact.value) for fact in facts}


def _matches(key: str, stored: Sequence[StoredTensor], kind: str) -> list[str]:
    """Return the tensors a key means, by ``QuantizeConfig`` class and role, or by glob.

    None, if the class is there and has no such tensor: one option serves several containers.
    """
    is_fixed = kind == "FixedQuantizer"
    quantized = [item for item in stored if item.role != "float"]
    own = [item for item in stored if item.own] if kind in _STATELESS else []
    parts = _CLASS_KEY.fullmatch(key)
    names = [
        item.name
        for role, item in [*((i.role, i) for i in quantized), *(("weight", i) for i in own)]
        if parts and role == parts["role"] and parts["config"] in class_names(item.layer)
    ]
    names = names or [
        item.name
        for item in ([i for i in stored if not i.stored] if is_fixed else [*quantized, *own])
        if item.name == key or fnmatchcase(item.name, key)
    ]
    if names:
        return names
    if parts and any(parts["config"] in class_names(item.layer) for item in stored):
        return []
    classes = sorted({name for item in stored for name in class_names(item.layer)[:1]})
    tensors = [item.name if is_plain(item.name) else as_glob(item.name) for item in quantized]
    floats = any(item.name == key or fnmatchcase(item.name, key) for item in stored)
    raise QmathError(
        f"quantizers[{key!r}] matches {'only float tensors' if floats else 'nothing'}: there are "
        f"the QuantizeConfig classes {_listed([*filter(is_plain, classes)])} (say Class.weights, "
        f"Class.activation or Class.output) and the quantized tensors {_listed(tensors)}"
    )


def _listed(names: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _is_shown(facts: Sequence[Fact]) -> bool:
    """Tell whether a source shows which quantizer used a range: the class, or what ran."""
    return any(fact.field == "quantizer" or fact.source in _RAN for fact in facts)


def _is_live(item: StoredTensor) -> bool:
    """Tell whether a live quantizer speaks for a tensor."""
    return any(fact.source == ASKED for fact in item.facts)


def _decide(
    item: StoredTensor, facts: Sequence[Fact], force: bool, notes: list[str]
) -> tuple[QuantSpec, dict[str, str]]:
    """Let the first source of each field state it, and every other agree."""
    chosen: dict[str, Fact] = {}
    provenance: dict[str, str] = {}
    for field in _FIELDS:
        claims = sorted(
            (fact for fact in facts if fact.field == field),
            key=lambda fact: SOURCES.index(fact.source),
        )
        if not claims:
            continue
        best = claims[0]
        if field == "symmetric" and {c.source for c in claims} == {"user", "range ratio"}:
            # Inference does not depend on it, and a ratio may be chance.
            if any(claim.value != best.value for claim in claims):
                provenance[field] = FORCED
            claims = claims[:1]
        if best.source == "graph":
            overruled = [c for c in claims if c.source == "config" and c.value != best.value]
            notes += [
                words.overruled(item.name, field, best.says, best.value, c.says, c.value)
                for c in overruled
            ]
            claims = [claim for claim in claims if claim not in overruled]
        if any(claim.value != best.value for claim in claims):
            best = next((claim for claim in claims if claim.source == "user"), best)
            _contradict(item.name, best, [c for c in claims if c.value != best.value], force, notes)
            if best.source == "user":
                provenance[field] = FORCED
        chosen[field] = best
    values = {field: fact.value for field, fact in chosen.items()}
    if values.get("op") == "none":
        del values["op"]
    spec = QuantSpec(**values)
    _check_symmetry(item, spec, chosen, force, notes)
    sources = {field: fact.source for field, fact in chosen.items()} | provenance
    return spec, {field: source for field, source in sources.items() if field != "op"}


def _check_symmetry(
    item: StoredTensor, spec: QuantSpec, chosen: Mapping[str, Fact], force: bool, notes: list[str]
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
    _contradict(item.name, chosen["symmetric"], [range_says], force, notes)


def _contradict(
    name: str, best: Fact, rivals: Sequence[Fact], force: bool, notes: list[str]
) -> None:
    claims = [f"{fact.says} {fact.field} is {fact.value}" for fact in (best, *rivals)]
    if not force:
        remedy = (
            "correct your setting"
            if best.source == "user"
            else "the file was edited, or trained with other settings than it says"
        )
        raise ContradictionError(
            f"{name}: {', but '.join(claims)}; {remedy}, or pass force=True "
            f"(--force) to let the first win"
        )
    notes.append(words.forced(name, best.field, claims[0], " and ".join(claims[1:])))
