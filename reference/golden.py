"""Write down what TensorFlow and TFMOT return: ``python -m reference.golden [--new NAME]``.

Golden files are written once and never regenerated: an existing one is not overwritten.
``--new NAME`` writes one file alone, for when another kind is added. What the files hold is in
``reference/golden/README.md``; they are read with NumPy only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reference import oracle
from reference.samples import RECIPES, SAMPLES, load

GOLDEN = Path(__file__).parent / "golden"
FLT_MIN = np.finfo(np.float32).tiny
FLT_MAX = np.finfo(np.float32).max
SUBNORMAL = np.float32(1e-41)

Arrays = dict[str, np.ndarray]


def samples() -> Arrays:
    """Return each sample's fake-quantized kernels, their stored ranges, and its predictions."""
    images = np.load(SAMPLES / "digits_test.npz")["images"]
    arrays = {}
    for sample in RECIPES:
        model = load(sample)
        arrays[f"{sample}/predictions"] = model(images, training=False).numpy()
        for wrapper in model.layers:
            # What QuantizeWrapper.call does to each weight when it is not training.
            for weight, quantizer, state in getattr(wrapper, "_weight_vars", []):
                weight_name = wrapper._weight_name(weight.name)
                name = f"{sample}/{wrapper.layer.name}/{weight_name}"
                arrays[name] = quantizer(weight, False, weights=state).numpy()
                arrays[f"{name}.min"] = state["min_var"].numpy()
                arrays[f"{name}.max"] = state["max_var"].numpy()
    return arrays


def ranges(generator: np.random.Generator) -> list[tuple[float, float]]:
    """Return ranges that training meets, and ranges that it should not."""
    ordinary = [(-1.0, 1.0), (-6.0, 6.0), (0.0, 6.0), (-9.719821e-05, 5.9997616), (-0.8, 0.7)]
    ordinary += [(-low, high) for low, high in generator.lognormal(0, 2, (5, 2))]
    symmetric = [(-high, high) for high in generator.lognormal(0, 2, 3)]
    return [
        *ordinary,
        *symmetric,
        (1.0, 2.0),
        (-2.0, -1.0),
        (0.0, 1.0),
        (-1.0, 0.0),
        (-0.0, 3.0),  # one-sided
        (2.0, 1.0),
        (1.0, -1.0),
        (0.0, -1.0),  # inverted
        (0.0, 0.0),
        (-0.0, 0.0),
        (SUBNORMAL, SUBNORMAL),
        (-SUBNORMAL, 0.0),
        (1.0, 1.0),
        (0.0, FLT_MIN),
        (0.0, 1e-37),
        (-1e-36, 1e-36),
        (-SUBNORMAL, 1.0),
        (-3e-38, 4e-38),
        (-FLT_MAX, FLT_MAX),
        (0.0, FLT_MAX),
        (-1e38, 1e38),
        (-np.inf, np.inf),
        (0.0, np.inf),
        (np.nan, 1.0),
        (-1.0, np.nan),
        (1e-3, 1000.0),
    ]


def nasty_inputs(
    low: float, high: float, num_bits: int, narrow_range: bool, generator: np.random.Generator
) -> np.ndarray:
    """Return 48 inputs for one range: its ends, ties, their neighbours, and special values."""
    special = [
        0.0,
        -0.0,
        SUBNORMAL,
        -SUBNORMAL,
        FLT_MIN,
        -FLT_MIN,
        np.inf,
        -np.inf,
        np.nan,
        FLT_MAX,
        -FLT_MAX,
        2.0,
    ]
    steps = 2**num_bits - 1 - narrow_range
    with np.errstate(all="ignore"):
        scale = (np.float64(high) - np.float64(low)) / steps
        first = np.rint(np.float64(low) / scale) if scale else 0.0
        ties = (first + generator.integers(0, steps, 6) + 0.5) * scale
        grid = (first + generator.integers(0, steps, 2)) * scale
        ends = [low, high, first * scale, (first + steps) * scale]
        middle = np.float32(np.concatenate([ties, ends]))
        neighbours = [np.nextafter(middle, np.float32(to)) for to in (-np.inf, np.inf)]
        inside = low + (np.float64(high) - low) * generator.uniform(-0.05, 1.05, 4)
        return np.float32(np.concatenate([special, grid[:2], inside[:4], middle, *neighbours]))


