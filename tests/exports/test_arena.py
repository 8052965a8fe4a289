"""The arena of the C export: tensors that are needed at once share no bytes, and few are lost."""

import itertools
import json
import math
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmath import verify
from qmath.exports.bundle import quantize_model
from qmath.exports.c.arena import Buffer, least_bytes, plan
from qmath.exports.c.lifetimes import Lifetimes
from qmath.exports.c.program import add_program
from qmath.exports.c.tensors import Code, Names, add_tensors
from qmath.exports.writing import export
from qmath.integer.profiles.fixed import constants
from reference.mistakes.models import model_named
from tests.exports import networks
from tests.exports.compiling import compiled, needs_compiler, run

SAMPLES = ("default8", "nbit4", "integer4", "question")
MADE = {
    make.__name__: make
    for make in (
        networks.images, networks.branches, networks.signals, networks.float_layers,
        networks.combinations, networks.convolutions, networks.functions, networks.volumes,
    )
}  # fmt: skip


@st.composite
def some_buffers(draw):
    times = st.integers(0, 12)
    found = []
    for i in range(draw(st.integers(0, 20))):
        first, last = sorted((draw(times), draw(times)))
        width = draw(st.sampled_from([1, 2, 4, 8]))
        found.append(Buffer(f"b{i}", width * draw(st.integers(1, 40)), width, first, last))
    return found


def check(buffers):
    """Assert that a plan is one; return its bytes, and the least that there could be."""
    starts, total = plan(buffers)
    assert starts.keys() == {b.name for b in buffers}
    for b in buffers:
        assert starts[b.name] >= 0
        assert starts[b.name] % b.alignment == 0
        assert starts[b.name] + b.size <= total
    for a, b in itertools.combinations(buffers, 2):
        if a.first <= b.last and b.first <= a.last:
            ends = starts[a.name] + a.size, starts[b.name] + b.size
            assert ends[0] <= starts[b.name] or ends[1] <= starts[a.name], (a, b)
    least = least_bytes(buffers)
    assert total >= least
    return total, least


@given(some_buffers())
@settings(deadline=None)
def test_buffers_of_one_time_do_not_overlap(buffers):
    check(buffers)


def test_the_least_bytes():
    buffers = [Buffer("a", 4, 1, 0, 2), Buffer("b", 6, 1, 1, 1), Buffer("c", 7, 1, 2, 3)]
    assert least_bytes(buffers) == 11
    assert least_bytes([]) == 0


def model_in_c(of, **options):
    bundle = quantize_model(of)
    names, code = Names("model", bundle), Code()
    views = add_tensors(code, bundle, names, "bytes")
    return bundle.program, add_program(
        code, bundle, constants(bundle.program), names, views, **options
    )


@pytest.mark.parametrize("name", [*MADE, *SAMPLES])
def test_the_arena_of_a_model_is_close_to_the_least(name):
    if name in SAMPLES:
        pytest.importorskip("h5py")
        of = model_named(name)
    else:
        of = MADE[name]()
    _, model = model_in_c(of)
    total, least = check(model.arena)
    assert total == model.arena_bytes
    assert total <= 1.1 * least


def test_what_float_layers_read_stays_until_the_next_segment_has_begun():
    program, _ = model_in_c(networks.float_layers())
    times = Lifetimes(program)
    second = [step.name for step in program.quantized][2]
    read = [name for name in ("conv2d2/output",) if name in program.quant_params]
    assert read
    assert times[read[0]][1] >= times[second][0]


def test_all_tensors_stay_if_told_so():
    _, model = model_in_c(networks.images(), keeps_all=True)
    assert model.arena_bytes >= sum(b.size for b in model.arena)
    assert len({(b.first, b.last) for b in model.arena}) == 1


def test_what_each_layer_costs(tmp_path):
    of = networks.images()
    bundle = export(of, tmp_path / "out", format="c")
    costs = json.loads((tmp_path / "out/manifest.json").read_text())["export"]["costs"]
    layers, program = costs["layers"], bundle.program
    assert [*layers] == [step.name for step in program.quantized]
    assert max(layer["ram"] for layer in layers.values()) <= costs["arena"]
    sizes = {step.name: math.prod(step.shape) for step in program.quantized}
    assert layers["maxpooling2d4"]["ram"] == sizes["conv2d3/output"] + sizes["maxpooling2d4"]
    products = {name: layer["multiplications"] for name, layer in layers.items()}
    assert products["conv2d3/output"] == sizes["conv2d3/output"] * 3 * 2 * 3
    assert products["leakyrelu6/output"] == sizes["leakyrelu6/output"] * 3 * 3
    assert products["conv2dtranspose7/output"] == sizes["leakyrelu6/output"] * 3 * 3 * 5
    assert products["dense12/output"] == sizes["dense12/output"] * 8
    # Integers, their zero points, a multiplier, an addend and a shift for each channel; two clamps.
    assert layers["conv2d3/output"]["flash"] == 3 * 2 * 3 * 4 + 4 * 4 + 4 * (4 + 8 + 1) + 2 * 4
    assert layers["activation13/output"]["flash"] == 4 * 256
    assert layers["conv2d3/output"]["accumulator_bits"] == 19
    header = (tmp_path / "out/model.h").read_text()
    (row,) = (line.split() for line in header.splitlines() if line.startswith(" * conv2d3/output"))
    assert [*map(int, row[2:])] == [*layers["conv2d3/output"].values()]
    assert verify(of, tmp_path / "out").ok


READER = """#include <stdio.h>
#include "model.h"
int main(void)
{
    static uint64_t memory[(MODEL_ARENA_BYTES + 7) / 8];
    static float x[MODEL_QUANTIZELAYER1_OUTPUT_SIZE];
    size_t i;
    if (fread(x, sizeof x, 1, stdin) != 1)
        return 1;
    model_use_arena(memory);
    model_set_quantizelayer1_output(x);
    model_run();
    for (i = 0; i < MODEL_CONV2D3_OUTPUT_SIZE; ++i)
        printf("%d\\n", model_conv2d3_output()[i]);
    return 0;
}
"""


@needs_compiler
def test_memory_of_the_callers_in_which_every_layer_stays(tmp_path):
    place, reader = tmp_path / "out", tmp_path / "reader.c"
    bundle = export(
        networks.images(), place, format="c", vectors=1, vector_bytes=0, arena="caller", keep="all"
    )
    assert run(compiled(place))[0] == 0
    reader.write_text(READER)
    program = compiled(place, reader, place / "model.c", place / "model_data.c")
    (name,) = bundle.program.inputs
    x = bundle.vectors[f"vectors/{name}"].tobytes()
    output = subprocess.run([program], input=x, capture_output=True, check=True).stdout
    expected = bundle.vectors["vectors/conv2d3/output"].ravel().tolist()
    assert [int(value) for value in output.split()] == expected
