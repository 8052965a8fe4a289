"""The arithmetic profiles by name."""

from __future__ import annotations

import inspect
from typing import Any

from qmath.errors import QmathError
from qmath.integer.profiles.profiles import Exact, Integer, Profile
from qmath.integer.profiles.tflite import Tflite, Xnnpack

__all__ = ["PROFILES", "profile_named"]

PROFILES: dict[str, type[Any]] = {
    "exact": Exact,
    "integer": Integer,
    "tflite": Tflite,
    "xnnpack": Xnnpack,
}


def profile_named(name: str, **options: Any) -> Profile:
    """Return a profile by its name, with its options.

    Raises
    ------
    QmathError
        There is no such profile, or it has no such option.

    Examples
    --------
    >>> profile_named("integer", multiplier_bits=16)
    Integer(multiplier_bits=16)
    """
    if name not in PROFILES:
        raise QmathError(f"there is no profile {name!r}; use one of: {', '.join(PROFILES)}")
    for option in options:
        if option not in inspect.signature(PROFILES[name]).parameters:
            raise QmathError(f"the profile {name!r} has no option {option!r}")
    profile: Profile = PROFILES[name](**options)
    return profile
