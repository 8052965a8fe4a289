"""Directed vectors: they reach what they say, they are the executor's, and they find mistakes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmath import QmathError
from qmath.integer.api import program_of
from qmath.integer.bounds import channel_intervals
from qmath.integer.directed.cases import PURPOSES, channels_text
from qmath.integer.directed.goals import Line, goals_of
from qmath.integer.directed.layout import layout_of
from qmath.integer.directed.mistakes import rounding_of
from qmath.integer.directed.residues import least_residues, least_roots
from qmath.integer.directed.solving import solve
from qmath.integer.directed.vectors import directed_vectors
from qmath.integer.directed.views import view_of
from qmath.integer.executor import Executor
from qmath.integer.profiles.exact import clamps
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import FloatStep, Program, Requantize
from tests.exports import networks

SAMPLES = Path("reference/samples")
MODELS = {
    "images": networks.images,
    "branches": networks.branches,
    "signals": networks.signals,
    "float_layers": networks.float_layers,
    "combinations": networks.combinations,
    "functions": networks.functions,
    "convolutions": networks.convolutions,
    "volumes": networks.volumes,
    "layers": lambda: networks.layers(4, weight_bits=8),
    "narrow": lambda: networks.images(bits=3, weight_bits=2),
    "wide": lambda: networks.images(bits=16, weight_bits=4),
    "default8": lambda: SAMPLES / "default8.h5",
    "nbit4": lambda: SAMPLES / "nbit4.h5",
}


@pytest.fixture(scope="module", params=MODELS)
def program(request: pytest.FixtureRequest) -> Program:
    return program_of(MODELS[request.param]())


def sums_of(program, step, inputs):
    """Return the accumulators of a step, each of the output's shape."""
    found = []
    executor = Executor(program, Integer())
    expected = executor.apply(step, inputs, lambda _, sums: found.extend(sums))
    count = len(expected)
    return [np.broadcast_to(a, (count, *step.shape)).astype(np.int64) for a in found], expected


def tagged(cases, purpose):
    """Return the flat indices of the elements that serve a purpose."""
    bit = np.uint32(1 << PURPOSES.index(purpose))
    return cases.tags[(cases.tags[:, 1] & bit) != 0, 0].astype(np.int64)


@given(
    st.integers(-(2**20), 2**20), st.integers(-(2**20), 2**20), st.integers(1, 2**12),
    st.integers(0, 300),
)  # fmt: skip
def test_the_least_residue_is_the_least(a, b, modulus, last):
    every = [(a * x + b) % modulus for x in range(last + 1)]
    found = least_residues(a, b, modulus, last)
    assert every[found[0]] == min(every)
    residues = [every[x] for x in found]
    assert residues == sorted(residues)


@given(
    st.integers(-(2**12), 2**12), st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=9),
    st.integers(1, 8), st.integers(-300, 300),
)  # fmt: skip
def test_the_least_root_is_the_first_on_a_tie(multiplier, addends, shift, low):
    found, exists = least_roots(multiplier, np.array(addends, np.int64), shift, low)
    for addend, a, is_root in zip(addends, found.tolist(), exists.tolist(), strict=True):
        roots = (
            x
            for x in range(low, low + (1 << shift))
            if not (x * multiplier + addend) % (1 << shift)
        )
        assert next(roots, None) == (a if is_root else None)


@st.composite
def channels(draw):
    """Return lines, clamps, ends and spacing of a channel."""
    shift = draw(st.integers(1, 10))
    half = 1 << (shift - 1)
    multiplier = draw(st.integers(0, 600))
    offset = draw(st.integers(-3000, 3000))
    lines = [Line(multiplier, offset + half, shift)]
    if draw(st.booleans()):  # a leaky ReLU of half the slope
        lines = [Line(2 * multiplier, 2 * offset + half, shift), lines[0]]
    low = draw(st.integers(-9, 3))
    clamps = low, low + draw(st.integers(0, 12))
    ends = draw(st.integers(-200, 0)), draw(st.integers(0, 200))
    return lines, clamps, ends, draw(st.integers(1, 4))


