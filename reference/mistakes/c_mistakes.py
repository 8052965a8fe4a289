"""The mistakes in the exported C kernels, as substitutions: each text is there exactly once."""

from __future__ import annotations

__all__ = ["SUBSTITUTIONS", "Substitution"]

Substitution = tuple[str, str]

_HIGH = "out[i] = (qm_int)(y > r->high[end] ? r->high[end] : y);"
_LOW = "y = y < r->low[end] ? r->low[end] : y;"
_ROUND = "            y = qm_shifted(y, shift);"
_HALF = "((int64_t)1 << (shift - 1))"
_PRODUCT = "y += (int64_t)sums[t][i] * s->multiplier[t][c];"
_SCALED = "int64_t y = qm_scaled(&r->scaling, sums, r->terms, i, c);"
_NEXT = "(c + 1) % (size_t)r->period"
_CONV = "* qm_weight(k, i, j, c, o);"
_DENSE = "* qm_weight(k, 0, 0, c, o);"
_DEPTHWISE = "* qm_weight(k, i, j, o / m, o % m);"
_INPUT = "sum += in[qm_at(&p->in, row, column, first + c)]"
_ROW = "*row = y * p->stride[axis] + i * p->dilation[axis] - p->pad[axis];"
_INSIDE = "return *row >= 0 && *row < size;"
_WEIGHT = "return qm_integer(k->integers, index) - k->zero_point[k->zero_points > 1 ? b : 0];"
_SIGNED = "return a->is_signed ? (int32_t)(bits ^ sign) - (int32_t)sign : (int32_t)bits;"
_AFTER = (
    "((p->out.{0} - 1) * p->stride[axis] + (p->kernel[axis] - 1) * p->dilation[axis] + 1"
    " - p->in.{0} - p->pad[axis])"
)
_ENDS = f"(axis ? {_AFTER.format('width')} : {_AFTER.format('height')})"


def _rounds(how: str) -> tuple[Substitution, ...]:
    return ((_ROUND, f"            y = {how};"),)


def _clamps(low: str, high: str) -> tuple[Substitution, ...]:
    upper = f"out[i] = (qm_int)(y > r->high[end]{high} ? r->high[end]{high} : y);"
    return (_LOW, f"y = y < r->low[end]{low} ? r->low[end]{low} : y;"), (_HIGH, upper)


def _multiplier(how: str) -> tuple[Substitution, ...]:
    return ((_PRODUCT, f"y += (int64_t)sums[t][i] * ({how});"),)


def _narrow(bits: int) -> tuple[Substitution, ...]:
    unit = f"((int64_t)1 << {31 - bits})"
    return _multiplier(f"s->multiplier[t][c] / {unit} * {unit}")


def _channel(other: str) -> tuple[Substitution, ...]:
    """Add to the result what another channel's multipliers would make more."""
    more = f"r->scaling.multiplier[t][{other}] - r->scaling.multiplier[t][c]"
    loop = f"for (int t = 0; t < r->terms; ++t)\n            y += (int64_t)sums[t][i] * ({more});"
    return ((_SCALED, f"{_SCALED}\n        {loop}"),)


def _order(conv: str, depthwise: str) -> tuple[Substitution, ...]:
    """Read the weights of other output channels."""
    dense = conv.replace("p->out.channels", "outputs")
    return (
        (_CONV, f"* qm_weight(k, i, j, c, {conv});"),
        (_DENSE, f"* qm_weight(k, 0, 0, c, {dense});"),
        (_DEPTHWISE, f"* qm_weight(k, i, j, ({depthwise}) / m, ({depthwise}) % m);"),
    )


def _accumulators(narrower: int, how: str) -> tuple[Substitution, ...]:
    """Let an expression of `a` and `half` stand for an accumulator; widths are in `qm_bits`."""
    wrapped = (
        "static const int *qm_bits;\n\n"
        "static int64_t qm_narrow(int64_t a, int32_t t)\n{\n"
        f"    const int bits = qm_bits[t] - {narrower};\n"
        "    const int64_t half = bits > 1 ? (int64_t)1 << (bits - 1) : 1;\n\n"
        f"    return {how};\n}}\n\n"
    )
    head = "static inline int64_t qm_scaled("
    return (head, wrapped + head), (
        _PRODUCT,
        _PRODUCT.replace("sums[t][i]", "qm_narrow(sums[t][i], t)"),
    )


_WRAP = "((a + half) % (2 * half) + 2 * half) % (2 * half) - half"
_SATURATE = "a < -half ? -half : a > half - 1 ? half - 1 : a"

