"""Packing against bit strings written out one value at a time, and against the golden vectors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from qmath.errors import QmathError
from qmath.kernels.packing import LAYOUTS, pack, unpack

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "packing.json"
VECTORS = json.loads(GOLDEN.read_text())["vectors"]
COMBINATIONS = [
    (layout, num_bits, signed)
    for layout, rules in LAYOUTS.items()
    for num_bits in rules.widths
    for signed in (False, True)
]
everything = pytest.mark.parametrize(("layout", "num_bits", "signed"), COMBINATIONS)


def spelled_out(values, num_bits, layout):
    """Pack a list of Python integers as docs/packing.md says, one bit after the other."""
    places = range(num_bits)[:: -1 if layout == "msb" else 1]
    bits = [v >> place & 1 for v in values for place in places]
    size = 32 // num_bits * num_bits if layout == "words" else 8
    words = [bits[start : start + size] for start in range(0, len(bits), size)]
    if layout == "msb":
        words = [(word + [0] * 8)[7::-1] for word in words]
    return [sum(bit << place for place, bit in enumerate(word)) for word in words]


def bounds(num_bits, signed):
    return (-(1 << num_bits - 1), 1 << num_bits - 1) if signed else (0, 1 << num_bits)


def dtype_of(num_bits, signed):
    return np.dtype(f"{'i' if signed else 'u'}{1 if num_bits <= 8 else 2}")


def samples(num_bits, signed, size, seed=0):
    low, high = bounds(num_bits, signed)
    found = np.random.default_rng(seed).integers(low, high, size)
    return found.astype(dtype_of(num_bits, signed))


@everything
def test_every_length_from_0_to_70(layout, num_bits, signed):
    for size in range(71):
        values = samples(num_bits, signed, size, seed=size)
        packed = pack(values, num_bits, layout)
        assert packed.dtype == (np.uint32 if layout == "words" else np.uint8)
        assert packed.tolist() == spelled_out(values.tolist(), num_bits, layout)
        found = unpack(packed, num_bits, layout, size, signed)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


@everything
def test_every_value(layout, num_bits, signed):
    values = np.arange(*bounds(num_bits, signed)).astype(dtype_of(num_bits, signed))
    packed = pack(values, num_bits, layout)
    np.testing.assert_array_equal(unpack(packed, num_bits, layout, values.shape, signed), values)
    if num_bits <= 10:
        assert packed.tolist() == spelled_out(values.tolist(), num_bits, layout)


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4])
def test_every_pair_of_neighbours(num_bits):
    values = np.array(np.meshgrid(*[np.arange(1 << num_bits, dtype=np.uint8)] * 2)).T.reshape(-1)
    for layout in ("lsb", "msb", "words"):
        packed = pack(values, num_bits, layout)
        assert packed.tolist() == spelled_out(values.tolist(), num_bits, layout)


@everything
def test_more_than_one_block(layout, num_bits, signed):
    values = samples(num_bits, signed, (1 << 17) + 13)
    packed = pack(values, num_bits, layout)
    np.testing.assert_array_equal(unpack(packed, num_bits, layout, values.shape, signed), values)
    start = 131040  # divisible by 8 and by every number of values in a word
    tail = pack(values[:start], num_bits, layout).size
    assert packed[tail:].tolist() == spelled_out(values[start:].tolist(), num_bits, layout)


@everything
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_lines_along_an_axis(layout, num_bits, signed, axis):
    values = samples(num_bits, signed, (3, 5, 13))
    packed = pack(values, num_bits, layout, axis=axis)
    lines = np.moveaxis(values, axis, -1)
    for index in np.ndindex(lines.shape[:-1]):
        line = np.moveaxis(packed, axis, -1)[index]
        assert line.tolist() == spelled_out(lines[index].tolist(), num_bits, layout)
    found = unpack(packed, num_bits, layout, values.shape, signed, axis=axis)
    np.testing.assert_array_equal(found, values)


@everything
def test_strides_byte_order_and_wider_dtypes_do_not_matter(layout, num_bits, signed):
    values = samples(num_bits, signed, (6, 8, 9))
    expected = pack(np.array(values), num_bits, layout)
    wide = values.astype(np.int64)
    odd = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:].view(values.dtype)
    variants = [
        np.asfortranarray(values),
        np.repeat(values, 2, axis=1)[:, ::2],
        np.ascontiguousarray(values[::-1, :, ::-1])[::-1, :, ::-1],
        wide,
        wide.astype(">i4"),
        values.astype(values.dtype.newbyteorder(">")),
        odd.reshape(values.shape),  # not aligned
        values.tolist(),
    ]
    for variant in variants:
        packed = pack(variant, num_bits, layout, signed=signed)
        np.testing.assert_array_equal(packed, expected)
    spread = np.repeat(expected, 3, axis=0)[::3]
    for variant in (spread, expected.view(f"i{expected.itemsize}"), expected.astype(">u4")):
        if variant.itemsize == expected.itemsize:
            found = unpack(variant, num_bits, layout, values.shape, signed)
            np.testing.assert_array_equal(found, values)
    content = expected.astype(expected.dtype.newbyteorder("<")).tobytes()
    found = unpack(content, num_bits, layout, values.shape, signed)
    np.testing.assert_array_equal(found, values)


def test_read_only_and_unchanged_inputs():
    for layout, num_bits, signed in COMBINATIONS:
        values = samples(num_bits, signed, 64)
        values.flags.writeable = False
        packed = pack(values, num_bits, layout)
        packed.flags.writeable = False
        found = unpack(packed, num_bits, layout, 64, signed)
        np.testing.assert_array_equal(found, values)
        assert found.flags.writeable


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
def test_nothing(shape):
    for layout, num_bits, signed in COMBINATIONS:
        for axis in (None, 0, -1):
            packed = pack(np.empty(shape, np.int8), num_bits, layout, axis=axis)
            assert packed.size == 0
            found = unpack(packed, num_bits, layout, shape, signed, axis=axis)
            assert found.shape == shape
            assert found.dtype == dtype_of(num_bits, signed)


def test_one_number():
    assert pack(np.int8(-1), 3, "lsb").tolist() == [7]
    assert unpack(b"\7", 3, "lsb", (), True) == -1
    assert pack([], 3, "lsb").shape == (0,)


@st.composite
def cases(draw):
    layout, num_bits, signed = draw(st.sampled_from(COMBINATIONS))
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=1, max_size=3)))
    low, high = bounds(num_bits, signed)
    size = math.prod(shape)
    values = draw(st.lists(st.integers(low, high - 1), min_size=size, max_size=size))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    array = np.array(values, np.int64).reshape(shape)
    return layout, num_bits, signed, axis, array


@given(cases())
def test_there_and_back(case):
    layout, num_bits, signed, axis, values = case
    packed = pack(values, num_bits, layout, axis=axis, signed=signed)
    found = unpack(packed, num_bits, layout, values.shape, signed, axis=axis)
    np.testing.assert_array_equal(found, values)


@given(cases(), st.data())
def test_what_can_be_unpacked_packs_to_the_same(case, data):
    layout, num_bits, signed, axis, values = case
    packed = pack(values, num_bits, layout, axis=axis, signed=signed)
    stored = bytearray(packed.tobytes())
    if not stored:
        return
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = np.frombuffer(bytes(stored), packed.dtype).reshape(packed.shape)
    try:
        found = unpack(flipped, num_bits, layout, values.shape, signed, axis=axis)
    except QmathError:  # the bit was padding: the values alone cannot tell
        return
    assert (found != values).sum() == 1
    np.testing.assert_array_equal(pack(found, num_bits, layout, axis=axis), flipped)


@everything
def test_each_padding_bit_is_refused(layout, num_bits, signed):
    size = 32 // num_bits + 1
    ones = np.full(size, -1 if signed else (1 << num_bits) - 1, dtype_of(num_bits, signed))
    packed = pack(ones, num_bits, layout, axis=0)
    for index in range(packed.size):
        for bit in range(8 * packed.itemsize):
            if not packed[index] >> bit & 1:
                wrong = packed.copy()
                wrong[index] |= packed.dtype.type(1 << bit)
                with pytest.raises(QmathError, match=f"^unpack: {wrong[index]:#x} has bits set"):
                    unpack(wrong, num_bits, layout, size, signed)


@everything
def test_values_that_do_not_fit(layout, num_bits, signed):
    low, high = bounds(num_bits, signed)
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        limits = np.iinfo(dtype)
        for wrong in {low - 1, high, -1, limits.min, limits.max, 1 << 63, 1 << 32, 1 << 16, 1 << 8}:
            if low <= wrong < high or not limits.min <= wrong <= limits.max:
                continue
            values = np.zeros((3, 7), dtype)
            values[1, 2] = wrong
            with pytest.raises(QmathError, match=rf"^pack: {wrong} at \(1, 2\) is not one of"):
                pack(values, num_bits, layout, signed=signed)
            with pytest.raises(QmathError, match=rf"{wrong} at \(1, 2\) is not one of {low} "):
                pack(values, num_bits, layout, axis=0, signed=signed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack([1.0], 4, "lsb"), "pack: the values are float64"),
        (lambda: pack([True], 1, "lsb"), "pack: the values are bool"),
        (lambda: pack(["1"], 4, "lsb"), "pack: the values are <U1"),
        (lambda: pack([1 << 80], 4, "lsb"), "pack: the values are object"),
        (lambda: pack([1], 0, "lsb"), "pack: num_bits=0; layout 'lsb' is for 1 to 16 bits"),
        (lambda: pack([1], 17, "words"), "pack: num_bits=17; layout 'words' is for 1 to 16"),
        (lambda: pack([1], 4.0, "lsb"), "pack: num_bits=4.0;"),
        (lambda: pack([1], True, "lsb"), "pack: num_bits=True;"),
        (lambda: pack([1], 3, "nibbles"), "pack: num_bits=3; layout 'nibbles' is for 4 bits"),
        (lambda: pack([1], 5, "keras_int4"), "layout 'keras_int4' is for 4 bits"),
        (lambda: pack([1], 4, "dense"), "pack: no layout 'dense'; there are lsb, msb, nibbles"),
        (lambda: pack([1], 4, "lsb", axis=1), "pack: axis=1 of an array of 1 dimensions"),
        (lambda: pack([1], 4, "lsb", axis=np.array([0])), r"pack: axis=array\(\[0\]\) of"),
        (lambda: pack([1], 4, "lsb", axis="0"), "pack: axis='0' of"),
        (lambda: pack(1, 4, "keras_int4"), "pack: axis=-1 of an array of 0 dimensions"),
        (lambda: unpack([1], 3, "nibbles", 2, True), "unpack: num_bits=3;"),
        (lambda: unpack([1], 3, "other", 2, True), "unpack: no layout 'other'"),
        (lambda: unpack(b"\1", 4, "nibbles", 3, True), r"has shape \(1,\), but .* \(2,\)"),
        (lambda: unpack(b"\1\2", 4, "nibbles", 2, True), r"has shape \(2,\), but .* \(1,\)"),
        (lambda: unpack(b"\1\2\3", 4, "words", 2, True), r"has shape \(3,\), but .* \(1,\)"),
        (lambda: unpack(b"\1", 4, "words", 2, True), "is uint8, but .* are uint32"),
        (lambda: unpack(np.ones((1, 1), np.uint8), 4, "lsb", 2, True), r"has shape \(1, 1\)"),
        (lambda: unpack(np.ones(1), 4, "lsb", 2, True), "is float64, but .* are uint8"),
        (lambda: unpack(np.ones(1, np.int64), 4, "words", 2, True), "is int64, but .* uint32"),
        (lambda: unpack(b"\1", 4, "lsb", -1, True), "unpack: shape=-1,"),
        (lambda: unpack(b"\1", 4, "lsb", (2.0,), True), r"unpack: shape=\(2.0,\),"),
        (lambda: unpack(b"\1", 4, "lsb", (2,), True, axis=-2), "unpack: axis=-2"),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(QmathError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['layout']}-{v['num_bits']}")
def test_golden(vector):
    layout, num_bits, signed = vector["layout"], vector["num_bits"], vector["signed"]
    values = np.array(vector["values"]).reshape(vector["shape"])
    packed = np.array(vector["packed"], np.uint32 if layout == "words" else np.uint8)
    packed = packed.reshape(vector["packed_shape"])
    found = pack(values, num_bits, layout, axis=vector["axis"], signed=signed)
    np.testing.assert_array_equal(found, packed, strict=True)
    found = unpack(packed, num_bits, layout, values.shape, signed, axis=vector["axis"])
    np.testing.assert_array_equal(found, values)


def test_golden_vectors_reach_every_layout_and_width():
    assert {(v["layout"], v["num_bits"], v["signed"]) for v in VECTORS} == set(COMBINATIONS)