@given(channels())
def test_goals_are_those_of_looking_at_every_accumulator(channel):
    (first, *rest), (low, high), (least, most), spacing = channel
    least, most = -(-least // spacing) * spacing, most // spacing * spacing
    goals = goals_of([first, *rest], (low, high), (least, most), spacing)
    every = {}
    for a in range(least, most + 1, spacing):
        total = a * first.multiplier + first.addend
        line = rest[0] if rest and total < 1 << (first.shift - 1) else first
        every[a] = line.result(a), (a * line.multiplier + line.addend) / 2.0**line.shift % 1.0

    def shown(y, other):
        return min(max(y, low), high) != min(max(other, low), high)

    serves = {
        "upper clamp": {a for a, (y, _) in every.items() if y == high},
        "past the upper clamp": {a for a, (y, _) in every.items() if y == high + 1},
        "lower clamp": {a for a, (y, _) in every.items() if y == low},
        "past the lower clamp": {a for a, (y, _) in every.items() if y == low - 1},
        "half to even": {a for a, (y, r) in every.items() if shown(y, y - 1) and not r and y % 2},
        "half away from zero": {
            a for a, (y, r) in every.items() if shown(y, y - 1) and not r and y <= 0
        },
    }
    for purpose, accumulators in serves.items():
        wanted = {a for candidates in goals.wanted.get(purpose, []) for a in candidates}
        assert wanted <= accumulators, purpose
        if first.multiplier:  # of others nothing is sought
            assert bool(wanted) == bool(accumulators), purpose
        assert not (purpose in goals.unreachable and accumulators and first.multiplier)
    above = [r for y, r in every.values() if shown(y, y - 1)]
    below = [1 - r for y, r in every.values() if shown(y, y + 1)]
    if first.multiplier:
        assert goals.above == min(above, default=1.0)
        assert goals.below == min(below, default=1.0)


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 12), st.sampled_from([(0, 255), (-120, 135), (0, 3)]))
def test_solved_inputs_have_the_sum_and_stay_within_their_limits(seed, width, limits):
    rng = np.random.RandomState(seed)
    weights = rng.randint(-8, 8, (20, width)).astype(np.int64)
    hidden = rng.randint(limits[0], limits[1] + 1, weights.shape)
    targets = (weights * hidden).sum(1)
    inputs, is_found = solve(weights, targets, limits, rng)
    assert inputs.min() >= limits[0]
    assert inputs.max() <= limits[1]
    assert is_found.tolist() == ((weights * inputs).sum(1) == targets).tolist()


def test_most_sums_of_eight_bit_weights_are_solved():
    rng = np.random.RandomState(0)
    weights = rng.randint(-127, 128, (500, 9)).astype(np.int64)
    targets = (weights * rng.randint(0, 256, weights.shape)).sum(1)
    assert solve(weights, targets, (0, 255), rng)[1].mean() > 0.9


def test_a_view_reads_what_the_operations_read(program):
    rng = np.random.RandomState(0)
    shapes = {step.name: step.shape for step in program.steps}
    for step in program.steps:
        if not isinstance(step, Requantize):
            continue
        for number, term in enumerate(step.value.terms):
            view = view_of(term, shapes[term.source], step.shape)
            if view is None:
                continue
            sources = {
                t.source: rng.randint(t.params.low, t.params.high + 1, (1, *shapes[t.source]))
                for t in step.value.terms
            }
            sums, _ = sums_of(program, step, sources)
            flat = sources[term.source].reshape(-1) - term.params.zero_point
            read = np.concatenate([[0], flat])[view.inputs(np.arange(len(view.cells)))]
            found = np.einsum("pgk,gko->pgo", read, view.weights).reshape(len(read), -1)
            shown = view.elements >= 0
            assert np.array_equal(sums[number].reshape(-1)[view.elements[shown]], found[shown]), (
                step.name
            )


