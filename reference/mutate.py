"""Damaged files: ``python -m reference.mutate --count N --seed S [--isolate]``.

Takes files that Keras and TensorFlow wrote (`reference.golden`), damages them at random, reads them
with qmath, and counts for each container:

right      all tensors are those of the undamaged file;
refused    qmath's own error;
crashed    the same error, as the HDF5 library crashed in the isolated process;
late       the same error, as it hung there;
other      other data, finite and of the shapes of the undamaged file: possible only where the
           container has no checksum;
violation  anything else: a crash, a hang, another exception, data that are not finite or of other
           shapes, or other data in spite of a checksum. Each is printed.

``sealed`` containers are damaged inside their checksums. Every mutant follows from the seed, its
container and its number alone, and is read in a child process. One that crashes or hangs there is
read again as ``qmath.load(…, isolate=True)`` does it, which has to make an error of that; with
``--isolate`` all are, at twice the time. Needs a system with ``fork``.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import h5py  # noqa: F401  (a forked process need not load it)
import numpy as np

import qmath
from qmath.containers import isolation
from qmath.containers.tensor_bundle import TensorBundle

__all__ = ["CONTAINERS", "mutants", "run"]


ZOO = Path(__file__).parent / "golden" / "zoo"
OUTCOMES = ("right", "refused", "crashed", "late", "other", "violation")
# Of one mutant; the limit in the isolated process is shorter, and ends in an error.
HANG, ISOLATED_HANG = 4, 2
MEMORY = 3 << 30
# What counters, offsets and lengths overflow at.
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
            2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip

Mutate = Callable[[np.random.Generator, bytes], bytes]


class Source(NamedTuple):
    """An undamaged file or folder, and what gives the names for it."""

    path: Path
    architecture: Path | None = None


class Container(NamedTuple):
    """What to damage, and whether a checksum must show it."""

    sources: tuple[Source, ...]
    damage: Callable[[np.random.Generator, Path, Path], Source | None]
    has_checksum: bool = False


# ---- damage


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Return data with one to three kinds of damage."""
    for _ in range(1 + (rng.random() < 0.3) + (rng.random() < 0.1)):
        if not data:
            break
        data = KINDS[rng.choice(len(KINDS), p=ODDS)](rng, data)
    return data


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip one to four bits."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        out[_place(rng, out)] ^= 1 << rng.integers(8)
    return bytes(out)


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Write a number that matters over one, two, four or eight bytes."""
    size = int(rng.choice([1, 2, 4, 8]))
    number = int(rng.choice(np.array([*EXTREMES, len(data)], object)))
    if rng.random() < 0.3:
        number = int(rng.integers(1 << 32))
    order = "little" if rng.random() < 0.9 else "big"
    at = _place(rng, data)
    return data[:at] + (number % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]


def scramble(rng: np.random.Generator, data: bytes) -> bytes:
    """Write zeros, ones or noise over up to 64 bytes."""
    at, size = _place(rng, data), int(rng.integers(1, 65))
    size = min(size, len(data) - at)
    fill = [bytes(size), b"\xff" * size, rng.bytes(size)][rng.integers(3)]
    return data[:at] + fill + data[at + size :]


def copy(rng: np.random.Generator, data: bytes) -> bytes:
    """Write a part over another."""
    start, at, size = _place(rng, data), _place(rng, data), int(rng.integers(1, 257))
    part = data[start : start + size]
    return data[:at] + part + data[at + len(part) :]


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    """Leave out the end."""
    return data[: _place(rng, data)]


def shift(rng: np.random.Generator, data: bytes) -> bytes:
    """Leave out, or repeat, up to 64 bytes."""
    at, size = _place(rng, data), int(rng.integers(1, 65))
    return data[:at] + (data[at + size :] if rng.random() < 0.5 else data[max(at - size, 0) :])


def mutate_json(rng: np.random.Generator, data: bytes) -> bytes:
    """Replace, leave out or repeat values of a JSON text; or damage the text itself."""
    if rng.random() < 0.2:
        return mutate(rng, data)
    value = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        holders = list(_holders(value))
        holder = holders[rng.integers(len(holders))]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[rng.integers(len(keys))]
        other = holders[rng.integers(len(holders))]
        kind = rng.integers(4)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = json.loads(json.dumps(other if rng.random() < 0.5 else holder[key]))
            if isinstance(holder, list):
                holder.insert(0, holder[-1])
        elif kind == 2 and isinstance(other, dict):
            other[str(key)] = json.loads(json.dumps(holder[key]))
        else:
            holder[key] = ODDITIES[rng.integers(len(ODDITIES))]
        if not any(_holders(value)):
            break
    return json.dumps(value).encode()


def _holders(value: Any) -> Iterator[Any]:
    """Yield the objects and arrays in a value that are not empty."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


