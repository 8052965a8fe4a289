"""The mistakes in the exported C kernels, as substitutions: each text is there exactly once."""

from __future__ import annotations

__all__ = ["SUBSTITUTIONS", "Substitution"]

Substitution = tuple[str, str]

_HIGH = "out[i] = (qm_int)(y > r->high[end] ? r->high[end] : y);"
_LOW = "y = y < r->low[end] ? r->low[end] : y;"
_ROUND = "                y = qm_shifted(y, shift);"
_HALF = "((int64_t)1 << (shift - 1))"
_PRODUCT = "y[i] += (int64_t)sums[i] * s->multiplier[t][c];"
_TOTAL = "int64_t y = totals[i];"
_CHANNELS = "(size_t)b->channels"
_FIRST = f"(r->channel_step ? c - c % {_CHANNELS} : c)"
_NEXT = f"(r->channel_step ? c - c % {_CHANNELS} + (c + 1) % {_CHANNELS} : c)"
_CONV = "qm_add_products(sums, &t->in, at, &k, k.depth, i, j, o, 3, lane, count);"
_PRODUCTS = "sums[p * QM_LANES + l] += (qm_int)x[p][c] * w[l];"
_DEPTHWISE_LINE = "qm_line(w, &f->weights, i, j, b->channel, 0, 2, b->lanes);"
_EACH = "for (l = 0; m > 1 && l < b->lanes; ++l)\n"
_DEPTHWISE = "w[l] = qm_weight(&f->weights, i, j, (b->channel + l) / m, (b->channel + l) % m);"
_LOAD = "qm_load(x[p], in, at[p] + (size_t)first, count);"
_INPUT = "x[l] = (qm_value)qm_get(&t->in, at + (size_t)((b->channel + l) / m));"
_ROW = "*row = y * p->stride[axis] + i * p->dilation[axis] - p->pad[axis];"
_INSIDE = "return *row >= 0 && *row < size;"
_WEIGHT = "return (qm_value)(qm_integer(k->integers, qm_weight_at(k, h, w, a, b)) - zero_point);"
_SIGNED = "return a->is_signed ? (int32_t)(bits ^ sign) - (int32_t)sign : (int32_t)bits;"
_LINE = "if (k->integers->packing == QM_INT8"
# Each weight by itself, so that a mistake in reading one is in all.
_ONE_BY_ONE = (_LINE, _LINE.replace("if (", "if (0 && "))
_AFTER = (
    "((p->out.{0} - 1) * p->stride[axis] + (p->kernel[axis] - 1) * p->dilation[axis] + 1"
    " - p->in.{0} - p->pad[axis])"
)
_ENDS = f"(axis ? {_AFTER.format('width')} : {_AFTER.format('height')})"


def _rounds(how: str) -> tuple[Substitution, ...]:
    return ((_ROUND, f"                y = {how};"),)


def _clamps(low: str, high: str) -> tuple[Substitution, ...]:
    upper = f"out[i] = (qm_int)(y > r->high[end]{high} ? r->high[end]{high} : y);"
    return (_LOW, f"y = y < r->low[end]{low} ? r->low[end]{low} : y;"), (_HIGH, upper)


def _multiplier(how: str) -> tuple[Substitution, ...]:
    return ((_PRODUCT, f"y[i] += (int64_t)sums[i] * ({how});"),)


def _narrow(bits: int) -> tuple[Substitution, ...]:
    unit = f"((int64_t)1 << {31 - bits})"
    return _multiplier(f"s->multiplier[t][c] / {unit} * {unit}")


def _order(other: str) -> tuple[Substitution, ...]:
    """Read the weights of other output channels, of which `o` is the right one."""
    each = "for (int q = lane; q < lane + count; ++q)\n                            "
    conv = other.replace("o", "(b->channel + q)")
    depthwise = other.replace("o", "(b->channel + l)")
    total = "p->out.channels"
    return (
        (_CONV, each + _CONV.replace(" o, 3, lane, count", f" {conv.format(total)}, 3, q, 1")),
        (f"{_EACH}                {_DEPTHWISE}",
         f"for (l = 0; l < b->lanes; ++l)\n                w[l] = qm_weight(&f->weights, i, j, "
         f"({depthwise.format(total)}) / m, ({depthwise.format(total)}) % m);"),
    )  # fmt: skip


