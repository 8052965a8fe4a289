"""The mistakes in the exported C kernels, as substitutions: each text is there exactly once."""

from __future__ import annotations

__all__ = ["SUBSTITUTIONS", "Substitution"]

Substitution = tuple[str, str]

_HIGH = "y = y > high ? high : y;"
_LOW = "y = y < low ? low : y;"
_ROUND = "return qm_shifted(y, shift);"
_HALF = "((int64_t)1 << (shift - 1))"
_MULTIPLIER = "to->multiplier[i] = s->multiplier[t][c];"
_ADDEND = "to->addend[i] = s->addend[c];"
_PRODUCT = "(int64_t)sums[i] * c->multiplier[i];"
_CHANNELS = "(size_t)b->channels"
_FIRST = f"(r->channel_step ? c - c % {_CHANNELS} : c)"
_NEXT = f"(r->channel_step ? c - c % {_CHANNELS} + (c + 1) % {_CHANNELS} : c)"
_CONV = (
    "qm_conv_pixel(sums + n * b->lanes + lane, t, b->first + (size_t)n, first, o, count,\n"
    "                          qm_reads, 3);"
)
_CONV_WEIGHT = "weight = qm_weight_at(k, i, j, 0, 0)"
_LOAD = "qm_read(&r, &t->in, at + (size_t)c, n);"
_DEPTHWISE_PLAIN = "weights + qm_weight_at(&f->weights, i, j, b->channel, 0)"
_DEPTHWISE_CHANNEL = "const int32_t c = b->channel + l;"
_DEPTHWISE = "w[l] = qm_weight(k, qm_weight_at(k, i, j, c / m, c % m), c % m);"
_INPUT = "qm_get(&t->in, qm_at(&p->in, row, column, (b->channel + l) / m))"
_ROW = "*row = y * p->stride[axis] + i * p->dilation[axis] - p->pad[axis];"
_INSIDE = "return *row >= 0 && *row < size;"
_WEIGHT = "return (qm_value)(qm_integer(k->integers, at) - zero_point);"
_SIGNED = "return a->is_signed ? (int32_t)(bits ^ sign) - (int32_t)sign : (int32_t)bits;"
_PLAIN = "if (k->integers->packing != QM_INT8"
# Each weight by itself, so that a mistake in reading one is in all.
_ONE_BY_ONE = (_PLAIN, _PLAIN.replace("if (", "if (1 || "))
# Each of one pixel as any other, so that a mistake in any is in all.
_POINT = "    int32_t n, c;\n    qm_run r;\n\n    qm_begin(&r);\n    qm_clear(sums, b);\n"
_AS_ANY = (
    _POINT,
    f"{_POINT}    if (1) {{\n        qm_conv(sums, t, b);\n        return;\n    }}\n",
)
_WHOLE = "const int whole = axis == 3"
_EACH_POSITION = (_WHOLE, _WHOLE.replace("= ", "= 0 && "))
_AFTER = (
    "((p->out.{0} - 1) * p->stride[axis] + (p->kernel[axis] - 1) * p->dilation[axis] + 1"
    " - p->in.{0} - p->pad[axis])"
)
_ENDS = f"(axis ? {_AFTER.format('width')} : {_AFTER.format('height')})"


def _rounds(how: str) -> tuple[Substitution, ...]:
    return ((_ROUND, f"return shift ? {how} : y;"),)  # without a shift, y is rounded already


def _clamps(low: str, high: str) -> tuple[Substitution, ...]:
    lower = f"y = y < low{low} ? low{low} : y;"
    return (_LOW, lower), (_HIGH, f"y = y > high{high} ? high{high} : y;")


def _multiplier(how: str) -> tuple[Substitution, ...]:
    return ((_MULTIPLIER, f"to->multiplier[i] = (int32_t)({how});"),)


def _narrow(bits: int) -> tuple[Substitution, ...]:
    unit = f"((int64_t)1 << {31 - bits})"
    return _multiplier(f"s->multiplier[t][c] / {unit} * {unit}")


def _order(other: str) -> tuple[Substitution, ...]:
    """Read the weights of other output channels, of which `o` is the right one."""
    total = "p->out.channels"
    conv = _CONV.replace("+ lane, t", "+ q, t").replace(
        "first, o, count", f"first, {other.replace('o', '(b->channel + q)').format(total)}, 1"
    )
    depthwise = other.replace("o", "(b->channel + l)").format(total)
    return (
        _ONE_BY_ONE,
        _AS_ANY,
        (_CONV, f"for (int q = lane; q < lane + count; ++q)\n                {conv}"),
        (_DEPTHWISE_CHANNEL, f"const int32_t c = {depthwise};"),
    )


def _inputs(how: str) -> tuple[Substitution, ...]:
    """Read a convolution's inputs one by one: that of channel `c` is `how`, in terms of `GET`."""
    each = f"for (int32_t q = c; q < c + n; ++q)\n    r.x[QM_LANES + r.n++] = (qm_value)({how});"
    return _EACH_POSITION, _AS_ANY, (_LOAD, each.replace("GET", "qm_get(&t->in, at + (size_t)q)"))


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
        _PRODUCT.replace("(int64_t)sums[i]", "qm_narrow(sums[i], t)"),
    )