ODDITIES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**64, 10**300, 1e308, -0.5, float("nan"), "", "x", "Dense",
    "QuantizeWrapperV2", "Functional", "\x1b[2J", "a/b", "kernel", [], {}, [[]], [None], [0, 0],
    {"class_name": "Dense", "config": {}}, {"config": None}, {"class_name": 3, "config": []},
)  # fmt: skip


def _place(rng: np.random.Generator, data: Sequence[int]) -> int:
    return int(rng.integers(len(data)))


KINDS: tuple[Mutate, ...] = (flip, overwrite, scramble, copy, cut, shift)
ODDS = (0.4, 0.3, 0.1, 0.1, 0.05, 0.05)


def plain(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage a file, or one of the files of a folder."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        victim = files[rng.integers(len(files))]
    else:
        victim = target = target.with_suffix(source.suffix)
        shutil.copy(source, target)
    data = victim.read_bytes()
    victim.write_bytes(mutate(rng, data) if data else b"\0")
    return Source(target)


def sealed_zip(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage a member of a ``.keras``, whose checksum is right again."""
    target = target.with_suffix(".keras")
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as other:
        victim, damage = ("model.weights.h5", mutate)
        if rng.random() < 0.3:
            victim, damage = "config.json", mutate_json
        for name in archive.namelist():
            content = archive.read(name)
            other.writestr(name, damage(rng, content) if name == victim else content)
    return Source(target)


def sealed_checkpoint(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage entries, data or object graph of a checkpoint, whose checksums are right again."""
    from qmath.containers.sorted_table import read_table
    from tests.containers import bundles

    bundle = TensorBundle(str(source / "ckpt"))
    data = Path(f"{source}/ckpt.data-00000-of-00001").read_bytes()
    table = read_table(Path(f"{source}/ckpt.index").read_bytes(), "")
    entries = {
        key: bundles.protos.parse("BundleEntryProto", table[key], "") for key in table if key
    }
    kind = rng.integers(3)
    if kind == 0:  # the object graph
        graph = mutate(rng, bundle.string(bundles.GRAPH))
        text, checksum = bundles.string(graph)
        entry = entries[bundles.GRAPH.encode()]
        entry.offset, entry.size, entry.crc32c = len(data), len(text), checksum
        data += text
    elif kind == 1:  # the data
        data = mutate(rng, data)
        for key, entry in entries.items():
            if key != bundles.GRAPH.encode():
                entry.crc32c = bundles.crc(data[entry.offset : entry.offset + entry.size])
    items = {key: entry.SerializeToString() for key, entry in entries.items()}
    items[b""] = table[b""]
    if kind == 2:  # an entry of the index, or its key
        key = sorted(items)[rng.integers(len(items))]
        if rng.random() < 0.8:
            items[key] = mutate(rng, items[key]) if items[key] else b"\0"
        else:
            items[mutate(rng, key or b"\0")] = items.pop(key)
    target.mkdir(exist_ok=True)
    index = bundles.table([bundles.stored(bundles.block(sorted(items.items())))])
    (target / "ckpt.index").write_bytes(index)
    (target / "ckpt.data-00000-of-00001").write_bytes(data)
    return Source(target)


def architecture(rng: np.random.Generator, source: Path, target: Path) -> Source | None:
    """Damage the architecture beside weights."""
    config = target.with_suffix(".json")
    config.write_bytes(mutate_json(rng, (source.parent / "config.json").read_bytes()))
    return Source(source, config)


def _zoo(file: str, beside: bool = False) -> tuple[Source, ...]:
    """Return the smallest models that were written to a file of this name."""
    models = [ZOO / "tf2.21" / name for name in ("kernel_bias", "nested", "stacked_rnn")]
    return tuple(
        Source(model / file, model / "config.json" if beside else None)
        for model in models
        if (model / file).exists()
    )


CONTAINERS: dict[str, Container] = {
    "whole.h5": Container(_zoo("whole.h5"), plain),
    "names.h5": Container(_zoo("names.h5"), plain),
    "model.weights.h5": Container(_zoo("model.weights.h5", True), plain),
    "model.keras": Container(_zoo("model.keras"), plain, has_checksum=True),
    "model.keras, sealed": Container(_zoo("model.keras"), sealed_zip),
    "config.json": Container(
        (*_zoo("model.weights.h5", True), *_zoo("checkpoint", True)), architecture
    ),
    "checkpoint": Container(_zoo("checkpoint"), plain, has_checksum=True),
    "checkpoint, sealed": Container(_zoo("checkpoint"), sealed_checkpoint),
}


# ---- judgement


Content = dict[str, tuple[Any, ...]]


def content(model: qmath.QatModel) -> Content:
    """Return all that a model holds, by tensor."""

    def array(part: Any) -> Any:
        return None if part is None else np.asarray(part)

    return {
        name: (tensor.role, array(tensor.values), array(tensor.min), array(tensor.max))
        for name, tensor in model.tensors.items()
    }


def same(a: Content, b: Content) -> bool:
    """Tell whether all bits are equal."""

    def plain(content: Content) -> list[Any]:
        return [
            (name, role, *(x if x is None else (x.dtype, x.shape, x.tobytes()) for x in parts))
            for name, (role, *parts) in content.items()
        ]

    return plain(a) == plain(b)


def judge(source: Source, wanted: Content, has_checksum: bool, isolate: bool) -> tuple[str, str]:
    """Read a mutant; return one of `OUTCOMES` and, of a violation, what happened."""
    try:
        model = qmath.load(source.path, architecture=source.architecture, isolate=isolate)
        found = content(model)
        if same(found, wanted):
            return "right", ""
        for _ in qmath.quantize_model(model).arrays():
            pass
    except qmath.QmathError as error:
        text = str(error)
        for outcome, words in (("crashed", "its own crashed"), ("late", "its own took longer")):
            if isinstance(error, qmath.FileFormatError) and words in text:
                return outcome, ""
        return "refused", ""
    except Exception as error:
        import traceback

        frames = traceback.extract_tb(error.__traceback__)
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        return "violation", f"{type(error).__name__}: {error} ({at})"
    if has_checksum:
        return "violation", "other data in spite of the checksum"
    for name, (_, values, *ends) in found.items():
        for array in (values, *ends):
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                return "violation", f"{name} is not finite"
        before = wanted[name][1] if name in wanted else None
        if values is not None and before is not None and values.shape != before.shape:
            return "violation", f"{name} has the shape {values.shape}"
    return "other", ""


def mutants(
    container: str, numbers: range, seed: int, folder: Path
) -> Iterator[tuple[Source, Source]]:
    """Yield undamaged sources, each with a mutant of it below `folder`."""
    sources, damage, _ = CONTAINERS[container]
    for number in numbers:
        rng = np.random.default_rng([seed, zlib.crc32(container.encode()), number])
        source = sources[number % len(sources)]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        mutant = damage(rng, source.path, folder / "mutant")
        yield (
            source,
            mutant if mutant.architecture else mutant._replace(architecture=source.architecture),
        )


# ---- processes


class _Forked:
    """What `isolation.spawn` returns, of a forked process."""

    def __init__(self) -> None:
        (questions, asking), (answering, answers) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(asking)
            os.close(answering)
            with open(questions, "rb") as ours, open(answers, "wb") as theirs:
                isolation.serve(ours, theirs)
            os._exit(0)
        os.close(questions)
        os.close(answers)
        self.stdin, self.stdout = open(asking, "wb"), open(answering, "rb")  # noqa: SIM115

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self) -> None:
        """Wait for its end."""
        os.waitpid(self.pid, 0)
        self.stdout.close()
        with suppress(BrokenPipeError):
            self.stdin.close()


def _work(container: str, numbers: range, seed: int, isolate: bool, report: int) -> None:
    """Judge mutants in this process, which ends then; a line for each goes to `report`."""
    import resource

    faulthandler.disable()  # as pytest enables it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the HDF5 library speaks there
    isolation.spawn, isolation.SECONDS = _Forked, ISOLATED_HANG
    wanted: dict[Source, Content] = {}
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        found = mutants(container, numbers, seed, Path(folder) / "now")
        for number, (source, mutant) in zip(numbers, found, strict=True):
            if source not in wanted:
                model = qmath.load(source.path, architecture=source.architecture, isolate=isolate)
                wanted[source] = content(model)
            checked = CONTAINERS[container].has_checksum
            outcome, why = judge(mutant, wanted[source], checked, isolate)
            os.write(report, json.dumps([number, outcome, why[:500]]).encode() + b"\n")
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(
    container: str,
    count: int,
    seed: int,
    isolate: bool = False,
    progress: Callable[[], object] | None = None,
) -> tuple[Counter[str], list[str]]:
    """Judge mutants of one container.

    Returns
    -------
    counts : Counter
        By outcome.
    violations : list of str
        Each with the number of its mutant.
    """
    counts: Counter[str] = Counter()
    violations: list[str] = []
    following = 0
    while following < count:
        for number, outcome, why in _batch(container, range(following, count), seed, isolate):
            if outcome == "violation" and not isolate:
                ((_, outcome, why),) = _batch(container, range(number, number + 1), seed, True)
            counts[outcome] += 1
            if outcome == "violation":
                violations.append(f"{container} {number}: {why}")
            following = number + 1
            if progress:
                progress()
    return counts, violations


def _batch(
    container: str, numbers: range, seed: int, isolate: bool
) -> Iterator[tuple[int, str, str]]:
    """Judge mutants in another process; yield number, outcome and reason, until one ends it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            _work(container, numbers, seed, isolate, writing)
        finally:
            os._exit(1)
    os.close(writing)
    following, rest, why = numbers.start, b"", ""
    with open(reading, "rb", buffering=0) as lines:
        while True:
            if not select.select([lines], [], [], HANG)[0]:
                why = "hang"
                os.kill(pid, signal.SIGKILL)
                break
            chunk = os.read(lines.fileno(), 1 << 16)
            if not chunk:
                break
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                following = json.loads(line)[0] + 1
                yield tuple(json.loads(line))
    status = os.waitpid(pid, 0)[1]
    if following < numbers.stop:
        yield following, "violation", why or f"crash (status {status})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge mutants of all containers, and print a table."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.table import Table

    parser = argparse.ArgumentParser(
        prog="python -m reference.mutate", description="Read damaged files, and count what comes."
    )
    parser.add_argument("--count", type=int, default=1000, help="mutants of each container")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--container", action="append", choices=CONTAINERS, help="only this one; repeatable"
    )
    parser.add_argument("--isolate", action="store_true", help="read each in a process of its own")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("container", *OUTCOMES)
    total: Counter[str] = Counter()
    found: list[str] = []
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        for name in options.container or CONTAINERS:
            task = bars.add_task(name, total=options.count)
            counts, violations = run(
                name, options.count, options.seed, options.isolate, lambda t=task: bars.advance(t)
            )
            table.add_row(name, *(f"{counts[outcome]:,}" for outcome in OUTCOMES))
            total += counts
            found += violations
    table.add_row("all", *(f"{total[outcome]:,}" for outcome in OUTCOMES), style="bold")
    console.print(table)
    for violation in found:
        console.print(violation, markup=False)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
