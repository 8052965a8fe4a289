"""``qmath diff``: which layer's integers differ, by how much, and which mistake makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmath.cli.completion import runs
from qmath.cli.models import ModelArgument, model_argument
from qmath.cli.results import Result, Verb
from qmath.cli.settings import CUT, PROFILE, PROFILES_HELP, given, profile_options
from qmath.cli.tables import NUMBER, Column, numbers, tables
from qmath.cli.text import advancing, console, count, printable, show
from qmath.cli.workers import check_resumed, computing, resuming, worker_options

if TYPE_CHECKING:
    from qmath.integer.comparison import Comparison, LayerDifference
    from qmath.integer.judging.element import Element

__all__ = ["diff"]

_SHOWN = 5
_COLUMNS = {
    "integers": NUMBER,
    "teacher forced": Column(is_number=True, most=8),
    "free running": Column(is_number=True, most=8),
    **numbers("largest", "to tie", "noise"),
}
_OF_KERNELS = numbers("integers", "differ", "by steps", "bits", "scales") | {
    "the converter's": Column(most=20)
}


class _Diff(Verb):
    """The verb, or with ``--op`` the judge of a kernel's results, whose arguments are others."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        if _has_op(args):
            from qmath.cli.judge import judge

            return judge.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _has_op(args: Sequence[str]) -> bool:
    return any(arg.partition("=")[0] == "--op" for arg in args)


@click.command(
    cls=_Diff,
    short_help="Compare the integers of two runs, layer by layer.",
    epilog="\b\nExamples:\n  qmath diff model.h5 images.npz --profile tflite --against integer\n"
    "  qmath diff model.h5 images.npz --against mine.npz\n"
    "  qmath diff model.h5 images.npz --profile tflite --against deployed.tflite\n"
    "  qmath diff model.h5 images.npz --against mine.npz --at 'conv1/output[0,2,3,1]'",
)
@model_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--profile",
    "profiles",
    type=PROFILE,
    multiple=True,
    default=("integer",),
    show_default=True,
    help=PROFILES_HELP + " Given twice, the second is compared with.",
)
@profile_options
@click.option("--cut", "cuts", multiple=True, metavar="NAME=FILE", help=CUT)
@click.option(
    "--against",
    metavar="PROFILE|[TENSOR=]FILE|FOLDER",
    shell_complete=runs,
    help="Another profile; a deployed .tflite, whose kernels are compared, too; or your own "
    "integers, or what `python -m reference.dump` wrote from the live model: an .npz, .npy or raw "
    "file, or a folder with a file of each tensor. Default: exact. Of several models: a folder, "
    "with NAME.npz of each.",
)
@click.option(
    "--op",
    expose_value=False,
    metavar="OP",
    help="Judge a kernel's answers to `qmath vectors OP` instead; see qmath diff --op OP --help.",
)
@click.option(
    "--axes",
    "orders",
    multiple=True,
    metavar="[TENSOR=]ORDER",
    help="The order of the axes of your arrays, such as NCHW, or of one of them. May be repeated.",
)
@worker_options
@click.option(
    "--at",
    metavar="TENSOR[i,j,…]",
    help="Explain this one integer, the example first, in place of comparing all.",
)
def diff(
    model: ModelArgument,
    data: Path,
    profiles: tuple[str, ...],
    multiplier_bits: int | None,
    rounding: str | None,
    cuts: tuple[str, ...],
    against: str | None,
    orders: tuple[str, ...],
    workers: int | None,
    scheduler: str | None,
    resume: Path | None,
    at: str | None,
) -> Result:
    """Compare a run of MODEL on DATA with another profile, your integers, or the trained model.

    Columns: integers compared; how many differ when each layer starts from the reference's own
    integers (yours), and when each run goes on with its own; the largest difference; of those that
    differ, the greatest distance from the rounding tie, in steps; what the float32 arithmetic of a
    trained model may be off, in steps. Exit status 1 if a layer differs by more than that explains.
    """
    from qmath.cli.data import read_cuts, read_program_and_inputs
    from qmath.integer.api import PROFILES, element
    from qmath.integer.api import diff as compare
    from qmath.integer.cuts import missing

    if len(profiles) + (against is not None) > 2:
        raise click.UsageError("two runs can be compared: give --profile twice, or with --against")
    check_resumed(resume, model, [data])
    if against == "":
        raise click.UsageError("--against is empty: give a profile, a file or a folder")
    other = against if against is not None else profiles[1] if len(profiles) == 2 else None
    recorded = read_cuts(cuts)
    options: dict[str, Any] = given(multiplier_bits=multiplier_bits, rounding=rounding)
    options |= {"profile": profiles[0], "axes": _axes(orders), "cuts": recorded}
    reference: str | Path | None = other
    if other is not None and other not in PROFILES:
        reference = model.within(Path(other), ".npz")  # no path is a profile's name
    program, inputs = read_program_and_inputs(
        model.load(), data, cuts=recorded, against=None if orders else reference
    )
    document: dict[str, Any] = {
        "source": str(model.path), "data": str(data), "profile": profiles[0],
        "against": other or "exact", "layers": [], "element": None, "agreeing_profile": None,
        "kernels": [],
    }  # fmt: skip
    if at is not None:
        found = element(program, inputs, at, against=reference, **options)
        return _element_result(found, profiles[0], other, document)
    with (
        resuming(resume),
        computing(workers, scheduler) as where,
        advancing("comparing …", "comparing …") as progress,
    ):
        comparison = compare(
            program, inputs, against=reference or "exact", progress=progress, resume=resume,
            **where, **options,
        )  # fmt: skip
    other = other or "exact"
    notes = [*comparison.notes, *program.notes]
    _render(comparison, profiles[0], "yours" if other not in PROFILES else other)
    compared = {layer.name for layer in comparison.layers}
    for name, needing in missing(program, recorded).items():
        if left := [tensor for tensor in needing if tensor not in compared]:
            show(f"not compared, for want of {name}: {', '.join(left)}")
    for note in notes:
        show(f"note: {note}")
    explained = all(layer.explained for layer in comparison.layers)
    document |= {
        "equal": comparison.first is None, "explained": explained, "notes": notes,
        "layers": [_layer(layer) for layer in comparison.layers],
        "agreeing_profile": comparison.profile,
        "kernels": [
            dataclasses.asdict(kernel) | {"sentence": kernel.sentence}
            for kernel in comparison.kernels
        ],
    }  # fmt: skip
    words = "equal" if comparison.first is None else f"differs from {comparison.first.name} on"
    summary = words + (", as float32 noise explains" if explained and comparison.first else "")
    return Result(document, summary, differs=not explained)