def test_every_sum_but_products_has_a_layout_whose_views_add_up(program):
    rng = np.random.RandomState(1)
    shapes = {step.name: step.shape for step in program.steps}
    for step in program.steps:
        if not isinstance(step, Requantize):
            continue
        layout = layout_of(step, shapes)
        if any(op.factor for term in step.value.terms for op in term.ops):
            assert layout is None
            continue
        terms = {term.source: term.params for term in step.value.terms}
        sources = {
            name: rng.randint(params.low, params.high + 1, (1, *shapes[name]))
            for name, params in terms.items()
        }
        sums, _ = sums_of(program, step, sources)
        for number, term in enumerate(step.value.terms):
            view = layout.views[number]
            flat = sources[term.source].reshape(-1) - term.params.zero_point
            read = np.concatenate([[0], flat])[view.inputs(layout.positions)]
            found = np.einsum("pgk,gko->pgo", read, view.weights).reshape(len(read), -1)
            elements = view.elements[layout.positions]
            expected = sums[number].reshape(-1)[elements]
            assert ((expected == found) | (elements < 0)).all(), step.name


def test_sums_that_share_inputs_reach_their_clamps_and_come_near_to_ties():
    cases = directed_vectors(program_of(networks.branches()))["relu6/output"]
    clamps = {"upper clamp", "past the upper clamp", "lower clamp", "past the lower clamp"}
    for purpose in {"below a tie", "above a tie", "narrow accumulator"} | clamps:
        assert {*(tagged(cases, purpose) % 4)} == {0, 1, 2, 3}, purpose


def test_others_beside_a_weighted_term_are_chosen_for_a_tie():
    found = directed_vectors(program_of(networks.combinations()))
    for name in ("average11/output", "add12/output"):
        for purpose in ("half to even", "half away from zero"):
            assert len(tagged(found[name], purpose)), (name, purpose)


def test_expected_integers_are_the_executors(program):
    executor = Executor(program, Integer())
    found = directed_vectors(program)
    assert list(found) == [s.name for s in program.steps if not isinstance(s, FloatStep)]
    for name, cases in found.items():
        step = program.step(name)
        assert np.array_equal(executor.apply(step, cases.inputs), cases.expected)
        assert cases.expected.shape[1:] == step.shape


def test_tags_are_true(program):
    for name, cases in directed_vectors(program).items():
        step = program.step(name)
        assert (np.diff(cases.tags[:, 0].astype(np.int64)) > 0).all()
        assert cases.tags[:, 0].max(initial=0) < cases.expected.size
        if not isinstance(step, Requantize):
            continue
        sums, _ = sums_of(program, step, cases.inputs)
        # Terms of a concatenation are not read everywhere; of two sums, ends are those of both.
        is_single = len(sums) == 1 and sum(op.sums for op in step.value.terms[0].ops) < 2
        for purpose, end in (("least accumulator", 0), ("greatest accumulator", 1)) * is_single:
            at = tagged(cases, purpose)
            for a, term in zip(sums, step.value.terms, strict=True):
                ends = np.broadcast_to(channel_intervals(term)[end], a.shape).reshape(-1)
                assert (a.reshape(-1)[at] == ends[at]).all(), (name, purpose)
        low, high = (np.broadcast_to(c, cases.expected.shape).reshape(-1) for c in clamps(step))
        relative = cases.expected.reshape(-1).astype(np.int64) - step.params.zero_point
        for purpose, limit in (("upper clamp", high), ("past the upper clamp", high),
                               ("lower clamp", low), ("past the lower clamp", low)):  # fmt: skip
            at = tagged(cases, purpose)
            assert (relative[at] == limit[at]).all(), (name, purpose)


