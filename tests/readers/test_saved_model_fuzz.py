"""SavedModels with damaged bytes: the one error, or a model; nothing else, and not for long.

``python -m tests.readers.test_saved_model_fuzz 10000 SEED`` tries more.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.errors import QmathError

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")

from qmath.containers import protos

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "saved_models" / "tf2.21"
MODELS = ("kernel_bias/keras_saved", "nested/tf_saved", "functional/exported",
          "unquantized/exported")  # fmt: skip
FILES = ("saved_model.pb", "saved_model.pb", "keras_metadata.pb", "variables/variables.index")
SECONDS = 20  # a mutant takes a tenth; machines that test may be busy


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut out, repeat or swap."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at, size = int(rng.integers(len(out))), int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            out[at : at + size] = rng.bytes(size)
        else:
            other = int(rng.integers(len(out)))
            out[at : at + size] = out[other : other + size]
    return bytes(out or b"\0")


def disarranged(data: bytes, rng: np.random.Generator) -> bytes:
    """Change ops, inputs, attributes and objects, so that the bytes are still a SavedModel."""
    saved = protos.parse("SavedModel", data, "")
    meta = saved.meta_graphs[0]
    nodes = [node for function in meta.graph_def.library.function for node in function.node_def]
    for _ in range(int(rng.integers(1, 9))):
        one, other = (nodes[int(rng.integers(len(nodes)))] for _ in range(2))
        kind = rng.integers(7)
        if kind == 0:
            one.op = other.op
        elif kind == 1 and one.input:
            one.input[int(rng.integers(len(one.input)))] = other.name
        elif kind == 2 and one.input:
            del one.input[int(rng.integers(len(one.input))) :]
        elif kind == 3 and one.attr:
            one.attr[str(rng.choice(sorted(one.attr)))].Clear()
        elif kind == 4:
            for key in other.attr:
                one.attr[key].CopyFrom(other.attr[key])
        elif kind == 5:
            for attr in one.attr.values():
                for place in range(len(attr.list.i)):
                    attr.list.i[place] = int(rng.integers(-3, 9))
                if attr.tensor.int_val:
                    attr.tensor.int_val[0] = int(rng.integers(-(2**31), 2**31))
        else:
            item = meta.object_graph_def.nodes[int(rng.integers(len(meta.object_graph_def.nodes)))]
            for child in item.children:
                child.node_id = int(rng.integers(len(meta.object_graph_def.nodes)))
    changed: bytes = saved.SerializeToString()
    return changed


def try_one(name: str, seed: int, folder: Path) -> str:
    """Load a mutant and return what came of it."""
    rng = np.random.default_rng([seed, *name.encode()])
    copy = folder / "mutant"
    shutil.copytree(GOLDEN / name, copy)
    present = [file for file in FILES if (copy / file).exists()]
    path = copy / present[int(rng.integers(len(present)))]
    change = disarranged if path.suffix == ".pb" and "saved" in path.name else damaged
    path.write_bytes((damaged if rng.integers(4) == 0 else change)(path.read_bytes(), rng))
    start = time.monotonic()
    try:
        model = qmath.load(copy)
        for tensor in model.tensors.values():
            if tensor.values is not None:
                np.asarray(tensor.values)
            if tensor.min is not None:
                assert np.isfinite(tensor.min).all()
                assert (tensor.min <= tensor.max).all()
        outcome = "layers" if model.graph else "tensors"
    except QmathError:
        outcome = "refused"
    finally:
        shutil.rmtree(copy)
    assert time.monotonic() - start < SECONDS, (name, seed)
    return outcome


@pytest.mark.parametrize("name", MODELS)
def test_mutants(tmp_path: Path, name: str) -> None:
    outcomes = {try_one(name, seed, tmp_path) for seed in range(30)}
    assert "refused" in outcomes


def main(count: int, first: int) -> None:
    """Try mutants of every model, and print how many of them came to what."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            for name in MODELS:
                try:
                    outcomes[try_one(name, seed, Path(folder))] += 1
                except Exception:
                    print(f"{name}, seed {seed}", file=sys.stderr)
                    raise
            if sys.stderr.isatty():
                print(f"\r{seed - first + 1}/{count}", end="", file=sys.stderr)
    print(dict(outcomes))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