def _axes(orders: tuple[str, ...]) -> dict[str, str] | None:
    """Return orders of axes by tensor; that of all others has no name."""
    found: dict[str, str] = {}
    for text in orders:
        name, _, order = text.rpartition("=")
        if name in found:
            raise click.UsageError(f"--axes is given twice for {name or 'all tensors'}")
        found[name] = order
    return found or None


def _layer(layer: LayerDifference) -> dict[str, Any]:
    values = dataclasses.asdict(layer) | {"explained": layer.explained}
    if layer.explanation is not None:
        values["explanation"]["complete"] = layer.explanation.complete
    return values


def _render(comparison: Comparison, own: str, reference: str) -> None:
    rows = []
    for layer in comparison.layers:
        tie, noise = (
            "" if value is None else f"{value:.1e}" for value in (layer.farthest_tie, layer.noise)
        )
        cells = (
            printable(layer.name), f"{layer.elements:,}", f"{layer.teacher_forced:,}",
            f"{layer.free_running:,}", str(layer.largest), tie, noise,
        )  # fmt: skip
        rows.append(dict(zip(("tensor", *_COLUMNS), cells, strict=True)))
    out = console()
    for i, table in enumerate(tables(rows, _COLUMNS, out)):
        if i:
            out.print()
        out.print(table)
    if comparison.kernels:
        _render_kernels(comparison)
    first = comparison.first
    if first is None:
        out.print("equal: no layer's own arithmetic differs")
        return
    verb = "explains" if first.explained else "does not explain"
    noise = "" if first.near and not first.explained else f"; float32 noise {verb} it"
    out.print(f"first to differ: {printable(first.name)}{noise}")
    ours = "qmath's" if reference == "yours" else own
    for item in first.differences[:_SHOWN]:
        tie = "" if item.to_tie is None else f", {item.to_tie:.1e} steps from its tie"
        out.print(f"  {list(item.index)}: {ours} {item.value}, {reference} {item.reference}{tie}")
    if first.teacher_forced > _SHOWN:
        out.print(f"  and {count(first.teacher_forced - _SHOWN, 'further element')}")
    if comparison.profile is not None:
        out.print(f"all of yours agree under the profile {comparison.profile}")
    for layer in comparison.layers:
        told = comparison.profile is not None and not _is_complete(layer)
        if reference == "yours" and not layer.explained and not told:
            out.print(f"{printable(layer.name)}: {printable(_explanation(layer))}")