def incoming_gradients(size: int, special: bool, generator: np.random.Generator) -> np.ndarray:
    """Return gradients of twelve significant bits, some of them special values where asked."""
    gradients = np.float32(generator.integers(-2048, 2048, size) / 256)
    if special:
        values = [np.nan, np.inf, -np.inf, -0.0, SUBNORMAL, -SUBNORMAL]
        gradients[generator.integers(0, size, len(values))] = values
    return gradients


def fake_quant_cases() -> Iterator[
    tuple[str, int, bool, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
]:
    """Yield family, width, narrowness, minima, maxima, inputs and incoming gradients."""
    generator = np.random.default_rng(0)
    for num_bits, narrow_range in itertools.product(range(2, 17), (False, True)):
        every = np.float32(ranges(generator))
        chosen = every if num_bits in (2, 4, 8, 16) else every[generator.choice(len(every), 12)]
        inputs = np.stack(
            [nasty_inputs(*pair, num_bits, narrow_range, generator) for pair in chosen], axis=-1
        )
        for channel, (low, high) in enumerate(chosen):
            gradients = incoming_gradients(len(inputs), channel % 3 == 0, generator)
            for family in ("args", "vars"):
                yield (family, num_bits, narrow_range, low, high, inputs[:, channel], gradients)
        gradients = incoming_gradients(inputs.size, False, generator).reshape(inputs.shape)
        yield ("per_channel", num_bits, narrow_range, chosen[:, 0], chosen[:, 1], inputs, gradients)
    # Sums long enough to be cut in halves: their order shows in the last bits.
    inputs = np.float32(generator.choice([-2.0, 0.25, 2.0], (9003,)))
    gradients = np.float32(generator.integers(1, 2048, 9003) / 7)
    yield ("vars", 8, False, np.float32(-1), np.float32(1), inputs, gradients)
    yield (
        "per_channel",
        8,
        False,
        np.float32([-1, -3, 0]),
        np.float32([1, 3, 1]),
        inputs.reshape(-1, 3),
        gradients.reshape(-1, 3),
    )


def fake_quant() -> Arrays:
    """Return the six fake-quantization functions' outputs on nasty inputs, flat, with an index."""
    columns: dict[str, list[np.ndarray]] = {
        name: []
        for name in (
            "min",
            "max",
            "gradient_min",
            "gradient_max",
            "inputs",
            "gradients",
            "outputs",
            "gradient_inputs",
        )
    }
    cases = []
    start = range_start = 0
    for family, num_bits, narrow_range, low, high, inputs, gradients in fake_quant_cases():
        name = "args" if family == "args" else "vars" if family == "vars" else "vars_per_channel"
        settings = (low, high, num_bits, narrow_range)
        try:
            outputs = getattr(oracle, f"fake_quant_with_min_max_{name}")(inputs, *settings)
        except oracle.tf.errors.InvalidArgumentError:
            continue  # the args op refuses most of the odd ranges
        backward = getattr(oracle, f"fake_quant_with_min_max_{name}_gradient")(
            gradients, inputs, *settings
        )
        if family == "args":
            backward = (backward, np.float32(0), np.float32(0))
        values = (low, high, backward[1], backward[2], inputs, gradients, outputs, backward[0])
        for column, value in zip(columns.values(), values, strict=True):
            column.append(np.ravel(value).astype(np.float32))
        cases.append((family, num_bits, narrow_range, start, inputs.size, range_start, low.size))
        start, range_start = start + inputs.size, range_start + low.size
    index = np.array(
        cases,
        dtype=[
            ("family", "U11"),
            ("num_bits", "u1"),
            ("narrow_range", "?"),
            ("start", "i4"),
            ("size", "i4"),
            ("range_start", "i4"),
            ("channels", "i4"),
        ],
    )
    return {"cases": index, **{name: np.concatenate(parts) for name, parts in columns.items()}}


def quantizer_settings() -> Iterator[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """Yield class, constructor arguments and tensor shape of each sequence."""
    for name in ("LastValueQuantizer", "MovingAverageQuantizer", "AllValuesQuantizer"):
        for num_bits, symmetric, narrow_range in itertools.product(
            (2, 4, 8, 16), (False, True), (False, True)
        ):
            settings = {"num_bits": num_bits, "symmetric": symmetric, "narrow_range": narrow_range}
            yield name, {**settings, "per_axis": False}, (4, 5)
            if name == "LastValueQuantizer":
                shape = {2: (5,), 4: (3, 2, 1, 4), 8: (6, 3), 16: (2, 2, 3, 1)}[num_bits]
                yield name, {**settings, "per_axis": True}, shape
    for narrow_range in (False, True):
        yield (
            "FixedQuantizer",
            {"num_bits": 4, "init_min": -1.0, "init_max": 2.5, "narrow_range": narrow_range},
            (4, 5),
        )
    yield "NoQuantizer", {}, (4, 5)
    yield "Default8BitConvWeightsQuantizer", {}, (3, 3, 2, 4)
    yield "Default8BitConvTransposeWeightsQuantizer", {}, (3, 3, 2, 4)
    for num_bits in (3, 8):
        settings = {"num_bits_weight": num_bits, "num_bits_activation": 8}
        yield "DefaultNBitConvWeightsQuantizer", settings, (3, 3, 2, 4)
        yield "DefaultNBitConvTransposeWeightsQuantizer", settings, (3, 3, 2, 4)


def batches(
    shape: tuple[int, ...],
    poisoned: bool,
    generator: np.random.Generator,
) -> list[np.ndarray]:
    """Return the inputs of one sequence: of both signs, of one, zero, subnormal, or poisoned."""
    normal = np.float32(generator.normal(0, 1, (6, *shape)))
    tensors = [
        normal[0],
        30 * normal[1],
        abs(normal[2]),
        -abs(normal[3]),
        0 * normal[4],
        SUBNORMAL * normal[4],
        np.rint(normal[5] * 4) / 8,
    ]
    if poisoned:
        last = np.where(normal[5] > 0, normal[5], np.float32(np.inf))
        tensors += [last, np.where(normal[0] > 1, np.float32(np.nan), normal[0]), normal[1]]
    return [np.float32(tensor) for tensor in tensors]


def quantizers() -> Arrays:
    """Return sequences of training and inference steps of every quantizer, run eagerly."""
    generator = np.random.default_rng(1)
    arrays, sequences = {}, []
    for number, (name, config, shape) in enumerate(quantizer_settings()):
        quantizer = getattr(oracle, name)(**config)
        state = quantizer.build(shape)
        states = [{key: value.copy() for key, value in state.items()}]
        steps, outputs = [], []
        for tensor in batches(shape, number % 4 == 3, generator):
            for training in (True, False):
                # The inference step sees other values than the range was made of.
                inputs = tensor if training else np.float32(tensor * 1.25 + 0.1)
                outputs.append(quantizer(inputs, training, state))
                steps.append((inputs, training))
                states.append({key: value.copy() for key, value in state.items()})
        sequences.append(
            {
                "quantizer": name,
                "config": config,
                "shape": shape,
                "training": [training for _, training in steps],
            }
        )
        arrays[f"{number}/inputs"] = np.stack([inputs for inputs, _ in steps])
        arrays[f"{number}/outputs"] = np.stack(outputs)
        for key in state:
            arrays[f"{number}/{key}"] = np.stack([snapshot[key] for snapshot in states])
    text = json.dumps(sequences).encode()
    return {"sequences": np.frombuffer(text, np.uint8), **arrays}


WRITERS: dict[str, Callable[[], Arrays]] = {
    "samples": samples,
    "fake_quant": fake_quant,
    "quantizers": quantizers,
}


def main() -> None:
    """Write the golden files that the command line asks for, unless they exist."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--new",
        choices=WRITERS,
        metavar="NAME",
        help=f"write just this one of {', '.join(WRITERS)}",
    )
    new = parser.parse_args().new
    paths = {name: GOLDEN / f"{name}.npz" for name in ([new] if new else WRITERS)}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing:
        sys.exit(f"golden files are never regenerated, and exist: {', '.join(existing)}")
    GOLDEN.mkdir(exist_ok=True)
    for name, path in paths.items():
        np.savez_compressed(path, **WRITERS[name]())
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
