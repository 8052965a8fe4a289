"""The judge of directed vectors: mistakes in kernels are found, proved harmless, or reported."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reference.mistakes import __main__ as command
from reference.mistakes import equal, in_c, in_verilog
from reference.mistakes.c_mistakes import SUBSTITUTIONS as IN_C
from reference.mistakes.catalogue import MISTAKES
from reference.mistakes.judge import Verdict, in_numpy
from reference.mistakes.kernel import Kernel
from reference.mistakes.layers import Constants, layers_of
from reference.mistakes.models import Exports, model_named
from tests.exports import networks
from tests.exports.compiling import needs_compiler
from tests.exports.memory_readers import needs_simulator

ROOT = Path(__file__).parents[1]
NAMES = [mistake.name for mistake in MISTAKES]
# One or two of each group: all of them take a minute.
SLICE = (
    "no upper clamp", "rounds twice", "half to even", "16-bit multiplier", "one bit too narrow",
    "saturates one bit early", "bias added after rounding", "output channels shifted by one",
    "stride ignored", "padding of begin and end swapped", "kernel flipped", "nibbles swapped",
    "weights not sign-extended", "last integer unwritten", "no upper clamp of floats",
)  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Return the exports of a sample with integers of 4 bits."""
    return Exports(model_named("integer4"), tmp_path_factory.mktemp("integer4"))


@pytest.fixture(scope="module")
def layers(sample):
    return list(layers_of(sample.arrays()))


@pytest.fixture(scope="module")
def verdicts(layers):
    return in_numpy(layers)


def cut_to_noise(layers):
    """Return layers whose directed vectors are what whole-model vectors give them."""
    none = np.zeros((0, 2), np.uint32)
    return [
        replace(x, inputs=x.noise[0], expected=x.noise[1], tags=none) for x in layers if x.noise
    ]


def of(model, folder):
    return list(layers_of(Exports(model, folder).arrays()))


def test_the_catalogue():
    assert len(set(NAMES)) == len(NAMES) > 60
    assert set(IN_C) < set(NAMES)
    assert set(in_verilog.SUBSTITUTIONS) < set(NAMES)
    assert set(SLICE) < set(IN_C)
    acted_by_itself = set(NAMES) - set(IN_C) - set(in_verilog.SUBSTITUTIONS)
    assert len(acted_by_itself) < 8


def test_every_mistake_is_found_in_every_layer_of_a_sample_or_proved_to_change_nothing(verdicts):
    assert {name: v.survived for name, v in verdicts.items() if v.survived} == {}
    outcomes = [verdict.outcome for verdict in verdicts.values()]
    assert outcomes.count("killed") > 40
    assert outcomes.count("equivalent") > 5
    assert verdicts["no upper clamp"].purposes[0] in (
        "past the upper clamp",
        "greatest accumulator",
    )


def test_noise_instead_of_directed_vectors_lets_mistakes_survive(layers):
    found = in_numpy(cut_to_noise(layers))
    survivors = {name for name, verdict in found.items() if verdict.survived}
    assert {"no lower clamp", "one bit too narrow", "no upper clamp of floats"} < survivors
    assert "weights negated" not in survivors
    why = found["one bit too narrow"].survived.values()
    assert all("accumulator" in text and "not" in text for text in why)
    assert found["one bit too narrow"].killed.keys() == {*found["one bit too narrow"].noise}


@pytest.mark.parametrize(
    "make",
    [
        networks.images,
        networks.branches,
        networks.signals,
        networks.float_layers,
        networks.combinations,
        networks.convolutions,
    ],
)
@pytest.mark.parametrize("bits", [3, 8])
def test_the_kernel_computes_every_layer_from_the_file_alone(tmp_path, make, bits):
    options = {} if make is networks.float_layers else {"bits": bits, "weight_bits": bits}
    found = of(make(**options), tmp_path)
    assert len(found) > 2
    in_numpy(found, ())  # which raises if an integer of directed vectors or noise is wrong


def test_a_wrong_kernel_is_no_judge(layers):
    layer = replace(layers[1], expected=layers[1].expected + 1)
    with pytest.raises(ValueError, match="is not right"):
        in_numpy([layer], ())