def _render_kernels(comparison: Comparison) -> None:
    rows = []
    for kernel in comparison.kernels:
        is_held = bool(kernel.deployed) and not kernel.is_float
        cells = (
            printable(kernel.name), f"{kernel.elements:,}",
            f"{kernel.differing:,}" if is_held else "", f"{kernel.largest:.2g}" if is_held else "",
            _pair(kernel.num_bits) if is_held else "", _pair(kernel.scales) if is_held else "",
            kernel.sentence,
        )  # fmt: skip
        rows.append(dict(zip(("kernel", *_OF_KERNELS), cells, strict=True)))
    out = console()
    for table in tables(rows, _OF_KERNELS, out, first="kernel"):
        out.print()
        out.print(table)
    changed = sum(kernel.is_changed for kernel in comparison.kernels)
    out.print(f"the converter changed {changed} of {count(len(comparison.kernels), 'kernel')}\n")


def _pair(pair: tuple[int, int]) -> str:
    before, after = pair
    return str(after) if before in (0, after) else f"{before} → {after}"


def _is_complete(layer: LayerDifference) -> bool:
    return layer.explanation is not None and layer.explanation.complete


def _explanation(layer: LayerDifference) -> str:
    """Return which mistake makes a layer's differences."""
    found = layer.explanation
    if found is None:
        return "no mistake that qmath knows explains more than it contradicts"
    if found.complete:
        return f"all agree if {found.sentence}"
    broken = f", and {found.broken:,} that agree would not" if found.broken else ""
    return (
        f"{found.explained:,} of {found.differences:,} would agree if {found.sentence}{broken}; "
        "nothing known explains all"
    )


def _element_result(
    found: Element, profile: str, against: str | None, document: dict[str, Any]
) -> Result:
    """Print one element; return it as a result."""
    own = found.integers[profile]
    differs = isinstance(own, int) and not found.explains(own)
    _render_element(found, against)
    params = found.params
    document |= {
        "equal": found.reference is None or found.reference == own,
        "explained": not differs,
        "notes": list(found.notes),
        "element": {
            "tensor": found.tensor, "index": list(found.index), "sources": found.sources,
            "min": params.min, "max": params.max, "scale": params.scale,
            "zero_point": params.zero_point, "num_bits": params.num_bits,
            "step": None if found.step is None else str(found.step),
            "low": found.low, "high": found.high, "to_tie": found.to_tie, "noise": found.noise,
            "integers": found.integers, "reference": found.reference,
        },
    }  # fmt: skip
    yours = "" if found.reference is None else f", not {found.reference}"
    return Result(document, f"{found.tensor}{list(found.index)}: {own}{yours}", differs=differs)


def _render_element(found: Element, against: str | None) -> None:
    from qmath.integer.api import PROFILES

    out, params = console(), found.params
    out.print(f"{printable(found.tensor)}{list(found.index)}")
    rows = [(f"from {name}", str(value)) for name, value in found.sources.items()]
    rows += [
        ("range", f"[{params.min:.9g}, {params.max:.9g}], {params.num_bits} bits"),
        ("scale", f"{params.scale:.9g}, zero point {params.zero_point}"),
    ]
    if found.step is not None:
        value = float(found.step)
        rows += [
            ("value", f"{value * params.scale:.9g}"),
            ("step", f"{value:.12g} from the zero point, exactly {found.step}"),
            ("to tie", f"{found.to_tie:.3g} steps"),
        ]
    if found.noise is not None:
        rows.append(("noise", f"{found.noise:.1e} steps, of float32 sums"))
    rows.append(("clamps", f"{found.low} … {found.high}"))
    half = 1 << (params.num_bits - 1)
    rows += [
        (name, value if isinstance(value, str) else f"{value} (signed {value - half})")
        for name, value in found.integers.items()
    ]
    if found.reference is not None:
        name = f"against {against}" if against in PROFILES else "yours"
        rows.append((name, f"{found.reference} (signed {found.reference - half})"))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        out.print(f"  {printable(name):<{width}}  {printable(text)}", soft_wrap=True)
    for note in found.notes:
        show(f"note: {note}")