def test_a_purpose_is_reached_or_there_is_a_reason_or_it_is_listed(program):
    for name, cases in directed_vectors(program).items():
        step = program.step(name)
        if not isinstance(step, Requantize):
            continue
        for purpose in PURPOSES[: PURPOSES.index("constant input")]:
            listed = purpose in cases.unreachable or purpose in cases.missed
            assert listed or cases.purposes.get(purpose), (name, purpose)


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_unreachable_is_so_for_every_input(seed, activation):
    net = networks.Network(3, bits=4, weight_bits=4, seed=seed)
    net.add("Dense", kernel=(3, 5), activation=activation, ends=(-2.0 * (seed % 2), 1.0 + seed))
    program = program_of(net.model())
    step = program.steps[-1]
    every = np.array(list(np.ndindex(16, 16, 16)), np.uint8)
    sums, _ = sums_of(program, step, {program.steps[0].name: every})
    cases = directed_vectors(program)[step.name]
    constants = Integer().constants(step, Executor(program).intervals(step))
    masks = rounding_of(step, constants, 31).masks(sums)
    for purpose, reasons in cases.unreachable.items():
        channels = [*map(int, expanded(", ".join(reasons.values())))]
        if not purpose.endswith("a tie"):
            assert not masks.get(purpose, np.zeros((1, 5), bool))[:, channels].any(), purpose
    (reached,) = (a for a in sums_of(program, step, cases.inputs)[0])
    assert np.array_equal(reached.max(0), sums[0].max(0))
    assert np.array_equal(reached.min(0), sums[0].min(0))
    for purpose in ("upper clamp", "past the upper clamp", "lower clamp", "past the lower clamp"):
        possible = {*np.flatnonzero(masks[purpose].any(0))}
        assert {*(tagged(cases, purpose) % 5)} == possible, purpose


def expanded(text):
    """Yield the channels of a text of runs."""
    for run in text.split(", "):
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


def test_each_weighted_channel_reaches_its_extremes():
    for name in ("default8", "nbit4"):
        for step, cases in directed_vectors(program_of(SAMPLES / f"{name}.h5")).items():
            if step in ("quantize_layer/output", "flatten"):
                continue
            channels = cases.expected.shape[-1]
            for purpose in ("greatest accumulator", "least accumulator", "no rounding"):
                assert {*(tagged(cases, purpose) % channels)} == {*range(channels)}, step


def test_few_bytes_drop_goals_and_list_them():
    program = program_of(SAMPLES / "default8.h5")
    rich, poor = directed_vectors(program), directed_vectors(program, model_bytes=20_000)
    assert sum(cases.nbytes for cases in poor.values()) <= 20_000
    assert "greatest accumulator" in poor["dense/post_activation"].missed
    assert "greatest accumulator" not in rich["dense/post_activation"].missed
    for cases in directed_vectors(program, layer_bytes=9_000).values():
        assert cases.nbytes <= 9_000
    one = directed_vectors(program, model_bytes=0)
    assert all(len(cases.expected) == 1 for cases in one.values())


@pytest.mark.parametrize("seed", range(8))
def test_one_input_shows_the_last_integer_of_a_relu(seed):
    """So that a kernel that does not write it fails."""
    net = networks.Network(24, 24, 3, seed=seed)
    net.add("Conv2D", kernel=(1, 1, 3, 4), activation="relu", ends=(0.0, 3.0))
    net.add("DepthwiseConv2D", kernel=(3, 3, 4, 1), activation="relu", ends=(0.0, 2.0))
    program = program_of(net.model())
    for name, cases in directed_vectors(program, model_bytes=0).items():
        assert len(cases.expected) == 1
        assert cases.expected.reshape(-1)[-1] != program.step(name).params.zero_point, name