@pytest.mark.slow
def test_most_mistakes_act_somewhere(tmp_path):
    acts = set()
    for make in (networks.images, networks.branches):
        folder = tmp_path / make.__name__
        folder.mkdir()
        found = in_numpy(of(make(weight_bits=4), folder))
        acts |= {name for name, v in found.items() if v.outcome == "killed"}
    # These need strides that differ, a tie, and products of tensors.
    assert set(NAMES) - acts <= {
        "strides of height and width swapped", "half away from zero", "half down", "half to even",
        "average counts the padding", "multiplier one too high", "multiplier one too low",
        "24-bit multiplier", "no zero point of the factor", "factor of the next channel",
    }  # fmt: skip


# Of kernels that the samples do not have.
OTHERS = (
    "negative slope on the wrong side", "maximum and minimum swapped", "factor of the next channel"
)  # fmt: skip
IN_NUMPY = (*OTHERS, "no zero point of the factor", "rounds down", "no upper clamp", "rounds twice")


@pytest.mark.slow
@needs_compiler
def test_mistakes_in_products_extremes_and_slopes_are_found_in_every_layer(tmp_path):
    exports = Exports(networks.combinations(), tmp_path)
    chosen = [mistake for mistake in MISTAKES if mistake.name in IN_NUMPY]
    known = in_numpy(layers_of(exports.arrays()), chosen)
    found = in_c.in_c(exports.c(), known, OTHERS)
    for verdict in (*known.values(), *found.values()):
        assert verdict.survived == {}, verdict.name
        assert verdict.killed, verdict.name
    for name in OTHERS:
        assert found[name].killed.keys() == known[name].killed.keys()
    assert len(known["no upper clamp"].noise) < len(known["no upper clamp"].killed)


@pytest.mark.slow
def test_the_proof_agrees_with_every_accumulator(tmp_path):
    """No claim about runs and jumps: all accumulators of small layers, one after another."""
    model = networks.layers(2, weight_bits=3, bits=4)
    proved = shown = 0
    for layer in of(model, tmp_path):
        if layer.kind != "requantize" or len(layer.terms) > 1:
            continue
        low, high = equal.intervals(layer, layer.terms[0])
        reach = np.arange(low.min(), high.max() + 1)
        sums = np.broadcast_to(reach.reshape(-1, 1), (len(reach), layer.shape[-1]))
        inside = (sums >= low) & (sums <= high)
        right = Kernel().requantize(layer, [sums], 0)
        for mistake in MISTAKES:
            claim = equal.first_difference(mistake, layer)
            if claim is not None:
                wrong = Kernel(mistake.stage, mistake.change).requantize(layer, [sums], 0)
                is_equal = not ((wrong != right) & inside).any()
                assert is_equal == (claim == ""), (layer.name, mistake.name, claim)
                proved, shown = proved + is_equal, shown + (not is_equal)
    assert proved > 20
    assert shown > 100


@pytest.mark.parametrize(
    "make", [networks.images, networks.branches, networks.combinations, networks.convolutions]
)
def test_accumulators_stay_in_their_intervals(tmp_path, make):
    for layer in of(make(), tmp_path):
        for term in layer.terms:
            relative = {
                name: x.astype(np.int64) - layer.grids[name].zero_point
                for name, x in layer.inputs.items()
            }
            sums = Kernel().sums(layer, term, relative)
            low, high = equal.intervals(layer, term)
            assert (sums >= low).all()
            assert (sums <= high).all()


def test_ties_of_several_terms_are_all_found():
    rng, count = np.random.default_rng(0), 0
    for _ in range(200):
        ends = [(-int(rng.integers(6)), int(rng.integers(6))) for _ in range(3)]
        shift, addend = int(rng.integers(5, 9)), int(rng.integers(-200, 200))
        multipliers = [int(m) for m in rng.integers(1, 60, 3) * rng.choice([-1, 1], 3)]
        c = Constants((*map(np.array, multipliers),), *map(np.array, (addend, shift, 0, 9)))
        found = equal._on_ties(ends, (c, None))
        if found is None:  # one term has several
            continue
        every = itertools.product(*(range(low, high + 1) for low, high in ends))
        wanted = {a for a in every if (np.dot(a, multipliers) + addend) % (1 << shift) == 0}
        assert {*zip(*(x.tolist() for x in found), strict=True)} == wanted
        count += len(wanted)
    assert count > 100


