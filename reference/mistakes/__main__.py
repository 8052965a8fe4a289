"""Judge directed vectors by mistakes: ``python -m reference.mistakes [--models …] [--kernels …]``.

Each mistake is put into kernels that compute the layers of exported models: the exported C, which
``cc`` compiles (``c``), a kernel in NumPy (``numpy``), one that rounds as TFLite does, judged by
the vectors of a ``.tflite`` (``tflite``), the exported testbenches, which Icarus Verilog runs
(``verilog``, of the samples alone). A mistake is *killed* in a layer if the layer's
directed vectors show it; *equivalent* if it is proved to change no result; else it *survives*.
Exits with 1 if one survives in all layers of a model.

Models are the samples, the tests' networks of `reference.mistakes.models.NETWORKS`, files such as
``model.h5``, and the names of `reference.models`, for which TensorFlow builds them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reference.mistakes.in_c import in_c
from reference.mistakes.in_tflite import in_tflite
from reference.mistakes.in_verilog import in_verilog
from reference.mistakes.judge import Verdict, in_numpy
from reference.mistakes.layers import layers_of
from reference.mistakes.models import SAMPLES, Exports, model_named
from reference.mistakes.table import tables

KERNELS = ("numpy", "c", "tflite", "verilog")


def judged(name: str, kernels: Sequence[str]) -> dict[str, dict[str, Verdict]]:
    """Return by kernel and mistake what becomes of it in a model."""
    with tempfile.TemporaryDirectory() as folder:
        exports = Exports(model_named(name), Path(folder))
        arrays = exports.arrays()
        found = {"numpy": in_numpy(layers_of(arrays))}
        if "c" in kernels:
            found["c"] = in_c(exports.c(), found["numpy"])
        if "tflite" in kernels:
            found["tflite"] = in_tflite(exports.model, exports.tflite(), layers_of(arrays))
        if "verilog" in kernels and name in SAMPLES:
            found["verilog"] = in_verilog(exports.verilog(), found["numpy"])
    return found


def document(found: Mapping[str, Verdict]) -> dict[str, Any]:
    """Return verdicts as JSON values."""
    return {name: {"outcome": v.outcome, **asdict(v)} for name, v in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.mistakes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", default=[*SAMPLES, "mobilenetv2"])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all verdicts there")
    parser.add_argument("--table", action="store_true", help="print tables in Markdown")
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name in options.models:
        found = judged(name, options.kernels)
        of_model = results[Path(name).stem] = {k: document(v) for k, v in found.items()}
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        for kernel, verdicts in of_model.items():
            for mistake, verdict in verdicts.items():
                if verdict["outcome"] == "survived":
                    print(f"{name}, {kernel}: survived: {mistake}", file=sys.stderr)
    if options.table or not options.json:
        print("\n".join(tables(results)))
    outcomes = {v["outcome"] for ks in results.values() for vs in ks.values() for v in vs.values()}
    return int("survived" in outcomes)


if __name__ == "__main__":
    sys.exit(main())
