"""What a C program finds in the arrays and macros of a ``c`` export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.exports.compiling import compiled, run


def read(place: Path) -> dict[str, np.ndarray]:
    """Return integers, scales and zero points of the weights by key, printed by a program."""
    manifest = json.loads((place / "manifest.json").read_text())
    names = {key: f"model_{name}" for name, key in manifest["export"]["identifiers"].items()}
    weights = {k: e for k, e in manifest["tensors"].items() if e["role"] == "weight"}
    lines = ["#include <stdio.h>", '#include "model.h"', '#include "qmath_check.h"']
    lines += ["int main(void)", "{", "    size_t i;"]
    for key, entry in weights.items():
        array, scale, zero = (names[key + part] for part in ("", ".scale", ".zero_point"))
        value = f"qm_integer(&{array}_integers, i)"
        size = int(np.prod(entry["shape"]))
        lines.append(f'    for (i = 0; i < {size}; ++i) printf("%ld\\n", (long){value});')
        index = "[i]" if entry["axis"] is not None else ""
        scale, zero = (n + index if index else n.upper() for n in (scale, zero))
        lines.append(f"    for (i = 0; i < {len(entry['scale_bits'])}; ++i)")
        lines.append(
            f'        printf("%lu %ld\\n", (unsigned long)qm_bits({scale}), (long){zero});'
        )
    reader = place.with_name("reader.c")
    reader.write_text("\n".join([*lines, "    return 0;", "}", ""]))
    status, output = run(compiled(place, reader, place / "model_data.c"))
    assert status == 0
    numbers = np.array(output.split(), np.int64)
    arrays = {}
    for key, entry in weights.items():
        size, count = int(np.prod(entry["shape"])), 2 * len(entry["scale_bits"])
        arrays[key] = numbers[:size].reshape(entry["shape"])
        pairs = numbers[size : size + count].reshape(-1, 2)
        shape = (
            ()
            if entry["axis"] is None
            else (-1,) + (1,) * (len(entry["shape"]) - 1 - entry["axis"])
        )
        arrays[f"{key}.scale"] = pairs[:, 0].astype(np.uint32).view(np.float32).reshape(shape)
        arrays[f"{key}.zero_point"] = pairs[:, 1].astype(np.int32).reshape(shape)
        numbers = numbers[size + count :]
    assert not numbers.size
    return arrays
