"""The self-check in C: the arrays, and, where CMSIS-NN is at hand, each layer by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.check import tag_table, whole_vectors
from qmath.exports.c.tensors import Code
from qmath.exports.cmsis_nn.calls import Writer
from qmath.exports.cmsis_nn.layers import CmsisNnArithmetic, Layer
from qmath.integer.executor import Executor
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import Requantize

__all__ = ["check_source", "directed", "expected"]

Int8Array = NDArray[np.int8]


def expected(
    bundle: Bundle, layers: Sequence[Layer], rounding: str
) -> tuple[dict[str, Int8Array], dict[str, Int8Array]]:
    """Return what each layer reads, by source, and what it makes of that, by layer.

    Every layer starts from the integers of the profile ``integer``, so that each is judged by
    itself. All are signed, as TFLite stores them.
    """
    program = bundle.program
    assert program is not None
    profile, results = CmsisNnArithmetic(rounding), {}  # type: ignore[arg-type]
    computed = {layer.step for layer in layers}

    def watch(step: Requantize, sums: list[NDArray[Any]]) -> None:
        if step.name in computed:
            relative = profile.requantize(step, sums, ())
            results[step.name] = relative.astype(np.int32)

    inputs = {name: bundle.vectors[f"vectors/{name}"] for name in program.feeds}
    bits = bundle.manifest["options"]["multiplier_bits"]
    Executor(program, Integer(bits)).run(inputs, watch=watch, keep=())
    made = {}
    for layer in layers:
        region = (slice(None), *layer.region)
        made[layer.name] = (results[layer.step][region] + layer.kernel.output.zero_point).astype(
            np.int8
        )
    found = program.quant_params
    halves = {name: 2 ** (params.num_bits - 1) for name, params in found.items()}
    read = {
        name: (bundle.vectors[f"vectors/{name}"].astype(np.int32) - halves[name]).astype(np.int8)
        for name in dict.fromkeys(layer.source for layer in layers)
    }
    return read, made


def directed(
    bundle: Bundle, layers: Sequence[Layer], rounding: str
) -> Iterator[tuple[Int8Array, Int8Array, NDArray[np.uint32]]]:
    """Yield of each layer its directed inputs, what it makes of them, and the elements' tags.

    The tags are those of the profile ``integer``, whose ties are not CMSIS-NN's: near them it is
    next to one of its own, or not.
    """
    program = bundle.program
    assert program is not None
    executor = Executor(program, CmsisNnArithmetic(rounding))  # type: ignore[arg-type]
    params = program.quant_params
    for layer in layers:
        step, cases = program.step(layer.step), bundle.directed[layer.step]
        assert isinstance(step, Requantize)
        given = cases.inputs[layer.source]
        half = 2 ** (params[layer.source].num_bits - 1)
        made = executor.apply(step, cases.inputs).astype(np.int32) - step.params.zero_point
        inside = np.zeros(made.shape, bool)
        region = (slice(None), *layer.region)
        inside[region] = True
        places = np.cumsum(inside.reshape(-1)) - 1
        tags = cases.tags[inside.reshape(-1)[cases.tags[:, 0]]]
        tags = np.stack([places[tags[:, 0]], tags[:, 1]], axis=1).astype(np.uint32)
        part = made[region] + layer.kernel.output.zero_point
        yield (given.astype(np.int32) - half).astype(np.int8), part.astype(np.int8), tags


def check_source(
    bundle: Bundle,
    code: Code,
    layers: Sequence[Layer],
    writer: Writer,
    prefix: str,
    rounding: str,
) -> Iterator[str]:
    """Yield the lines of the test after its first include."""
    vectors = whole_vectors(bundle)
    yield '#include "qmath_check.h"\n'
    yield from code.tables
    if vectors:
        yield "\n/* With QM_WITH_CMSIS_NN defined, the layers are checked, too. */"
        yield "#ifdef QM_WITH_CMSIS_NN"
        yield f'#include "{prefix}_layers.h"\n'
        yield from _layer_check(bundle, layers, writer, vectors, rounding)
        yield "#endif"
    yield "\nint main(void)\n{\n    int failures = 0;\n"
    yield from (f"    failures += {call};" for call in code.checks)
    if vectors:
        yield "#ifdef QM_WITH_CMSIS_NN\n    failures += check_layers();\n#endif"
    yield "    if (failures)\n        return 1;"
    yield f'    printf("ok: {len(code.checks)} arrays\\n");\n    return 0;\n}}'


def _layer_check(
    bundle: Bundle, layers: Sequence[Layer], writer: Writer, vectors: int, rounding: str
) -> Iterator[str]:
    """Yield inputs, expected outputs, and the function that runs the layers."""
    read, made = expected(bundle, layers, rounding)
    inputs = {name: f"input_{number}" for number, name in enumerate(read)}
    for name, array in read.items():
        yield source.comment(name)
        yield source.array(inputs[name], array, "static ")
    for number, layer in enumerate(layers):
        sums = [source.checksum(vector) for vector in made[layer.name]]
        yield f"static const uint32_t output_{number}[] = {source.braces(sums)};"
    for number, (given, results, tags) in enumerate(
        directed(bundle, layers, rounding) if bundle.directed else ()
    ):
        yield source.array(f"given_{number}", given, "static ")
        sums = [source.checksum(output) for output in results.astype(np.int32)]
        yield f"static const uint32_t sums_of_{number}[] = {source.braces(sums)};"
        yield tag_table(f"tags_{number}", tags, results.astype(np.int32).reshape(-1))
    largest = max(math.prod(layer.out_shape) for layer in layers)
    # A few columns of the input in 16 bits, and a sum for each output.
    needs = [8 * (layer.weights[0].size + 64) + 4 * layer.out_shape[2] for layer in layers]
    yield (
        f"static int32_t buffer[{max(needs) // 4}];\n"
        f"static int8_t output[{largest}];\nstatic qm_found found[{largest}];\n\n"
        "static int check_layers(void)\n{\n"
        "    const cmsis_nn_context ctx = {buffer, (int32_t)sizeof buffer};\n"
        f"    int failures = 0, v;\n\n    for (v = 0; v < {vectors}; ++v) {{"
    )
    for number, layer in enumerate(layers):
        name = source.string(layer.name)
        run, made_size = writer.runs[layer.name], math.prod(layer.out_shape)
        call = f"{run}(&ctx, {inputs[layer.source]} + v * {math.prod(layer.in_shape)}, output)"
        check = f"qm_check_values({name}, output, 1, {made_size}, output_{number}[v])"
        yield f"        if ({writer.sizes[layer.name]}() > ctx.size)"
        yield f'            failures += qm_report({name}, "the buffer\'s size", 0, 1);'
        yield f"        else if ({call})"
        yield f'            failures += qm_report({name}, "the status", 1, 0);'
        yield f"        else\n            failures += {check};"
    yield "    }"
    for number, layer in enumerate(layers if bundle.directed else ()):
        yield from _directed_check(number, layer, len(bundle.directed[layer.step].expected), writer)
    yield f'    printf("{len(layers)} layers, {vectors} vectors, {rounding} rounding\\n");'
    yield "    return failures;\n}"


def _directed_check(number: int, layer: Layer, count: int, writer: Writer) -> Iterator[str]:
    """Yield the statements that run a layer on its directed vectors."""
    name, size = source.string(layer.name), math.prod(layer.out_shape)
    each, tags = math.prod(layer.in_shape), f"tags_{number}"
    yield f"    if ({writer.sizes[layer.name]}() <= ctx.size) {{"
    yield "        static qm_tally tally;\n        int i;\n"
    yield f"        for (v = 0; v < {count}; ++v) {{"
    yield f"            failures += {writer.runs[layer.name]}(&ctx, given_{number} + v * {each}, "
    yield "                output) != ARM_CMSIS_NN_SUCCESS;"
    yield f"            for (i = 0; i < {size}; ++i)\n                found[i] = output[i];"
    yield (
        f"            qm_count(&tally, found, {size}, 0, sums_of_{number}[v], {tags}, "
        f"sizeof {tags} / sizeof *{tags});"
    )
    yield f"        }}\n        failures += qm_report_tally({name}, &tally, {layer.out_shape[-1]});"
    yield "    }"