def products():
    """Return a network of products: by a gate, of equal shapes, of one tensor, and cropped."""
    net = networks.Network(6, 5, 4)
    start = net.nodes[-1].name
    one = net.add("Conv2D", start, kernel=(1, 1, 4, 4), ends=(-3.039, 4.068))
    gate = net.add("GlobalAveragePooling2D", start, ends=(-0.312, 0.420))
    outputs = [
        net.add("Multiply", one, gate, ends=(-0.9, 0.7)),
        net.add("Multiply", one, start, ends=(-2.5, 3.4)),
        net.add("Multiply", one, one, ends=(0.0, 9.0)),
    ]
    net.add("Multiply", start, one, gate)
    net.add("Cropping2D", cropping=((1, 0), (2, 1)))
    outputs.append(net.add("LeakyReLU", alpha=0.25, ends=(-0.378, 0.612)))
    return net.model(*outputs), outputs


def test_products_reach_their_ends_their_clamps_and_their_ties():
    model, outputs = products()
    found = directed_vectors(program_of(model))
    clamps = {"upper clamp", "past the upper clamp", "lower clamp", "past the lower clamp"}
    wanted = {"greatest accumulator", "least accumulator", "below a tie", "above a tie", *clamps}
    for name in (*outputs[:2], outputs[3]):
        cases = found[f"{name}/output"]
        for purpose in wanted | {"double rounding", "12-bit multiplier", "narrow accumulator"}:
            assert {*(tagged(cases, purpose) % 4)} == {0, 1, 2, 3}, (name, purpose)
        assert cases.missed.keys() <= {"half to even", "half away from zero"}
    square = found[f"{outputs[2]}/output"]
    assert {*(tagged(square, "greatest accumulator") % 4)} == {0, 1, 2, 3}
    # Two factors that are one integer have no other sign than each other.
    assert "no combination of integers does it" in square.unreachable["least accumulator"]


def test_a_gate_serves_many_goals_in_one_input():
    net = networks.Network(16, 16, 4)
    start = net.nodes[-1].name
    gate = net.add("GlobalAveragePooling2D", start, ends=(-0.312, 0.420))
    name = net.add("Multiply", start, gate, ends=(-0.45, 0.55))
    cases = directed_vectors(program_of(net.model()), model_bytes=0)[f"{name}/output"]
    assert len(cases.expected) == 1
    for purpose in ("greatest accumulator", "upper clamp", "past the upper clamp"):
        assert {*(tagged(cases, purpose) % 4)} == {0, 1, 2, 3}, purpose


def test_the_last_integer_of_a_product_of_small_factors_is_shown():
    name = "multiply8/output"
    program = program_of(networks.combinations())
    cases = directed_vectors(program)[name]
    assert (cases.expected[:, -1, -1, -1] != program.step(name).params.zero_point).any()


def test_a_negative_number_of_bytes_is_refused():
    with pytest.raises(QmathError, match="layer_bytes must not be negative, got -1"):
        directed_vectors(program_of(SAMPLES / "default8.h5"), layer_bytes=-1)


def test_they_are_the_same_everywhere():
    """The digest was written once, on NumPy 2; NumPy 1 and other machines give the same."""
    digest = hashlib.sha256()
    for name, cases in directed_vectors(program_of(networks.images())).items():
        digest.update(name.encode())
        for array in (*cases.inputs.values(), cases.expected, cases.tags):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == "48f59d17e8c1db7ba921eff2d710beca1f0dfd7e2932f06131022d6786455705"


def test_a_pool_that_pads_with_zero_gives_other_maxima():
    program = program_of(networks.images())
    cases = directed_vectors(program)["maxpooling2d4"]
    step = program.step("maxpooling2d4")
    (x,) = cases.inputs.values()
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=step.params.zero_point)
    corners = (padded[:, i : i + 4, j : j + 8] for i in (0, 1) for j in (0, 1))
    made = np.maximum.reduce([*corners])
    assert (made[:, :-1, :-1] == cases.expected[:, :-1, :-1]).all()
    assert (made[0, -1] != cases.expected[0, -1]).any(0).all()  # in each channel
    assert (made[0, :, -1] != cases.expected[0, :, -1]).any(0).all()