@pytest.mark.once
@pytest.mark.slow
@needs_compiler
def test_a_slice_in_c(sample, verdicts):
    found = in_c.in_c(sample.c(), verdicts, SLICE)
    for name in SLICE:
        assert found[name].survived == {}
        assert found[name].killed.keys() == verdicts[name].killed.keys(), name
        purposes = [set(of_layer) for of_layer in found[name].killed.values()]
        assert purposes == [set(verdicts[name].killed[layer]) for layer in found[name].killed]


@pytest.mark.slow
@needs_simulator
def test_a_slice_in_verilog(tmp_path):
    names = ("no upper clamp", "output channels reversed", "one bit too narrow")
    exports = Exports(model_named("default8"), tmp_path, vector_bytes=1 << 12)
    layers = layers_of(exports.arrays())
    known = in_numpy(layers, [m for m in MISTAKES if m.name in names])
    found = in_verilog.in_verilog(exports.verilog(), known, names)
    for name in names:
        assert found[name].killed.keys() == known[name].killed.keys()
        assert found[name].survived.keys() == known[name].survived.keys()
        assert found[name].killed


def test_each_substitution_in_c_is_possible():
    texts = {
        name: (ROOT / "qmath/exports/c" / name).read_text(encoding="utf-8") for name in in_c.HEADERS
    }
    for name, swaps in IN_C.items():
        assert in_c.substituted(name, texts, swaps) != texts
    first = IN_C["no bias"][0][0]
    stale = {**texts, "qmath_kernels.h": texts["qmath_kernels.h"].replace(first, "")}
    with pytest.raises(in_c.StaleError, match=r"no bias: .* is there 0 times"):
        in_c.substituted("no bias", stale, IN_C["no bias"])


def test_a_substitution_in_verilog_that_is_stale():
    with pytest.raises(in_c.StaleError, match=r"no bias: .* is there 2 times"):
        in_verilog.substituted("no bias", "y = a + addend[0]; y = a + addend[0];")


def test_what_a_self_check_says():
    output = (
        "a/b: 2 of 9 directed outputs differ\n"
        "  upper clamp: 1 of 3 wrong, the first in channel 2: 5, expected 4\n"
        "  never wrong: border;\n"
        "c: 1 of 9 directed outputs differ\n  never wrong:\n"
        "a/b: the checksum is 1, expected 2\nd: element 3 is 1, expected 2\n"
    )
    killed, noise = in_c.told(output)
    assert killed == {"a/b": ("upper clamp",), "c": ("noise between",)}
    assert noise == ["a/b", "d"]


def test_outcomes_of_a_model():
    assert Verdict("a").outcome == "not applicable"
    assert Verdict("a", equal=["b"]).outcome == "equivalent"
    assert Verdict("a", equal=["b"], survived={"c": ""}).outcome == "survived"
    assert Verdict("a", survived={"c": ""}, killed={"d": ()}).outcome == "killed"


def test_the_command(tmp_path, capsys, monkeypatch):
    arguments = ["--models", "integer4", "--kernels", "numpy", "--json", str(tmp_path / "o.json")]
    assert command.main([*arguments, "--table"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    results = json.loads((tmp_path / "o.json").read_text())
    assert results["integer4"]["numpy"]["no upper clamp"]["outcome"] == "killed"
    # The page has the same numbers, made on another machine.
    page = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
    assert out.splitlines()[2] in page
    assert all(f"| {name} |" in page for name in NAMES)

    monkeypatch.setattr(command, "layers_of", lambda path: cut_to_noise(layers_of(path)))
    assert command.main(arguments) == 1
    assert "integer4, numpy: survived: no lower clamp of floats" in capsys.readouterr().err
