"""The self-check in C: the arrays, and, where CMSIS-NN is at hand, each layer by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.check import tag_table, whole_vectors
from qmath.exports.c.tensors import Code
from qmath.exports.cmsis_nn.calls import Writer
from qmath.exports.cmsis_nn.records import Layer
from qmath.integer.executor import Executor
from qmath.integer.profiles.fixed import Integer
from qmath.integer.profiles.tflm import Tflm
from qmath.integer.program import MoveStep, Requantize

__all__ = ["check_source", "directed", "expected"]

Int8Array = NDArray[np.int8]

# Filled, so that no layer finds in it what it has to put there itself.
_CONTEXT = """/* A buffer of the size that this build of CMSIS-NN asks for. */
static cmsis_nn_context new_context(int32_t size)
{
    cmsis_nn_context ctx = {malloc(size > 0 ? (size_t)size : 1), size};

    if (ctx.buf && size > 0)
        memset(ctx.buf, 0x5a, (size_t)size);
    return ctx;
}"""


def expected(
    bundle: Bundle, layers: Sequence[Layer], rounding: str
) -> tuple[dict[str, Int8Array], dict[str, Int8Array]]:
    """Return what each layer reads, by source, and what it makes of that, by layer.

    Every layer starts from the integers of the profile ``integer``, so that each is judged by
    itself. All are signed, as TFLite stores them.
    """
    program = bundle.program
    assert program is not None
    profile, results = Tflm(rounding, converts=False), {}  # type: ignore[arg-type]
    computed = {layer.step for layer in layers}

    def watch(step: Requantize, sums: list[NDArray[Any]]) -> None:
        if step.name in computed:
            relative = profile.requantize(step, sums, ())
            results[step.name] = relative.astype(np.int32)

    inputs = {name: bundle.vectors[f"vectors/{name}"] for name in program.feeds}
    bits = bundle.manifest["options"]["multiplier_bits"]
    moved = {layer.step for layer in layers if layer.kind == "max_pool"}
    kept = Executor(program, Integer(bits)).run(inputs, watch=watch, keep=moved)
    params = program.quant_params
    for name, integers in kept.items():
        results[name] = integers.astype(np.int32) - params[name].zero_point
    made = {}
    for layer in layers:
        region = (slice(None), *layer.region)
        made[layer.name] = (results[layer.step][region] + layer.output.zero_point).astype(np.int8)
    halves = {name: 2 ** (found.num_bits - 1) for name, found in params.items()}
    read = {
        name: (bundle.vectors[f"vectors/{name}"].astype(np.int32) - halves[name]).astype(np.int8)
        for name in dict.fromkeys(name for layer in layers for name in layer.sources)
    }
    return read, made


def directed(
    bundle: Bundle, layers: Sequence[Layer], rounding: str
) -> Iterator[tuple[dict[str, Int8Array], Int8Array, NDArray[np.uint32]]]:
    """Yield of each layer its directed inputs, what it makes of them, and the elements' tags.

    The tags are those of the profile ``integer``, whose ties are not CMSIS-NN's: near them it is
    next to one of its own, or not.
    """
    program = bundle.program
    assert program is not None
    executor = Executor(program, Tflm(rounding, converts=False))  # type: ignore[arg-type]
    params = program.quant_params
    for layer in layers:
        step, cases = program.step(layer.step), bundle.directed[layer.step]
        assert isinstance(step, Requantize | MoveStep)
        given = {
            name: (cases.inputs[name].astype(np.int32) - 2 ** (params[name].num_bits - 1)).astype(
                np.int8
            )
            for name in dict.fromkeys(layer.sources)
        }
        made = executor.apply(step, cases.inputs).astype(np.int32) - step.params.zero_point
        inside = np.zeros(made.shape, bool)
        region = (slice(None), *layer.region)
        inside[region] = True
        places = np.cumsum(inside.reshape(-1)) - 1
        tags = cases.tags[inside.reshape(-1)[cases.tags[:, 0]]]
        tags = np.stack([places[tags[:, 0]], tags[:, 1]], axis=1).astype(np.uint32)
        yield given, (made[region] + layer.output.zero_point).astype(np.int8), tags


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
        yield "#ifdef QM_WITH_CMSIS_NN\n#include <stdlib.h>\n"
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
    """Yield inputs, expected outputs, and the functions that run the layers."""
    read, made = expected(bundle, layers, rounding)
    inputs = {name: f"input_{number}" for number, name in enumerate(read)}
    for name, array in read.items():
        yield source.comment(name)
        yield source.array(inputs[name], array, "static ")
    largest = max(math.prod(layer.out_shape) for layer in layers)
    yield f"static int8_t output[{largest}];\nstatic int32_t found[{largest}];\n"
    yield _CONTEXT
    aimed = directed(bundle, layers, rounding) if bundle.directed else None
    for number, layer in enumerate(layers):
        yield f"\n{source.comment(layer.name)}"
        sums = [source.checksum(vector) for vector in made[layer.name]]
        yield f"static const uint32_t output_{number}[] = {source.braces(sums)};"
        body = _whole_check(number, layer, vectors, writer, inputs)
        if aimed:
            given, results, tags = next(aimed)
            names = {name: f"given_{number}_{i}" for i, name in enumerate(given)}
            yield from (source.array(names[name], given[name], "static ") for name in given)
            sums = [source.checksum(vector) for vector in results.astype(np.int32)]
            yield f"static const uint32_t sums_of_{number}[] = {source.braces(sums)};"
            yield tag_table(f"tags_{number}", tags, results.astype(np.int32).reshape(-1))
            body += _directed_check(number, layer, len(results), writer, names)
        yield f"\nstatic int check_{number}(void)\n{{"
        yield f"    const cmsis_nn_context ctx = new_context({writer.sizes[layer.name]}());"
        yield "    int failures = 0, v;\n"
        yield f"    if (!ctx.buf)\n        return qm_report({source.string(layer.name)},"
        yield '                         "the memory for its buffer", 0, 1);'
        yield from body
        yield "    free(ctx.buf);\n    return failures;\n}"
    yield "\nstatic int check_layers(void)\n{\n    int failures = 0;\n"
    yield from (f"    failures += check_{number}();" for number in range(len(layers)))
    yield f'    printf("{len(layers)} layers, {vectors} vectors, {rounding} rounding\\n");'
    yield "    return failures;\n}"


def _whole_check(
    number: int, layer: Layer, count: int, writer: Writer, inputs: Mapping[str, str]
) -> list[str]:
    """Return the statements that run a layer on its inputs within the whole model."""
    name, size = source.string(layer.name), math.prod(layer.out_shape)
    return [
        f"    for (v = 0; v < {count}; ++v) {{",
        f"        if ({_run(layer, writer, inputs)})",
        f'            failures += qm_report({name}, "the status", 1, 0);',
        "        else",
        f"            failures += qm_check_values({name}, output, 1, {size}, output_{number}[v]);",
        "    }",
    ]


def _directed_check(
    number: int, layer: Layer, count: int, writer: Writer, given: Mapping[str, str]
) -> list[str]:
    """Return the statements that run a layer on its directed vectors."""
    name, size = source.string(layer.name), math.prod(layer.out_shape)
    tags = f"tags_{number}"
    return [
        "    {\n        static qm_tally tally;\n        int i;\n",
        f"        for (v = 0; v < {count}; ++v) {{",
        f"            failures += {_run(layer, writer, given)} != ARM_CMSIS_NN_SUCCESS;",
        f"            for (i = 0; i < {size}; ++i)\n                found[i] = output[i];",
        f"            qm_count(&tally, found, 4, {size}, sums_of_{number}[v], {tags}, "
        f"sizeof {tags} / sizeof *{tags});",
        f"        }}\n        failures += qm_report_tally({name}, &tally, {layer.out_shape[-1]});",
        "    }",
    ]


def _run(layer: Layer, writer: Writer, inputs: Mapping[str, str]) -> str:
    """Return the call that runs a layer on one vector of its inputs."""
    each = math.prod(layer.in_shape)
    given = ", ".join(f"{inputs[name]} + v * {each}" for name in layer.sources)
    return f"{writer.runs[layer.name]}(&ctx, {given}, output)"
