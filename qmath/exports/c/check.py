"""The self-check in C: every array against its checksum, the model against its test vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.program import Model
from qmath.exports.c.tensors import Code
from qmath.integer.program import QuantizeStep

__all__ = ["check_source"]


def check_source(code: Code, bundle: Bundle, model: Model | None) -> Iterator[str]:
    """Yield the lines of the test after its first includes."""
    vectors = bundle.manifest["options"]["vectors"] if model else 0
    calls = [f"    failures += {call};" for call in code.checks]
    yield '#include "qmath_check.h"\n'
    yield from code.tables
    body: list[str] = []
    if model and vectors:
        tables, body = _vectors(bundle, model, vectors)
        yield from tables
    yield "\nint main(void)\n{\n    int failures = 0;\n"
    yield from calls
    yield from body
    yield "    if (failures)\n        return 1;"
    what = f"{len(calls)} arrays" + (f", {vectors} test vectors" if body else "")
    yield f'    printf("ok: {what}\\n");\n    return 0;\n}}'


def _vectors(bundle: Bundle, model: Model, count: int) -> tuple[list[str], list[str]]:
    """Return what the test vectors are, and the statements that run them."""
    assert bundle.program is not None
    tables, body = [], [f"    for (size_t v = 0; v < {count}; ++v) {{"]
    inputs: dict[str, str] = {}
    for number, (name, shape) in enumerate(bundle.program.inputs.items()):
        inputs[name] = f"input_{number}"
        values = source.storable(bundle.vectors[f"vectors/{name}"], name)
        tables.append(f"\n/* {source.plain(name)}: {source.plain(str(shape))} */")
        tables.append(source.array(inputs[name], values, "static "))
    number = 0
    for run, steps in model.runs:
        checks = []
        for step in steps:
            size, zero = math.prod(step.shape), step.params.zero_point
            name, buffer = source.string(step.name), model.buffers[step.name]
            integers = bundle.vectors[f"vectors/{step.name}"]
            where = f"{buffer}, {size}, {zero}"
            if isinstance(step, QuantizeStep) and step.source in inputs:
                at = f"{inputs[step.source]} + v * {size}"
                body.append(f"        {model.setters[step.name]}({at});")
            is_whole = isinstance(step, QuantizeStep) and step.source not in inputs
            if is_whole or step.name in bundle.program.outputs:
                golden = f"golden_{number}"
                tables.append(source.array(golden, integers.astype(np.uint16), "static "))
                at = f"{golden} + v * {size}"
                if is_whole:
                    body.append(f"        qm_put({where}, {at});")
                else:
                    checks.append(f"qm_check_output({name}, {where}, {at})")
            else:
                golden = f"golden_{number}"
                sums = [source.checksum(vector.astype(np.int32)) for vector in integers]
                tables.append(f"static const uint32_t {golden}[] = {source.braces(sums)};")
                checks.append(f"qm_check_tensor({name}, {where}, {golden}[v])")
            number += 1
        body.append(f"        {run}();")
        body += [f"        failures += {check};" for check in checks]
    return tables, [*body, "    }"]
