"""What a model does not say about its quantizers, and how the user can say it."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from qmath.model import QatModel, Role

__all__ = ["MissingSetting", "ask_for_settings", "missing_settings"]


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
    groups: dict[tuple[str, Role, str], list[str]] = {}
    for name, tensor in model.tensors.items():
        if tensor.role != "float" and not tensor.spec.is_complete:
            option, why = tensor.hint or ("", "")
            groups.setdefault((option, tensor.role, why), []).append(name)
    return [
        MissingSetting(option, tuple(names), role, why)
        for (option, role, why), names in groups.items()
    ]


def ask_for_settings(model: QatModel, roles: Set[str]) -> str:
    """Say which settings are missing of tensors of these roles, with the options to paste."""
    missing = [item for item in missing_settings(model) if item.role in roles]
    names = ", ".join(name for item in missing for name in item.tensors)
    options = " ".join(item.option for item in missing)
    reasons = "; ".join(dict.fromkeys(item.why for item in missing if item.why))
    return (
        f"the quantizer settings of {names} are in no file; pass those of your training script: "
        f"{options}{f' ({reasons})' if reasons else ''}"
    )