def _accumulators(narrower: int, how: str) -> tuple[Substitution, ...]:
    """Let an expression of `a` and `half` stand for an accumulator; widths are in `qm_bits`."""
    wrapped = (
        "static const int *qm_bits;\n\n"
        "static int64_t qm_narrow(int64_t a, int32_t t)\n{\n"
        f"    const int bits = qm_bits[t] - {narrower};\n"
        "    const int64_t half = bits > 1 ? (int64_t)1 << (bits - 1) : 1;\n\n"
        f"    return {how};\n}}\n\n"
    )
    head = "static inline void qm_scale("
    return (head, wrapped + head), (
        _PRODUCT,
        _PRODUCT.replace("sums[i]", "qm_narrow(sums[i], t)"),
    )


_WRAP = "((a + half) % (2 * half) + 2 * half) % (2 * half) - half"
_SATURATE = "a < -half ? -half : a > half - 1 ? half - 1 : a"

_ROUNDING = "static inline void qm_round("
_TWICE = """static int64_t qm_twice(int64_t y, int first, int shift)
{
    y = first ? (y + ((int64_t)1 << (first - 1))) >> first : y;
    shift -= first;
    return shift ? (y + ((int64_t)1 << (shift - 1))) >> shift : y;
}

"""

_AS_CHW = """static size_t qm_chw(size_t at)
{
    if (!qm_of)
        return at;
    const size_t channels = (size_t)qm_of->in.channels;
    const size_t plane = (size_t)qm_of->in.height * (size_t)qm_of->in.width;
    const size_t pixel = at / channels;
    return pixel / plane * plane * channels + at % channels * plane + pixel % plane;
}

/* Add the products"""

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
        (_ROUNDING, _TWICE + _ROUNDING),
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
    "multiplier of the next channel": _multiplier(f"s->multiplier[t][{_NEXT}]"),
    "multiplier of the first channel": _multiplier(f"s->multiplier[t][{_FIRST}]"),
    "shift one too far": _rounds("qm_shifted(y, (uint8_t)(shift + 1))"),
    "shift one short": _rounds("qm_shifted(y, (uint8_t)(shift - 1))"),
    "one bit too narrow": _accumulators(1, _WRAP),
    "two bits too narrow": _accumulators(2, _WRAP),
    "saturates one bit early": _accumulators(1, _SATURATE),
    "saturates two bits early": _accumulators(2, _SATURATE),
    "no bias": (
        ("y[n * QM_LANES + l] = s->addend[c];",
         "y[n * QM_LANES + l] = (int64_t)1 << (s->shift[c] - 1);"),
    ),
    "bias of the next channel": (
        (_TOTAL, f"{_TOTAL}\n            y += r->scaling.addend[{_NEXT}] - r->scaling.addend[c];"),
    ),
    "bias added after rounding": _rounds(
        f"qm_shifted(y - r->scaling.addend[c] + {_HALF}, shift)"
        " + qm_shifted(r->scaling.addend[c], shift)"
    ),
    "no zero point of the weights": (
        _ONE_BY_ONE,
        (_WEIGHT, "return (qm_value)qm_integer(k->integers, qm_weight_at(k, h, w, a, b));"),
    ),
    "output channels reversed": _order("{0} - 1 - o"),
    "output channels shifted by one": _order("(o + 1) % {0}"),
    "input channels reversed": (
        ("const int32_t a = axis == 3 ? first + c : o,",
         "const int32_t a = axis == 3 ? depth - 1 - first - c : o,"),
    ),
    "last input channel skipped": (
        (_PRODUCTS,
         _PRODUCTS.replace(
             "w[l]", "(axis == 3 && depth > 1 && first + c == depth - 1 ? 0 : w[l])")),
    ),
    "depth multiplier before the channel": (
        (_INPUT, _INPUT.replace("/ m", "% p->in.channels")),
        (_DEPTHWISE, _DEPTHWISE.replace("/ m", "% p->in.channels").replace(
            "% m", "/ p->in.channels")),
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
        ("return (size_t)k->first + (size_t)h * (size_t)s[0] + (size_t)w * (size_t)s[1]",
         "return (size_t)k->first + (size_t)w * (size_t)s[0] + (size_t)h * (size_t)s[1]"),
    ),
    "kernel flipped": tuple(
        (old, old.replace("i, j", "p->kernel[0] - 1 - i, p->kernel[1] - 1 - j"))
        for old in (_CONV, _DEPTHWISE_LINE, _DEPTHWISE)
    ),
    "weights negated": (_ONE_BY_ONE, (_WEIGHT, _WEIGHT.replace("(qm_value)(", "(qm_value)-("))),
    "weights not sign-extended": (_ONE_BY_ONE, (_SIGNED, "return (void)sign, (int32_t)bits;")),
    "nibbles swapped": (
        ("bits = qm_stream_bits(a, line, place);",
         "bits = qm_stream_bits(a, line, n == 4 && (place ^ 1) < a->line ? place ^ 1 : place);"),
    ),
    "input read as CHW": (
        (_CONV, f"qm_of = p, {_CONV[:-1]}, qm_of = NULL;"),
        ("/* Add the products", "static const qm_window *qm_of;\n\n" + _AS_CHW),
        (_LOAD,
         "for (l = 0; l < count; ++l)\n"
         "                    x[p][l]"
         " = (qm_value)qm_get(in, qm_chw(at[p] + (size_t)(first + l)));"),
        (f"{_EACH}                    {_INPUT}",
         "for (l = 0; l < b->lanes; ++l)\n"
         "                    x[l] = (qm_value)qm_get(&t->in, at / (size_t)p->in.channels"
         " + (size_t)((b->channel + l) / m * p->in.height * p->in.width));"),
    ),
    "operands swapped": _multiplier("s->multiplier[r->terms - 1 - t][c]"),
    "scale of the first for all": _multiplier("s->multiplier[0][c]"),
    "negative slope ignored": (
        ("y = qm_shifted(negative[i], r->negative->shift[c]);", "y = 0;"),
    ),
    "negative slope on the wrong side": (
        ("if (r->negative && y < (int64_t)1 << (shift - 1))",
         "if (r->negative && y >= (int64_t)1 << (shift - 1))"),
    ),
    "maximum and minimum swapped": (
        ("const qm_int sign = f->sign;", "const qm_int sign = -f->sign;"),
        ("sums[i] = sign * f->end;", "sums[i] = -((qm_int)1 << 20);"),
    ),
    "factor of the next channel": (
        ("qm_get(&f->factor, qm_strided(at, f->strides.b));",
         "qm_get(&f->factor, qm_strided(at, f->strides.b) + (size_t)f->strides.b[3]"
         " * ((size_t)((at[3] + 1) % f->strides.shape[3]) - (size_t)at[3]));"),
    ),
    "maximum not below zero": (
        ("sums[i] = sign * f->end;", "sums[i] = sign < 0 ? sign * f->end : 0;"),
    ),
    "table shifted by one": (
        ("table[qm_get(in, i) + in->zero_point]);", "table[qm_get(in, i) + in->zero_point + 1]);"),
    ),
    "last integer unwritten": (
        ("qm_round(sums, y, negative, r, &b);\n        qm_store_block(out, sums, &b);",
         "qm_round(sums, y, negative, r, &b);\n"
         "        const size_t end = pixels * (size_t)channels - 1;\n"
         "        const qm_int kept = qm_get(out, end);\n"
         "        qm_store_block(out, sums, &b);\n        qm_set(out, end, kept);"),
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