_WRAP = "((a + half) % (2 * half) + 2 * half) % (2 * half) - half"
_SATURATE = "a < -half ? -half : a > half - 1 ? half - 1 : a"

_ROUNDING = "static inline int64_t qm_rounded("
_TWICE = """static int64_t qm_twice(int64_t y, int first, int shift)
{
    y = first ? (y + ((int64_t)1 << (first - 1))) >> first : y;
    shift -= first;
    return shift ? (y + ((int64_t)1 << (shift - 1))) >> shift : y;
}

"""

_AS_CHW = """static size_t qm_chw(const qm_window *p, size_t at)
{
    const size_t channels = (size_t)p->in.channels;
    const size_t plane = (size_t)p->in.height * (size_t)p->in.width;
    const size_t pixel = at / channels;
    return pixel / plane * plane * channels + at % channels * plane + pixel % plane;
}

"""
_PIXEL = "/* One pixel of a convolution:"

SUBSTITUTIONS: dict[str, tuple[Substitution, ...]] = {
    "no upper clamp": ((_HIGH, ""),),
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
    "no bias": ((_ADDEND, "to->addend[i] = (int64_t)1 << (s->shift[c] - 1);"),),
    "bias of the next channel": (
        (_ADDEND, f"to->addend[i] = s->addend[s == &r->scaling ? {_NEXT} : c];"),
    ),
    "bias added after rounding": _rounds(
        f"qm_shifted(y - c->addend[i] + {_HALF}, shift) + qm_shifted(c->addend[i], shift)"
    ),
    "no zero point of the weights": (
        _ONE_BY_ONE,
        (_WEIGHT, "return (void)zero_point, (qm_value)qm_integer(k->integers, at);"),
    ),
    "output channels reversed": _order("{0} - 1 - o"),
    "output channels shifted by one": _order("(o + 1) % {0}"),
    "input channels reversed": _inputs(
        "qm_get(&t->in, at + (size_t)(axis == 3 ? k->depth - 1 - q : q))"
    ),
    "last input channel skipped": _inputs(
        "axis == 3 && k->depth > 1 && q == k->depth - 1 ? 0 : GET"
    ),
    "depth multiplier before the channel": (
        (_INPUT, _INPUT.replace("/ m", "% p->in.channels")),
        (_DEPTHWISE, _DEPTHWISE.replace("c / m", "c % p->in.channels").replace(
            "c % m", "c / p->in.channels")),
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
        _EACH_POSITION,
        ("return k->first + (size_t)h * s[0] + (size_t)w * s[1]",
         "return k->first + (size_t)w * s[0] + (size_t)h * s[1]"),
    ),
    "kernel flipped": (
        _EACH_POSITION,
        (_CONV_WEIGHT, _CONV_WEIGHT.replace(
            "i, j", "axis == 3 ? p->kernel[0] - 1 - i : i, axis == 3 ? p->kernel[1] - 1 - j : j")),
        *((old, old.replace("i, j", "p->kernel[0] - 1 - i, p->kernel[1] - 1 - j"))
          for old in (_DEPTHWISE_PLAIN, _DEPTHWISE)),
    ),
    "weights negated": (_ONE_BY_ONE, (_WEIGHT, _WEIGHT.replace("(qm_value)(", "(qm_value)-("))),
    "weights not sign-extended": (_ONE_BY_ONE, (_SIGNED, "return (void)sign, (int32_t)bits;")),
    "nibbles swapped": (
        ("bits = qm_stream_bits(a, line, place);",
         "bits = qm_stream_bits(a, line, n == 4 && (place ^ 1) < a->line ? place ^ 1 : place);"),
    ),
    "input read as CHW": (
        *_inputs("qm_get(&t->in, axis == 3 ? qm_chw(p, at + (size_t)q) : at + (size_t)q)"),
        (_PIXEL, _AS_CHW + _PIXEL),
        _ONE_BY_ONE,
        (_INPUT,
         "qm_get(&t->in, qm_at(&p->in, row, column, 0) / (size_t)p->in.channels"
         " + (size_t)((b->channel + l) / m * p->in.height * p->in.width))"),
    ),
    "operands swapped": _multiplier("s->multiplier[r->terms - 1 - t][c]"),
    "scale of the first for all": _multiplier("s->multiplier[0][c]"),
    "negative slope ignored": (
        ("negative[i] = qm_shifted(negative[i], c->shift[i]);", "negative[i] = 0;"),
    ),
    "negative slope on the wrong side": (("y[i] = qm_is_negative(", "y[i] = !qm_is_negative("),),
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
        ("        qm_store(out, qm_start(&b), sums, n);",
         "        const size_t end = pixels * (size_t)channels - 1;\n"
         "        const qm_int kept = qm_get(out, end);\n"
         "        qm_store(out, qm_start(&b), sums, n);\n        qm_set(out, end, kept);"),
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