def test_moves_tell_every_position_apart():
    for name, cases in directed_vectors(program_of(networks.images())).items():
        if name in ("zeropadding2d2", "permute9", "reshape10", "upsampling1d11", "flatten14"):
            (x,) = cases.inputs.values()
            values = x.reshape(len(x), -1).T
            assert len(np.unique(values, axis=0)) == len(values), name


def test_quantizers_meet_both_sides_of_every_tie():
    program = program_of(networks.images())
    cases = directed_vectors(program)["quantizelayer1/output"]
    (x,) = cases.inputs.values()
    order = np.argsort(x.reshape(-1), kind="stable")
    floats, integers = x.reshape(-1)[order], cases.expected.reshape(-1)[order].astype(int)
    assert (np.diff(integers) >= 0).all()
    steps = np.flatnonzero(np.diff(integers))
    assert len(steps) == 255
    assert (np.nextafter(floats[steps], np.float32(np.inf)) == floats[steps + 1]).all()


def test_channels_are_written_as_runs():
    assert channels_text([]) == ""
    assert channels_text([3, 4, 7, 9, 10, 11]) == "3-4, 7, 9-11"


def test_what_another_kernel_made_is_judged():
    cases = directed_vectors(program_of(SAMPLES / "default8.h5"))["relu6/output"]
    assert cases.differences(cases.expected) == ()
    assert cases.differences(cases.expected.astype(np.int64)) == ()
    low = np.maximum(cases.expected, 1)
    head, *lines, last = cases.differences(low)
    count = np.count_nonzero(cases.expected == 0)
    assert head.startswith(f"relu6/output: {count} of {low.size} integers differ, the first is 1 ")
    assert "lower clamp: 16 of 16 wrong, the first in channel" in "\n".join(lines)
    assert last.startswith("never wrong: ")
    assert "past the upper clamp" in last
    at = tagged(cases, "above a tie")[3]
    one = cases.expected.copy()
    one.reshape(-1)[at] ^= 1
    found = cases.differences(one)
    assert f"above a tie: 1 of 16 wrong, the first in channel {at % 16}" in found
    everything = cases.differences(cases.expected ^ 1)
    assert everything[-1] == "never wrong: none"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            np.zeros((2, 4, 4, 16), np.uint8),
            r"expected integers of shape \(\d+, 4, 4, 16\), got uint8",
        ),
        (np.zeros((6, 4, 4, 16)), "got float64 of shape"),
    ],
)
def test_what_is_no_answer_is_refused(made, message):
    cases = directed_vectors(program_of(SAMPLES / "default8.h5"))["relu6/output"]
    with pytest.raises(QmathError, match=message):
        cases.differences(made)


def test_the_pages_code_runs(capsys):
    page = Path("docs/vectors.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    exec(code, {})
    output = capsys.readouterr().out
    assert "upper clamp: 10 of 10 wrong" in output


def test_nothing_is_proved_of_sums_of_several_terms_that_other_inputs_can_change():
    net = networks.Network(4, 4, 2)
    start = net.nodes[-1].name
    convolved = net.add("Conv2D", start, kernel=(1, 1, 2, 2), ends=(-2.0, 2.0))
    other = net.add("Conv2D", convolved, kernel=(3, 3, 2, 2), padding="same")
    net.add("Add", other, start, ends=(-60.0, 60.0))
    cases = directed_vectors(program_of(net.model()))["add4/output"]
    assert len(cases.inputs) == 2
    reasons = {reason for why in cases.unreachable.values() for reason in why}
    assert reasons <= {"its accumulators need fewer bits than another channel's"}
    assert {"upper clamp", "lower clamp"} <= {*cases.missed}
    assert {*(tagged(cases, "greatest accumulator") % 2)} == {0, 1}
