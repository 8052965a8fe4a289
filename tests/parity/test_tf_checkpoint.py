"""Checkpoints that TensorFlow and Keras write now, against `tf.train.load_checkpoint` and Keras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import oracle  # before TensorFlow: it sets the environment  # noqa: F401

# isort: split
import ml_dtypes
import tensorflow as tf

import qmath
from qmath.containers.tensor_bundle import TensorBundle
from reference import golden_checkpoints, samples
from reference.golden_checkpoints import NUMBERS, save
from tests.helpers import assert_same_bits


def assert_same_as_tensorflow(prefix: Path) -> int:
    """Assert that all tensors are those that TensorFlow reads; return how many there are."""
    bundle, reader = TensorBundle(str(prefix)), tf.train.load_checkpoint(str(prefix))
    assert set(bundle.keys) == set(reader.get_variable_to_shape_map())
    for key in bundle.keys:
        expected = reader.get_tensor(key)
        if isinstance(expected, bytes):
            assert bundle.string(key) == expected
            continue
        if expected.dtype == ml_dtypes.bfloat16:
            expected = expected.astype(np.float32)
        actual = np.asarray(bundle.array(key))
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), key
        assert actual.tobytes() == expected.tobytes(), key
    return len(bundle.keys)


def random(generator: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
    """An array of any bits."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    raw = generator.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return (raw & 1 if name == "bool" else raw).view(dtype)[..., 0]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_type_and_shape(tmp_path: Path, name: str) -> None:
    generator = np.random.default_rng(0)
    shapes = [(), (0,), (1,), (7,), (3, 0, 2), (2, 3, 4, 5, 2), (1000, 33)]
    tensors = {f"t{i}": random(generator, name, shape) for i, shape in enumerate(shapes)}
    save(tmp_path / "ckpt", tensors)
    assert assert_same_as_tensorflow(tmp_path / "ckpt") == len(shapes)


def test_an_index_of_many_blocks(tmp_path: Path) -> None:
    tensors = {f"layer_{i % 50}/{i}/kernel": np.float32(i) for i in range(5000)}
    save(tmp_path / "ckpt", tensors)
    assert assert_same_as_tensorflow(tmp_path / "ckpt") == 5000


@pytest.mark.parametrize("size", [900, 5_000, 9_000])
def test_shards_of_a_size(tmp_path: Path, size: int) -> None:
    generator = np.random.default_rng(size)
    holder = tf.Module()
    holder.variables_ = [
        tf.Variable(random(generator, name, shape))
        for name in ("float32", "int8", "float64")
        for shape in ((40, 30), (3, 5, 7), (129,), ())
    ]
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=size)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    tf.train.Checkpoint(holder).write(str(tmp_path / "ckpt"), options=options)
    assert len(list(tmp_path.glob("*.data-*"))) > 1
    assert assert_same_as_tensorflow(tmp_path / "ckpt") == 13


def boxes(
    generator: np.random.Generator, shape: tuple[int, ...], parts: int
) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor into boxes at random."""
    whole = [tuple(slice(0, n) for n in shape)]
    while len(whole) < parts:
        box = whole.pop(generator.integers(len(whole)))
        axis = generator.integers(len(shape))
        side = box[axis]
        if side.stop - side.start < 2:
            whole.append(box)
            continue
        at = int(generator.integers(side.start + 1, side.stop))
        for part in (slice(side.start, at), slice(at, side.stop)):
            whole.append((*box[:axis], part, *box[axis + 1 :]))
    yield from whole


@pytest.mark.parametrize("seed", range(6))
def test_slices_merged_from_many_files(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = [(50, 9), (9_000, 3), (70_000,), (4, 4, 4, 4), (300, 300), (2, 2)][seed]
    values = random(generator, ("float32", "bfloat16", "int16")[seed % 3], shape)
    prefixes = []
    for number, box in enumerate(boxes(generator, shape, [7, 12, 5, 20, 9, 2][seed])):
        sides = [
            "-" if (s.start, s.stop) == (0, n) else f"{s.start},{s.stop - s.start}"
            for s, n in zip(box, shape, strict=True)
        ]
        place = f"{' '.join(map(str, shape))} {':'.join(sides)}"
        prefixes.append(str(tmp_path / f"part{number}"))
        save(Path(prefixes[-1]), {"v": values[box], f"w{number}": np.int8(1)}, {"v": place})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(tmp_path / "ckpt")
    )
    assert assert_same_as_tensorflow(tmp_path / "ckpt") == 1 + len(prefixes)


def test_the_golden_checkpoints_are_tensorflows() -> None:
    for name in ("slices", "question", "stacked"):
        index = next((golden_checkpoints.CHECKPOINTS / name).glob("*.index"))
        assert assert_same_as_tensorflow(index.with_suffix(""))


@pytest.mark.parametrize("sample", samples.RECIPES)
def test_samples_are_read_as_from_their_whole_files(tmp_path: Path, sample: str) -> None:
    model = samples.load(sample)
    model.compile("adam", "mse", metrics=["mae"])
    model.train_on_batch(np.zeros((1, *model.input_shape[1:])), np.zeros((1, 10)))
    model.set_weights(samples.load(sample).get_weights())
    model.save_weights(str(tmp_path / "weights" / "ckpt"))
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "all" / "ckpt"))
    whole = samples.SAMPLES / f"{sample}.h5"
    expected = qmath.load(whole)
    for path in ("weights/ckpt", "all/ckpt-1"):
        assert_same_as_tensorflow(tmp_path / path)
        for architecture in (None, whole):
            loaded = qmath.load(tmp_path / path, architecture=architecture)
            assert list(loaded.tensors) == list(expected.tensors)
            for name, tensor in expected.tensors.items():
                for part in ("values", "min", "max"):
                    one, other = (getattr(t, part) for t in (loaded.tensors[name], tensor))
                    assert (one is None) == (other is None), (name, part)
                    if one is not None:
                        assert_same_bits(one, other, (name, part))
                if architecture:
                    assert loaded.tensors[name].spec == tensor.spec
        assert loaded.graph == expected.graph
