"""``qmath vectors``: cases for a kernel in any language, on standard output."""

from __future__ import annotations

import sys
from typing import Any, cast

import click

from qmath.cli.settings import given
from qmath.cli.streams import Held, document, dumps

__all__ = ["vectors"]

OPS = (
    "fake_quant", "quantize", "requantize", "conv", "depthwise", "dense", "add", "average_pool",
    "max_pool", "packing",
)  # fmt: skip


class _Lengths(click.ParamType):  # type: ignore[type-arg]
    """Lengths with x between them, such as 5x6x3."""

    name = "lengths"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            return tuple(int(length) for length in str(value).split("x"))
        except ValueError:
            self.fail(f"{value!r} are no lengths such as 5x6x3", param, ctx)


@click.command(
    short_help="Write cases that test a kernel of your own.",
    epilog="\b\nExamples:\n"
    "  qmath vectors fake_quant --bits 4 | ./mine | qmath diff --op fake_quant\n"
    "  qmath vectors conv --profile tflite --binary > cases",
)
@click.argument("op", type=click.Choice(OPS), metavar="OP")
@click.option(
    "--bits", type=int, metavar="2…16",
    help="Width. Default: 8; every one in turn for fake_quant and quantize; 4 for packing.",
)  # fmt: skip
@click.option(
    "--function",
    type=click.Choice(["vars", "args", "per_channel"]),
    help="Whose arithmetic fake-quantizes: vars divides by the scale, the others multiply by its "
    "inverse.",
)
@click.option("--unsigned", is_flag=True, help="Integers from 0 on. Default: two's complement.")
@click.option(
    "--profile",
    type=click.Choice(["exact", "integer", "tflite", "tflm", "litert", "xnnpack"]),
    help="exact: float64, the definition. integer: multiply, add, shift. tflite, tflm, litert, "
    "xnnpack: as TFLite's reference kernels, those for microcontrollers, those without a delegate, "
    "and as its delegate. Default: integer.",
)
@click.option("--multiplier-bits", type=int, metavar="8…31", help="Of the profile integer.")
@click.option(
    "--rounding", type=click.Choice(["double", "single"]), help="Of the profiles tflite and tflm."
)
@click.option("--layout", help="Of packing: lsb, msb, nibbles, keras_int4 or words.")
@click.option("--shape", type=_Lengths(), help="Of the input: HxWxC, or I of a dense layer.")
@click.option("--kernel", type=_Lengths(), help="HxW of a kernel or a pool.")
@click.option("--strides", type=_Lengths(), help="HxW.")
@click.option("--padding", type=click.Choice(["same", "valid"]))
@click.option("--channels", type=int, help="Outputs; of depthwise for each input channel.")
@click.option("--seed", type=int, help="Other cases. Default: 0.")
@click.option("--count", type=int, help="How many cases. Default: 10,000 numbers, 320 layers.")
@click.option("--binary", is_flag=True, help="Bytes in place of text, after the first line.")
@click.option(
    "--worst",
    is_flag=True,
    help="The inputs nearest to ties for each width and some ranges or scales; no seed.",
)
@click.option("--json", "as_json", is_flag=True, help="The text as one JSON document.")
def vectors(
    op: str, binary: bool, worst: bool, unsigned: bool, as_json: bool, **options: Any
) -> int:
    """Write cases of OP: inputs on and beside rounding ties, ends, clamps, subnormals, extremes.

    OP is fake_quant, quantize, requantize, conv, depthwise, dense, add, average_pool, max_pool or
    packing. A kernel copies the first line, then each case with its result after it; qmath diff
    --op OP judges that. docs/testing.md specifies both, as text and as bytes.
    """
    from qmath.testing.pipe.judge import cases_of
    from qmath.testing.pipe.settings import settings_for
    from qmath.testing.pipe.worst import worst_cases

    chosen = given(**options) | ({"signed": False} if unsigned else {})
    if worst and not {"seed", "count"}.isdisjoint(chosen):
        raise click.UsageError("--worst has neither --seed nor --count: its cases are fixed")
    if binary and as_json:
        raise click.UsageError("bytes are no JSON: leave out --binary or --json")
    stream = (worst_cases if worst else cases_of)(settings_for(op, **chosen), is_binary=binary)
    if as_json:
        header, *cases = b"".join(stream).decode().splitlines()
        click.echo(dumps(document("vectors", 0, {"op": op, "header": header, "cases": cases})))
        return 0
    return cast(Held, sys.stdout).pour(stream)
