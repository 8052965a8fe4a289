"""The self-check in C: every array against its checksum, the model against its test vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.program import Model
from qmath.exports.c.tensors import Code
from qmath.integer.directed.cases import Cases
from qmath.integer.program import FloatStep, QuantizeStep

__all__ = ["check_source", "tag_table", "whole_vectors"]


def check_source(code: Code, bundle: Bundle, model: Model | None) -> Iterator[str]:
    """Yield the lines of the test after its first includes."""
    vectors = whole_vectors(bundle) if model else 0
    calls = [f"    failures += {call};" for call in code.checks]
    yield '#include "qmath_check.h"\n'
    yield from code.tables
    body: list[str] = []
    if model and vectors:
        tables, body = _vectors(bundle, model, vectors)
        yield from tables
        for number, cases in enumerate(bundle.directed.values()):
            yield from _directed(number, cases, bundle, model)
        # First, as they say more of what is wrong.
        calls += [f"    failures += check_{number}();" for number in range(len(bundle.directed))]
    yield "\nint main(void)\n{\n    int failures = 0;"
    if model and model.use:
        yield f"    static uint64_t arena[({model.size} + 7) / 8];\n\n    {model.use}(arena);"
    yield ""
    yield from calls
    yield from body
    yield "    if (failures)\n        return 1;"
    directed = sum(len(cases.expected) for cases in bundle.directed.values())
    what = f"{len(code.checks)} arrays"
    if body:
        what += f", {directed} directed vectors" * bool(directed) + f", {vectors} test vectors"
    yield f'    printf("ok: {what}\\n");\n    return 0;\n}}'


def whole_vectors(bundle: Bundle) -> int:
    """Return how many vectors of the whole model there are."""
    inputs = bundle.program.inputs if bundle.program else ()
    return max((len(bundle.vectors.get(f"vectors/{name}", ())) for name in inputs), default=0)


def tag_table(name: str, tags: NDArray[np.uint32], expected: NDArray[np.int32]) -> str:
    """Return the table of a layer's tags in C; `expected` are the integers of all elements."""
    rows = zip(*tags.T.tolist(), expected[tags[:, 0]].tolist(), strict=True)
    body = ",\n    ".join(source.braces(row) for row in rows) or "{0, 0, 0}"
    return f"static const qm_tag {name}[] = {{\n    {body}}};"


def _directed(number: int, cases: Cases, bundle: Bundle, model: Model) -> Iterator[str]:
    """Yield the directed vectors of a step, and the function that runs it on them."""
    assert bundle.program is not None
    step = bundle.program.step(cases.step)
    assert not isinstance(step, FloatStep)
    name, size = source.string(step.name), math.prod(step.shape)
    count, channels = len(cases.expected), step.shape[-1] if step.shape else 1
    yield f"\n{source.comment('Directed vectors of ' + step.name)}"
    calls = []
    for i, (key, values) in enumerate(cases.inputs.items()):
        given = f"given_{number}_{i}"
        if key in model.types:
            values = values.astype(model.dtype(key))
        yield source.array(given, values, "static ")
        each = values[0].size
        if isinstance(step, QuantizeStep):
            calls.append(f"{model.setters[step.name]}({given} + v * {each});")
            continue
        calls.append(f"memcpy({model.buffers[key]}(), {given} + v * {each}, {values[0].nbytes});")
    if step.name in model.layers:
        calls.append(f"{model.layers[step.name]}();")
    expected = cases.expected.astype(np.int32)
    sums = [source.checksum(output) for output in expected]
    yield f"static const uint32_t sums_of_{number}[] = {source.braces(sums)};"
    yield tag_table(f"tags_{number}", cases.tags, expected.reshape(-1))
    yield f"\nstatic int check_{number}(void)\n{{\n    static qm_tally tally;\n    size_t v;\n"
    yield f"    for (v = 0; v < {count}; ++v) {{"
    yield from (f"        {call}" for call in calls)
    yield (
        f"        qm_count(&tally, {model.buffers[step.name]}(), "
        f"{model.dtype(step.name).itemsize}, {size}, sums_of_{number}[v], tags_{number}, "
        f"{len(cases.tags)});"
    )
    yield f"    }}\n    return qm_report_tally({name}, &tally, {channels});\n}}"


def _vectors(bundle: Bundle, model: Model, count: int) -> tuple[list[str], list[str]]:
    """Return what the test vectors are, and the statements that run them."""
    assert bundle.program is not None
    tables, body = [], [f"    for (size_t v = 0; v < {count}; ++v) {{"]
    inputs: dict[str, str] = {}
    read = {step.source for step in bundle.program.steps if isinstance(step, QuantizeStep)}
    feeds = bundle.program.feeds
    given = [name for name in feeds if name in bundle.program.inputs or name in read]
    for number, name in enumerate(given):
        inputs[name] = f"input_{number}"
        values = source.storable(bundle.vectors[f"vectors/{name}"], name)
        tables.append(f"\n/* {source.plain(name)}: {source.plain(str(feeds[name]))} */")
        tables.append(source.array(inputs[name], values, "static "))
    number = 0
    for run, steps in model.runs:
        sets, checks, outputs = [], [], []
        for step in steps:
            golden, dtype = f"golden_{number}", model.dtype(step.name)
            number += 1
            buffer, size = f"{model.buffers[step.name]}()", math.prod(step.shape)
            integers = bundle.vectors[f"vectors/{step.name}"]
            where = f"{source.string(step.name)}, {buffer}, {dtype.itemsize}, {size}"
            is_set = isinstance(step, QuantizeStep)
            is_given = isinstance(step, QuantizeStep) and step.source not in inputs
            if step.name in model.layers:
                checks.append(f"{model.layers[step.name]}();")
            elif isinstance(step, QuantizeStep) and not is_given:
                sets.append(f"{model.setters[step.name]}({inputs[step.source]} + v * {size});")
            if is_given or step.name in bundle.program.outputs:
                tables.append(source.array(golden, integers.astype(dtype), "static "))
                at = f"{golden} + v * {size}"
            else:
                sums = [source.checksum(vector.astype(np.int32)) for vector in integers]
                tables.append(f"static const uint32_t {golden}[] = {source.braces(sums)};")
            if is_given:
                sets.append(f"memcpy({buffer}, {at}, {size * dtype.itemsize});")
            elif step.name in bundle.program.outputs:
                checks.append(f"failures += qm_check_output({where}, {at});")
                outputs += [] if is_set else checks[-1:]
            else:
                checks.append(f"failures += qm_check_tensor({where}, {golden}[v]);")
        # One layer after another, as they share memory; then all at once.
        body += [f"        {line}" for line in (*sets, *checks, *sets, f"{run}();", *outputs)]
    return tables, [*body, "    }"]
