"""What to tell a user whose file does not hold a quantizer's settings: the option to paste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from qmath._text import as_glob, is_plain, quantizer_option
from qmath.model import Hint, QatTensor
from qmath.readers.records import StoredTensor
from qmath.readers.settings.facts import KINDS
from qmath.readers.settings.ranges import is_mirrored
from qmath.readers.settings.tfmot import ambiguous_bits, class_names, config_chain

__all__ = ["with_hints"]

_MOST_COMPARED = 1000  # tensors; each name that is not plain is compared with all of them
# What to propose for a tensor: the key that its class and role make, a quantizer, and why.
_Proposal = tuple[str, str, str]


def with_hints(
    tensors: Mapping[str, QatTensor], stored: Sequence[StoredTensor]
) -> dict[str, QatTensor]:
    """Return `tensors`, each incomplete one with the option that would complete it.

    One option serves a ``QuantizeConfig`` class and role, unless its tensors need different ones.
    """
    owners = {item.name: item for item in stored}
    widths: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        if tensor.role == "weight" and tensor.spec.num_bits is not None:
            for config in class_names(owners[name].layer)[:1]:
                widths.setdefault(config, set()).add(tensor.spec.num_bits)
    suggested: dict[str, _Proposal] = {}
    answered: set[str] = set()  # keys that also match a tensor whose settings are known
    for name, tensor in tensors.items():
        names = class_names(owners[name].layer)
        role = "weights" if tensor.role == "weight" else tensor.role
        key = f"{names[0]}.{role}" if names else name
        if tensor.role == "float":
            continue
        if tensor.spec.is_complete:
            answered.add(key)
            continue
        known = widths.get(names[0], set()) if names else set()
        suggested[name] = (key, *_suggest(tensor, owners[name], known))
    proposals: dict[str, set[str]] = {}
    for key, quantizer, _ in suggested.values():
        proposals.setdefault(key, set()).add(quantizer)
    shared = {key for key in proposals.keys() - answered if len(proposals[key]) == 1}
    hinted = dict(tensors)
    for name, (key, quantizer, why) in suggested.items():
        keys = (*[key] * (key in shared), name, *_globs(name, tensors, suggested))
        options = (quantizer_option(key, quantizer) for key in keys)
        hinted[name] = replace(tensors[name], hint=Hint(next(filter(None, options), ""), why))
    return hinted


def _globs(
    name: str, tensors: Mapping[str, QatTensor], suggested: Mapping[str, _Proposal]
) -> list[str]:
    """Return a pattern of a name that is not plain, if all that it matches need one quantizer."""
    glob = as_glob(name)
    if glob == name or len(tensors) > _MOST_COMPARED:
        return []
    matched = [suggested.get(other) for other in tensors if fnmatchcase(other, glob)]
    return [glob] if {found and found[1] for found in matched} == {suggested[name][1]} else []


def _suggest(tensor: QatTensor, owner: StoredTensor, widths: set[int]) -> tuple[str, str]:
    """Return a quantizer to propose for a tensor, and where its width comes from."""
    spec = tensor.spec
    chain = config_chain(owner.layer)
    stored = ambiguous_bits(chain[-1]) if chain else None
    name = (class_names(owner.layer) or [""])[0]
    config = name if is_plain(name) else "its config"
    if spec.num_bits is not None:
        num_bits, why = str(spec.num_bits), "the width is known; check narrow_range"
    elif stored is not None:
        num_bits, why = str(stored), f"{config} stores {stored} without saying what for; check it"
    elif len(widths) == 1:
        num_bits = str(*widths)
        why = f"{num_bits} is the width of {config}'s weights; check it"
    else:
        num_bits, why = "N", "N stands for the width"
    is_narrow = (
        tensor.min is not None and tensor.max is not None and is_mirrored(tensor.min, tensor.max)
    )
    flags = {
        "per_axis": spec.per_axis,
        "symmetric": spec.symmetric,
        "narrow_range": spec.narrow_range,
    }
    text = "".join(
        f", {field}={value if isinstance(value, bool) else is_narrow}"
        for field, value in flags.items()
    )
    default = "LastValueQuantizer" if tensor.role == "weight" else "MovingAverageQuantizer"
    kind = spec.quantizer if spec.quantizer in KINDS else default
    return f"{kind}(num_bits={num_bits}{text})", why
