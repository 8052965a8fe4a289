"""The text of a function in C: what it declares, then what it does."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

__all__ = ["Body", "struct"]


class Body:
    """The body of a function under construction.

    Attributes
    ----------
    statements : list of str
    """

    def __init__(self) -> None:
        self._declarations: list[str] = []
        self._used: dict[str, int] = {}
        self.statements: list[str] = []

    def static(self, kind: str, value: str, name: str, is_array: bool = False) -> str:
        """Declare a constant that the compiler knows; return its name."""
        return self._declare("static const ", kind, value, name, is_array)

    def local(self, kind: str, value: str, name: str, is_array: bool = False) -> str:
        """Declare a constant that holds addresses in the arena; return its name."""
        return self._declare("const ", kind, value, name, is_array)

    def _declare(self, storage: str, kind: str, value: str, name: str, is_array: bool) -> str:
        number = self._used[name] = self._used.get(name, 0) + 1
        name = name if number == 1 else f"{name}_{number}"
        self._declarations.append(f"{storage}{kind} {name}{'[]' * is_array} = {value};")
        return name

    def text(self, signature: str) -> str:
        """Return the definition of the function."""
        parts = [part for part in (self._declarations, self.statements) if part]
        body = textwrap.indent("\n\n".join("\n".join(part) for part in parts), "    ")
        return f"{signature}\n{{\n{body}\n}}\n"


def struct(fields: Mapping[str, object]) -> str:
    """Return an initializer, with the name of each field, which C++ has no words for."""
    last = len(fields) - 1
    lines = [
        f"{value}{',' * (number < last)} /* {name} */"
        for number, (name, value) in enumerate(fields.items())
    ]
    return "{\n" + "\n".join(textwrap.indent(line, "    ") for line in lines) + "}"


def tensor(arena: str, place: str, size: int, zero_point: int) -> str:
    """Return the initializer of a ``qm_tensor``."""
    return f"{{{arena} + {place}, {size}, {zero_point}}}"


def array(values: Sequence[object]) -> str:
    """Return the initializer of an array, one value to a line."""
    return "{\n    " + ",\n    ".join(map(str, values)) + "}"
