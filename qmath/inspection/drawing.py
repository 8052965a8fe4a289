"""The integer program as an inline SVG: a row for each step, and lines from what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from qmath._text import html_text
from qmath.integer.bounds import accumulator_bits, interval
from qmath.integer.program import (
    CutStep,
    FloatStep,
    Program,
    Requantize,
    Step,
    sources,
    unrounded_sums,
)

__all__ = ["Block", "blocks", "drawing"]

_ROW, _LANE, _LEFT = 34.0, 14.0, 12.0
_WIDTH = 640.0
_MOST_LANES = 12  # beside which a long connection is drawn in the last one


@dataclass(frozen=True)
class Block:
    """A row of the drawing.

    Attributes
    ----------
    name : str
    state : {"integers", "float", "cut"}
    words : str
        What it computes, and in which widths.
    reads : tuple of str
        The names of earlier rows.
    """

    name: str
    state: str
    words: str
    reads: tuple[str, ...]


def blocks(program: Program, unknown: Set[str] = frozenset()) -> list[Block]:
    """Return the inputs and steps of a program, with their widths, but for those `unknown`."""
    found = [
        Block(name, "float", f"input {'x'.join(map(str, shape))}", ())
        for name, shape in program.inputs.items()
    ]
    return found + [
        Block(step.name, _state(step), _words(step, unknown), tuple(dict.fromkeys(sources(step))))
        for step in program.steps
    ]


def _state(step: Step) -> str:
    if isinstance(step, CutStep):
        return "cut"
    return "float" if isinstance(step, FloatStep) else "integers"


def _words(step: Step, unknown: Set[str]) -> str:
    """Return what a step computes, the width of its sums, and that of its integers."""
    words = list(dict.fromkeys(_kinds(step)))
    terms = [term for value in unrounded_sums(step) for term in value.terms]
    bits = [int(accumulator_bits(*interval(term))) for term in terms]
    if bits:
        words.append(f"{max(bits)}-bit sum")
    if isinstance(step, CutStep):
        words.append(f"cut point: {step.class_name}")
    elif isinstance(step, FloatStep):
        words.append("float32")
    elif step.name in unknown:
        words.append("integers of unknown width")
    else:
        words.append(f"{step.params.num_bits}-bit integers")
    return ", ".join(words)


def _kinds(step: Step) -> list[str]:
    if isinstance(step, Requantize):
        kinds = [op.kind for term in step.value.terms for op in term.ops]
        return [*kinds, *["add"] * (len(step.value.terms) > 1)] or ["requantize"]
    if isinstance(step, FloatStep):
        return []
    return [type(step).__name__.removesuffix("Step").lower()]


def drawing(rows: Sequence[Block]) -> str:
    """Return the rows below each other, each in a lane, with a line from what it reads.

    Parameters
    ----------
    rows : sequence of Block
        In an order in which each reads earlier ones.
    """
    place = {row.name: i for i, row in enumerate(rows)}
    lanes = _lanes(rows, place)
    most = max(lanes.values(), default=0)
    text = _LEFT + (most + 1) * _LANE + 6
    lines, marks = [], []
    for i, row in enumerate(rows):
        x, y = _x(lanes[row.name]), (i + 0.5) * _ROW
        for source in row.reads:
            if source in place:
                start, top = _x(lanes[source]), (place[source] + 0.5) * _ROW
                side = max(start, x)
                lines.append(
                    f"M{start:g} {top:g}C{side:g} {top + _ROW / 2:g} {side:g} {top + _ROW / 2:g} "
                    f"{side:g} {min(top + _ROW, y):g}V{max(y - _ROW, top + _ROW / 2):g}"
                    f"C{side:g} {y - _ROW / 2:g} {x:g} {y - _ROW / 2:g} {x:g} {y:g}"
                )
        marks.append(
            f'<circle class="{row.state}" cx="{x:g}" cy="{y:g}" r="5"/>'
            f'<text x="{text:g}" y="{y - 1:g}"><tspan class="name">{html_text(row.name)}</tspan>'
            f'<tspan class="words" x="{text:g}" dy="13">{html_text(row.words)}</tspan></text>'
        )
    height = len(rows) * _ROW + 4
    return (
        f'<svg class="graph" viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="The '
        f'integer program: {len(rows)} steps"><path class="line" d="{"".join(lines)}"/>'
        f"{''.join(marks)}</svg>"
    )


def _x(lane: int) -> float:
    return _LEFT + lane * _LANE


def _lanes(rows: Sequence[Block], place: Mapping[str, int]) -> dict[str, int]:
    """Return a lane for each row: that of its first source if it is the last to read it."""
    last = dict.fromkeys(place, -1)
    for i, row in enumerate(rows):
        for source in row.reads:
            last[source] = i
    lanes: dict[str, int] = {}
    taken: dict[int, str] = {}  # lane to the row whose line still runs there
    for i, row in enumerate(rows):
        free = [lane for lane, name in taken.items() if last[name] <= i]
        for lane in free:
            del taken[lane]
        own = [lanes[name] for name in row.reads if name in lanes and lanes[name] in free]
        lane = own[0] if own else next(n for n in range(len(rows) + 1) if n not in taken)
        lanes[row.name] = min(lane, _MOST_LANES)
        taken[lanes[row.name]] = row.name
    return lanes