_REQUANTIZE = "static inline void qm_requantize("
_TWICE = """static int64_t qm_twice(int64_t y, int first, int shift)
{
    y = first ? (y + ((int64_t)1 << (first - 1))) >> first : y;
    shift -= first;
    return shift ? (y + ((int64_t)1 << (shift - 1))) >> shift : y;
}

"""

SUBSTITUTIONS: dict[str, tuple[Substitution, ...]] = {
    "no upper clamp": ((_HIGH, "out[i] = (qm_int)y;"),),
    "no lower clamp": ((_LOW, ""),),
    "upper clamp one too low": _clamps("", " - 1"),
    "upper clamp one too high": _clamps("", " + 1"),
    "lower clamp one too low": _clamps(" - 1", ""),
    "lower clamp one too high": _clamps(" + 1", ""),
    "rounds down": _rounds(f"qm_shifted(y - {_HALF}, shift)"),
    "rounds up": _rounds(f"qm_shifted(y + {_HALF} - 1, shift)"),
    "rounds toward zero": _rounds(f"(y - {_HALF}) / ((int64_t)1 << shift)"),
    "rounds twice": (
        *_rounds(f"qm_twice(y - {_HALF}, shift > 31 ? 31 : shift > 6 ? shift - 6 : 0, shift)"),
        (_REQUANTIZE, _TWICE + _REQUANTIZE),
    ),
    "half to even": _rounds(
        "qm_shifted(y, shift) - (!(y & (2 * " + _HALF + " - 1)) && qm_shifted(y, shift) % 2)"
    ),
    "half away from zero": _rounds(
        "qm_shifted(y, shift) - (!(y & (2 * " + _HALF + " - 1)) && y <= 0)"
    ),
    "half down": _rounds("qm_shifted(y - 1, shift)"),
    "12-bit multiplier": _narrow(12),
    "16-bit multiplier": _narrow(16),
    "20-bit multiplier": _narrow(20),
    "24-bit multiplier": _narrow(24),
    "multiplier one too high": _multiplier("s->multiplier[t][c] + 1"),
    "multiplier one too low": _multiplier("s->multiplier[t][c] - 1"),
    "multiplier of the next channel": _channel(_NEXT),
    "multiplier of the first channel": _channel("0"),
    "shift one too far": _rounds("qm_shifted(y, (uint8_t)(shift + 1))"),
    "shift one short": _rounds("qm_shifted(y, (uint8_t)(shift - 1))"),
    "one bit too narrow": _accumulators(1, _WRAP),
    "two bits too narrow": _accumulators(2, _WRAP),
    "saturates one bit early": _accumulators(1, _SATURATE),
    "saturates two bits early": _accumulators(2, _SATURATE),
    "no bias": (("int64_t y = s->addend[c];", "int64_t y = (int64_t)1 << (s->shift[c] - 1);"),),
    "bias of the next channel": (
        (_SCALED, f"{_SCALED}\n        y += r->scaling.addend[{_NEXT}] - r->scaling.addend[c];"),
    ),
    "bias added after rounding": _rounds(
        f"qm_shifted(y - r->scaling.addend[c] + {_HALF}, shift)"
        " + qm_shifted(r->scaling.addend[c], shift)"
    ),
    "no zero point of the weights": ((_WEIGHT, "return qm_integer(k->integers, index);"),),
    "output channels reversed": _order("p->out.channels - 1 - o", "p->out.channels - 1 - o"),
    "output channels shifted by one": _order(
        "(o + 1) % p->out.channels", "(o + 1) % p->out.channels"
    ),
    "input channels reversed": (
        (_CONV, "* qm_weight(k, i, j, k->depth - 1 - c, o);"),
        (_DENSE, "* qm_weight(k, 0, 0, k->depth - 1 - c, o);"),
    ),
    "last input channel skipped": (
        (_CONV, "* (c && c == k->depth - 1 ? 0 : qm_weight(k, i, j, c, o));"),
        (_DENSE, "* (c && c == k->depth - 1 ? 0 : qm_weight(k, 0, 0, c, o));"),
    ),
    "depth multiplier before the channel": (
        ("sum += in[qm_at(&p->in, row, column, o / m)]",
         "sum += in[qm_at(&p->in, row, column, o % p->in.channels)]"),
        (_DEPTHWISE, "* qm_weight(k, i, j, o % p->in.channels, o / p->in.channels);"),
    ),
    "stride ignored": ((_ROW, _ROW.replace("y * p->stride[axis]", "y")),),
    "strides of height and width swapped": ((_ROW, _ROW.replace("stride[axis]", "stride[!axis]")),),
    "dilation ignored": ((_ROW, _ROW.replace("i * p->dilation[axis]", "i")),),
    "padding at the end alone": ((_ROW, _ROW.replace(" - p->pad[axis]", "")),),
    "padding of begin and end swapped": (
        (_ROW, _ROW.replace(" - p->pad[axis]", f" - ({_ENDS} > 0 ? {_ENDS} : 0)")),
    ),
    "last row of the window skipped": (
        (_INSIDE, f"{_INSIDE[:-1]} && (axis || !i || i < p->kernel[0] - 1);"),
    ),
    "kernel's rows as columns": (
        ("(size_t)k->first + (size_t)h * (size_t)s[0] + (size_t)w * (size_t)s[1]",
         "(size_t)k->first + (size_t)w * (size_t)s[0] + (size_t)h * (size_t)s[1]"),
    ),
    "kernel flipped": (
        (_CONV, "* qm_weight(k, p->kernel[0] - 1 - i, p->kernel[1] - 1 - j, c, o);"),
        (_DEPTHWISE,
         "* qm_weight(k, p->kernel[0] - 1 - i, p->kernel[1] - 1 - j, o / m, o % m);"),
    ),
    "weights negated": ((_WEIGHT, f"return -({_WEIGHT[7:-1]});"),),
    "weights not sign-extended": ((_SIGNED, "return (void)sign, (int32_t)bits;"),),
    "nibbles swapped": (
        ("bits = qm_stream_bits(a, line, place);",
         "bits = qm_stream_bits(a, line, n == 4 && (place ^ 1) < a->line ? place ^ 1 : place);"),
    ),
    "input read as CHW": (
        (_INPUT,
         "sum += in[((size_t)(first + c) * (size_t)p->in.height + (size_t)row)"
         " * (size_t)p->in.width + (size_t)column]"),
        ("sum += in[qm_at(&p->in, row, column, o / m)]",
         "sum += in[((size_t)(o / m) * (size_t)p->in.height + (size_t)row)"
         " * (size_t)p->in.width + (size_t)column]"),
    ),
    "operands swapped": _multiplier("s->multiplier[terms - 1 - t][c]"),
    "scale of the first for all": _multiplier("s->multiplier[0][c]"),
    "negative slope ignored": (
        ("y = qm_shifted(qm_scaled(r->negative, sums, r->terms, i, c), r->negative->shift[c]);",
         "y = 0;"),
    ),
    "negative slope on the wrong side": (
        ("if (r->negative && y < (int64_t)1 << (shift - 1))",
         "if (r->negative && y >= (int64_t)1 << (shift - 1))"),
    ),
    "maximum and minimum swapped": (
        ("qm_int most = lowest;", "qm_int most = (qm_int)1 << 20;"),
        ("&& in[qm_at(&p->in, row, column, c)] > most)",
         "&& in[qm_at(&p->in, row, column, c)] < most)"),
        ("qm_int least = highest;", "qm_int least = -((qm_int)1 << 20);"),
        ("&& in[qm_at(&p->in, row, column, c)] < least)",
         "&& in[qm_at(&p->in, row, column, c)] > least)"),
    ),
    "factor of the next channel": (
        ("(size_t)k * (size_t)b[2] + (size_t)l * (size_t)b[3]];",
         "(size_t)k * (size_t)b[2] + (size_t)((l + 1) % shape[3]) * (size_t)b[3]];"),
    ),
    "maximum not below zero": (("qm_int most = lowest;", "qm_int most = lowest * 0;"),),
    "table shifted by one": (("table[in[i] + zero_point];", "table[in[i] + zero_point + 1];"),),
    "last integer unwritten": (
        ("const qm_requantization *r)\n{\n    size_t i;\n\n    for (i = 0; i < size; ++i) {",
         "const qm_requantization *r)\n{\n    size_t i;\n\n    for (i = 0; i < size - 1; ++i) {"),
    ),
    "floats rounded down": (("        y = y + 0.5f;\n", ""),),
    "floats rounded up": (("y = y + 0.5f;", "y = y + 0.999f;"),),
    "no upper clamp of floats": (
        ("float clamped = in[i] > r->max ? r->max : in[i];",
         "float clamped = in[i] > 1e6f ? 1e6f : in[i];"),
    ),
    "no lower clamp of floats": (
        ("clamped = clamped >= r->min ? clamped : r->min;",
         "clamped = clamped >= -1e6f ? clamped : -1e6f;"),
    ),
}  # fmt: skip
