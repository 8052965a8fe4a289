"""Plots as inline SVG: few elements, however many integers or channels there are."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["channels", "histogram"]

_WIDTH, _HEIGHT, _MARGIN = 640.0, 150.0, 8.0
_RUG = 12.0  # height of the row that marks unused integers


def histogram(counts: Sequence[int], lowest: int, highest: int) -> str:
    """Return bars of counts over the integers, and below them a mark under each empty one.

    Parameters
    ----------
    counts : sequence of int
        Counts of equally wide bins from `lowest` to `highest`.
    lowest, highest : int
        The integers at both ends.
    """
    step = _WIDTH / len(counts)
    gap = min(1.0, step / 5)
    peak = max(*counts, 1)
    bars, marks = [], []
    for i, n in enumerate(counts):
        left = i * step + gap / 2
        if n:
            height = max(_HEIGHT * n / peak, 1.0)
            bars.append(f"M{left:.2f} {_HEIGHT:g}v{-height:.2f}h{step - gap:.2f}v{height:.2f}z")
        else:
            marks.append(f"M{left:.2f} {_HEIGHT + 4:g}h{step - gap:.2f}v6h{gap - step:.2f}z")
    bottom = _HEIGHT + _RUG
    zero = -lowest / (highest - lowest + 1) * _WIDTH + step / 2
    label = (
        f'<text x="{zero:.2f}" y="{bottom + 20:g}" text-anchor="middle">0</text>'
        if _WIDTH * 0.06 < zero < _WIDTH * 0.94
        else ""
    )
    return (
        f'<svg viewBox="{-_MARGIN:g} {-_MARGIN:g} {_WIDTH + 2 * _MARGIN:g} '
        f'{bottom + 26 + _MARGIN:g}" role="img" aria-label="Histogram of the integers {lowest} to '
        f'{highest}; {len(marks)} of {len(counts)} bars are empty">'
        f'<path class="bar" d="{"".join(bars)}"/><path class="unused" d="{"".join(marks)}"/>'
        f'<path class="axis" d="M0 {_HEIGHT:g}h{_WIDTH:g}"/>'
        f'<text x="0" y="{bottom + 20:g}">{lowest}</text>{label}'
        f'<text x="{_WIDTH:g}" y="{bottom + 20:g}" text-anchor="end">{highest}</text></svg>'
    )


def channels(low: Sequence[float | None], high: Sequence[float | None]) -> str:
    """Return a bar from minimum to maximum for each channel; ``None`` leaves a gap.

    Parameters
    ----------
    low, high : sequence of float or None
        Of equal length.
    """
    known = [
        (i, a, b)
        for i, (a, b) in enumerate(zip(low, high, strict=True))
        if a is not None and b is not None
    ]
    bottom = min([0.0, *(a for _, a, _ in known)])
    top = max([0.0, *(b for _, _, b in known)])
    span = (top - bottom) or 1.0
    step = _WIDTH / len(low)
    gap = min(2.0, step / 4)
    bars, dead = [], []
    for i, a, b in known:
        left, y = i * step + gap / 2, (top - b) / span * _HEIGHT
        if a == b == 0:
            dead.append(f'<circle class="unused" cx="{left + step / 2:.2f}" cy="{y:.2f}" r="3"/>')
        else:
            bars.append(
                f"M{left:.2f} {y:.2f}h{step - gap:.2f}v{(b - a) / span * _HEIGHT:.2f}"
                f"h{gap - step:.2f}z"
            )
    zero = top / span * _HEIGHT
    return (
        f'<svg viewBox="{-_MARGIN:g} -22 {_WIDTH + 2 * _MARGIN:g} {_HEIGHT + 66:g}" '
        f'role="img" aria-label="Range of {len(low)} channels, from {bottom:.4g} to {top:.4g}; '
        f'{len(dead)} are dead"><path class="bar" d="{"".join(bars)}"/>'
        f'<path class="axis" d="M0 {zero:.2f}h{_WIDTH:g}"/>{"".join(dead)}'
        f'<text x="0" y="-3">{top:.4g}</text><text x="0" y="{_HEIGHT + 18:g}">{bottom:.4g}</text>'
        f'<text x="0" y="{_HEIGHT + 38:g}">channel 0</text>'
        f'<text x="{_WIDTH:g}" y="{_HEIGHT + 38:g}" text-anchor="end">{len(low) - 1}</text></svg>'
    )
