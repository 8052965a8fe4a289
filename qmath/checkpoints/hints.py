"""What to tell a user whose file does not hold a quantizer's settings: the option to paste."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qmath.checkpoints.facts import KINDS, Found
from qmath.checkpoints.quantize_configs import ambiguous_bits, class_names, config_chain
from qmath.checkpoints.ratio import is_mirrored
from qmath.types import QatModel, QatTensor, Role

__all__ = ["MissingSetting", "missing_settings", "with_hints"]

_HINT = "Pass the settings of your training script: "


class MissingSetting(NamedTuple):
    """Settings that the user has to supply, and the option that supplies them.

    Attributes
    ----------
    option : str
        What to paste: ``--quantizer 'MyConfig.activation=MovingAverageQuantizer(…)'``.
    tensors : tuple of str
        Names of the tensors it is for, all of one `role`.
    role : str
        As in `QatTensor`.
    why : str
        Where the suggested width comes from.
    """

    option: str
    tensors: tuple[str, ...]
    role: Role
    why: str


def missing_settings(model: QatModel) -> list[MissingSetting]:
    """List what no source says about a model's quantized tensors, by the option that says it.

    Parameters
    ----------
    model : QatModel
        From `qmath.load` or `qmath.from_keras`.

    Returns
    -------
    list of MissingSetting
        In the model's order; empty if everything is known.
    """
    groups: dict[tuple[str, Role], list[str]] = {}
    for name, tensor in model.tensors.items():
        if tensor.role != "float" and not tensor.spec.is_complete:
            groups.setdefault((tensor.hint, tensor.role), []).append(name)
    found = []
    for (hint, role), names in groups.items():
        option, _, why = hint.removeprefix(_HINT).rpartition(" (")
        found.append(MissingSetting(option, tuple(names), role, why.removesuffix(")")))
    return found


def with_hints(tensors: Mapping[str, QatTensor], found: Sequence[Found]) -> dict[str, QatTensor]:
    """Return `tensors`, each incomplete one with the option that would complete it.

    One option serves a ``QuantizeConfig`` class and role, unless its tensors need different ones.
    """
    owners = {item.name: item for item in found}
    widths: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        if tensor.role == "weight" and tensor.spec.num_bits is not None:
            for config in class_names(owners[name].layer)[:1]:
                widths.setdefault(config, set()).add(tensor.spec.num_bits)
    suggested: dict[str, tuple[str, str, str]] = {}
    for name, tensor in tensors.items():
        if tensor.role == "float" or tensor.spec.is_complete:
            continue
        names = class_names(owners[name].layer)
        role = "weights" if tensor.role == "weight" else tensor.role
        suggested[name] = (
            f"{names[0]}.{role}" if names else name,
            *_suggest(tensor, owners[name], widths.get(names[0], set()) if names else set()),
        )
    hinted = dict(tensors)
    for name, (key, quantizer, why) in suggested.items():
        proposals = {other[1] for other in suggested.values() if other[0] == key}
        option = shlex.quote(f"{key if len(proposals) == 1 else name}={quantizer}")
        hinted[name] = replace(tensors[name], hint=f"{_HINT}--quantizer {option} ({why})")
    return hinted


def _suggest(tensor: QatTensor, owner: Found, widths: set[int]) -> tuple[str, str]:
    """Return a quantizer to propose for a tensor, and where its width comes from."""
    spec = tensor.spec
    chain = config_chain(owner.layer)
    stored = ambiguous_bits(chain[-1]) if chain else None
    config = (class_names(owner.layer) or [""])[0]
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
    arguments: dict[str, Any] = {
        "num_bits": num_bits,
        "per_axis": spec.per_axis,
        "symmetric": spec.symmetric,
        "narrow_range": spec.narrow_range,
    }
    text = ", ".join(
        f"{field}={is_narrow if value is None else value}" for field, value in arguments.items()
    )
    default = "LastValueQuantizer" if tensor.role == "weight" else "MovingAverageQuantizer"
    kind = spec.quantizer if spec.quantizer in KINDS else default
    return f"{kind}({text})", why
