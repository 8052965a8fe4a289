"""The rules of the house: imports run one way, without circles, between rooms of bearable size."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import qmath

ROOT = Path(qmath.__file__).parent

# From the ground up. A room imports those of its own row, if no circle results, and of lower rows.
# `qmath` itself, the file that hands on the public names, stands where others may import it from.
FLOORS = (
    ("errors", "_version", "_progress", "_text", "kernels"),
    ("quantizers", "containers", "model", "layers", "tf"),
    ("readers",),
    ("integer",),
    ("exports",),
    ("verification", "inspection", "engine"),
    ("qmath",),
    ("testing",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_LOOSE_MODULES = 6
MOST_LINES = 500

# What breaks a rule today, and why. Whoever mends it takes it out: what is not broken fails, too.
KNOWN: Mapping[str, str] = {}

Arrows = dict[str, set[str]]


def modules_in(root: Path) -> dict[str, Path]:
    """Return the modules of a package by name, a folder's `__init__` under the folder's."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_for_types(test: ast.expr) -> bool:
    """Tell whether this is `TYPE_CHECKING`, under which nothing is imported when the code runs."""
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def imports_in(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield what code imports anywhere, functions included, `from a import b` as `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written with the whole path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and is_for_types(node.test):
            yield from imports_in(node.orelse)
        else:
            yield from imports_in(ast.iter_child_nodes(node))


def arrows_of(sources: Mapping[str, str]) -> Arrows:
    """Return which of these modules each one imports."""
    arrows: Arrows = {}
    for module, source in sources.items():
        targets = set()
        for name in imports_in([ast.parse(source)]):
            if name not in sources:  # something that the module before the last dot holds
                name = name.rpartition(".")[0]
            if name in sources:
                targets.add(name)
        arrows[module] = targets - {module}
    return arrows


def between_children(arrows: Arrows, folder: str) -> Arrows:
    """Return the arrows between what lies in a folder: files, folders, and its own `__init__`."""

    def child(module: str) -> str:
        rest = module.removeprefix(f"{folder}.")
        return "__init__" if module == folder else rest.partition(".")[0]

    inside = [name for name in arrows if name == folder or name.startswith(f"{folder}.")]
    found: Arrows = {child(name): set() for name in inside}
    for name in inside:
        found[child(name)] |= {child(other) for other in arrows[name] if other in inside}
    return {name: others - {name} for name, others in found.items()}


def circles_in(arrows: Arrows) -> list[str]:
    """Return the largest groups whose members all reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            new = arrows.get(stack.pop(), set()) - seen
            seen |= new
            stack += new
        return seen

    reach = {name: reached(name) for name in arrows}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in arrows
        if name in reach[name]
    }
    return sorted(" <-> ".join(sorted(group)) for group in groups)


def upward_in(arrows: Arrows, package: str) -> list[str]:
    """Return the arrows from a room to one on a higher floor, as modules."""

    def floor(module: str) -> int:
        return FLOOR[module.removeprefix(f"{package}.").partition(".")[0]]

    return sorted(
        f"{name} -> {other}"
        for name, others in arrows.items()
        for other in others
        if floor(other) > floor(name)
    )


def room_circles(arrows: Arrows, folders: Iterable[str]) -> list[str]:
    """Return the circles among what lies in each of these folders."""
    return [
        f"{folder}: {circle}"
        for folder in folders
        for circle in circles_in(between_children(arrows, folder))
    ]


MODULES = modules_in(ROOT)
ARROWS = arrows_of({name: path.read_text("utf-8") for name, path in MODULES.items()})
FOLDERS = [name for name, path in MODULES.items() if path.name == "__init__.py"]
LOOSE = [path.stem for path in sorted(ROOT.glob("*.py"))]


def broken() -> list[str]:
    """Return all that breaks a rule."""
    loose = [name for name in LOOSE if name not in ("__init__", "__main__", "tf")]
    names = {name.rpartition(".")[2]: name for name in MODULES if "cli" not in name.split(".")}
    lines = {name: path.read_text("utf-8").count("\n") for name, path in MODULES.items()}
    return [
        *upward_in(ARROWS, "qmath"),
        *circles_in(ARROWS),
        *room_circles(ARROWS, FOLDERS),
        *([f"loose modules: {', '.join(loose)}"] if len(loose) > MOST_LOOSE_MODULES else []),
        *(f"{names[name]} shadows qmath.{name}" for name in qmath.__all__ if name in names),
        *(f"{name} has more than {MOST_LINES} lines" for name in lines if lines[name] > MOST_LINES),
    ]


def test_every_room_has_its_floor() -> None:
    rooms = {"qmath", *(name.split(".")[1] for name in MODULES if "." in name)}
    assert rooms <= FLOOR.keys()


def test_the_rules_hold() -> None:
    assert sorted(broken()) == sorted(KNOWN)


def test_rebuilding_has_one_door() -> None:
    room = "qmath.readers.saved_model.rebuilding"
    doors = {
        (name, other)
        for name, others in ARROWS.items()
        for other in others
        if other.startswith(room) and not name.startswith(room)
    }
    assert doors == {("qmath.readers.saved_model.reader", f"{room}.rebuild")}


# Each rule is broken once, so that the tests above are known to be able to fail.


@pytest.mark.parametrize(
    ("source", "is_seen"),
    [
        ("import qmath.errors", True),
        ("from qmath import errors", True),
        ("from qmath.errors import QmathError", True),
        ("def f():\n    from qmath.errors import QmathError", True),
        ("if TYPE_CHECKING:\n    from qmath.errors import QmathError", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import qmath.errors", True),
        ("import errors", False),
    ],
)
def test_imports_are_seen(source: str, is_seen: bool) -> None:
    arrows = arrows_of({"qmath": "", "qmath.errors": "", "qmath.model": source})
    assert ("qmath.errors" in arrows["qmath.model"]) is is_seen


def test_arrows_up_and_circles_are_found() -> None:
    arrows = arrows_of(
        {
            "p": "",
            "p.model": "import p.readers.one",
            "p.readers": "",
            "p.readers.one": "import p.readers.deep.two",
            "p.readers.deep": "",
            "p.readers.deep.two": "from p.readers import three",
            "p.readers.deep.four": "",
            "p.readers.three": "def f():\n    import p.readers.deep.four",
            "p.readers.five": "import p.readers.six",
            "p.readers.six": "import p.readers.five",
        }
    )
    assert upward_in(arrows, "p") == ["p.model -> p.readers.one"]
    assert circles_in(arrows) == ["p.readers.five <-> p.readers.six"]
    assert room_circles(arrows, ["p", "p.readers", "p.readers.deep"]) == [
        "p.readers: deep <-> three",
        "p.readers: five <-> six",
    ]
