"""A small corpus of files, whole and damaged, that takes the readers through all they can do.

``python -m reference.corpus --measure`` reads it and prints which share of the branches of the
readers and containers it takes; less than `LEAST` is exit status 1. ``--grow N`` makes it anew from
what it holds and from what `reference.harvest` finds: golden files, files written for one branch
each, attacks, N mutants of each container, and with ``--tests`` the files that the tests read. What
takes a new branch is kept, and left out again where others take the same branches.
`tests/attacks/corpus` holds archives by kind of file, and in ``index.json`` what each entry is read
with, and what comes of it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__all__ = ["FOLDER", "Entry", "entries", "outcome"]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "attacks" / "corpus"
ROOMS = ("qmath/readers", "qmath/containers")
# What no file reaches, and why: a file of the rooms, and the line that branches, or all of it.
_LIVE = "reads a live model, which is no file"
_CHANGES = "a file that changes while it is read"
_HOLES = "a file of parts that were never written, which no archive keeps"
_BY_H5PY = "for an h5py built with an older HDF5"
_ASKED = "only NumPy's callers ask for it"
_LARGE = "needs a file of more than 8 MiB"
_DATA = "arrays given as a model, which are no model's file"
LEFT_OUT: tuple[tuple[str, str, str], ...] = (
    ("readers/keras/asking.py", "", _LIVE),
    ("readers/keras/live.py", "", _LIVE),
    ("readers/keras/used.py", "", _LIVE),
    ("readers/settings/resolve.py", "if not _is_live(item):", _LIVE),
    ("readers/notes.py", 'if build.startswith("xla"):', "only what XLA compiles has this note"),
    ("readers/notes.py", 'if not tensors or build == "tf":', _LIVE),
    ("readers/source.py", "", "takes a model or a path, not what is in a file"),
    ("readers/keras/quantized.py", "if copy is False:", _ASKED),
    ("containers/array_file.py", "", "reads the arrays that verbs are given, not a model"),
    ("containers/stored_arrays.py", "", "reads the arrays that verbs are given, not a model"),
    ("containers/bounded_json.py", "if len(text) > longest:", _LARGE),
    ("containers/hdf5_layout.py",
     "if file.readinto(into) != values.nbytes:  # type: ignore[attr-defined]", _CHANGES),
    ("containers/hdf5_errors.py", "if isinstance(error, known):", "errors of the operating system"),
    ("containers/hdf5.py", "if kind is None:  # otherwise the first error counts",
     "errors of the operating system"),
    ("containers/hdf5.py", "if known is None or known.offset is None or not known.shape:", _LARGE),
    ("containers/hdf5.py", "for start in range(0, length, count):", _LARGE),
    ("containers/hdf5_chunks.py", "if visits:", _BY_H5PY),
    ("containers/hdf5_chunks.py", "for i in range(count):", _BY_H5PY),
    ("containers/isolation.py", "", "the two ends of another process; its tests drive both"),
    ("containers/keras_zip.py", "if self._locate(name).size > limit:", _LARGE),
    ("containers/keras_zip.py", "if stamp_of(self._file) != section.stamp:", _CHANGES),
    ("containers/keras_zip.py",
     'if members and all(name.endswith(".npy") for name in self._members):', _DATA),
    ("containers/lazy_array.py", "if copy is False:", _ASKED),
    ("containers/lazy_array.py",
     "for part in (self.file.read(self.path),) if read is None else read(self.path, size):",
     _LARGE),
    ("containers/sniff.py", "if head.startswith(_NPY):", _DATA),
    ("containers/source_files.py",
     'if size < _LARGE or "sha256" in self.__dict__ or self._ahead is not None:', _LARGE),
    ("containers/saved_model.py", "if size > limit:", _LARGE),
    ("containers/source_files.py", "if not stat.S_ISREG(status.st_mode):", "what is no file"),
    ("containers/source_files.py", "if holes > _MAX_HOLES:", _HOLES),
    ("containers/source_files.py", "for _ in range(_MAX_PIECES):", _HOLES),
    ("containers/source_files.py", "if stamp_of(file) != stamp:", _CHANGES),
    ("containers/tensor_bundle.py",
     "if not is_plain or not shape or not math.prod(shape):", _LARGE),
    ("containers/tensor_bundle.py", "for start in range(0, shape[0], count):", _LARGE),
    ("containers/tensor_bundle.py",
     "if start + count >= shape[0] and masked(crc) != piece.crc32c:", _LARGE),
    ("containers/tensor_bundle.py",
     "if file.readinto(chunk.data) != chunk.size:  # type: ignore[attr-defined]", _CHANGES),
    ("containers/tflite/file.py", "if size > LARGEST:", "needs a file of more than 2 GiB"),
    ("readers/tflite/tensors.py", "if copy is False:", _ASKED),
)  # fmt: skip
LEAST = {"qmath/readers": 0.985, "qmath/containers": 0.97}  # of the branches; raise, never lower
LARGEST = 1 << 23  # bytes of an entry; most are zeros where it is many


class Entry(NamedTuple):
    """One input, and what comes of it.

    Attributes
    ----------
    files : mapping of str to bytes
        By path below the folder of the entry.
    path, architecture : str
        Of what is loaded, below that folder; ``""`` for no architecture.
    told : mapping of str to pair
        Quantizers by key: the name of the class, and its config.
    force, isolate : bool
        As `qmath.load` takes them.
    outcome : str
        ``"read"``, or the class of the error.
    """

    files: Mapping[str, bytes]
    path: str
    architecture: str = ""
    told: Mapping[str, Any] = {}
    force: bool = False
    isolate: bool = False
    outcome: str = ""

    @property
    def name(self) -> str:
        """Of what the entry holds."""
        digest = sha256(json.dumps(self[1:6]).encode())
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + data)
        return digest.hexdigest()[:12]

    @property
    def kind(self) -> str:
        """Of the file, by the beginning of the largest."""
        names = [name.rpartition("/")[2] for name in self.files]
        if "saved_model.pb" in names:
            return "saved_model"
        if any(name.endswith(".index") for name in names):
            return "checkpoint"
        largest = max(self.files.values(), key=len, default=b"")
        if largest[4:8] == b"TFL3":
            return "tflite"
        return {b"\x89HDF": "hdf5", b"PK\3\4": "zip"}.get(largest[:4], "other")


def outcome(entry: Entry, folder: Path) -> str:
    """Write an entry to an empty folder, read it, and return what came of it."""
    import numpy as np

    import qmath
    from qmath import quantizers
    from qmath.containers.hdf5 import Hdf5File
    from qmath.containers.lazy_array import LazyArray
    from qmath.errors import FileFormatError

    for name, data in entry.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    beside = folder / entry.architecture if entry.architecture else None
    try:
        told = {
            key: getattr(quantizers, kind)(**config) for key, (kind, config) in entry.told.items()
        }
        model = qmath.load(
            folder / entry.path,
            told,
            force=entry.force,
            architecture=beside,
            isolate=entry.isolate,
        )
        for tensor in model.tensors.values():
            for part in (tensor.values, tensor.min, tensor.max):
                np.asarray(part)
                if isinstance(part, LazyArray) and isinstance(part.file, Hdf5File):
                    with suppress(FileFormatError):  # as an export that copies the file asks
                        part.file.place(part.path)
        assert model.sha256
    except qmath.QmathError as error:
        return type(error).__name__
    return "read"


def entries(folder: Path = FOLDER) -> Iterator[Entry]:
    """Yield what the corpus holds."""
    index = json.loads((folder / "index.json").read_text()) if folder.exists() else {}
    for archive in sorted(folder.glob("*.tar.xz")):
        held: dict[str, dict[str, bytes]] = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                name, _, path = member.name.partition("/")
                held.setdefault(name, {})[path] = tar.extractfile(member).read()  # type: ignore[union-attr]
        for name, files in held.items():
            yield Entry(files, **index[name])


def write(chosen: Iterable[Entry], folder: Path = FOLDER) -> None:
    """Write the corpus, in place of another."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar.xz"):
        old.unlink()
    kinds: dict[str, list[Entry]] = {}
    for entry in sorted(chosen, key=lambda entry: sorted(map(len, entry.files.values()))):
        kinds.setdefault(entry.kind, []).append(entry)
    index = {}
    for kind, group in sorted(kinds.items()):
        with tarfile.open(folder / f"{kind}.tar.xz", "w:xz", preset=9) as tar:
            for entry in group:
                said = {k: v for k, v in entry._asdict().items() if v and k != "files"}
                index[entry.name] = said
                for name, data in sorted(entry.files.items()):
                    info = tarfile.TarInfo(f"{entry.name}/{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    lines = (f" {json.dumps(name)}: {json.dumps(said)}" for name, said in sorted(index.items()))
    (folder / "index.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


# ---- where entries come from


def gathered(path: str, architecture: str | None, told: Any, force: bool) -> Entry | None:
    """Return what `qmath.load` is given as an entry, if it is small and can be stored."""
    files: dict[str, bytes] = {}
    try:
        inner = _gather(Path(path), files, "m")
        beside = _gather(Path(architecture), files, "a") if architecture else ""
        settings = {k: (type(q).__name__, q.get_config()) for k, q in (told or {}).items()}
        json.dumps(settings)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return Entry(files, inner, beside, settings, force)


def _gather(path: Path, files: dict[str, bytes], below: str) -> str:
    """Add what lies at a path, and return where."""
    if path.is_dir():
        found, root = [p for p in path.rglob("*") if p.is_file()], path.parent
    elif path.name == "saved_model.pb":
        found, root = [p for p in path.parent.rglob("*") if p.is_file()], path.parent.parent
    elif path.is_file() and path.suffix != ".index":
        found, root = [path], path.parent
    else:  # a checkpoint's prefix or index
        stem = path.name.removesuffix(".index")
        found, root = [*path.parent.glob(f"{stem}.*"), path.parent / "checkpoint"], path.parent
        found = [p for p in found if p.is_file()]
    if sum(p.stat().st_size for p in found) > LARGEST:
        raise ValueError("too large")
    for file in found:
        files[f"{below}/{file.relative_to(root)}"] = file.read_bytes()
    return f"{below}/{path.relative_to(root)}"


# ---- which branches they take

Branch = tuple[str, int, int]


class _Arcs(dict[str, Iterable[tuple[int, int]]]):
    """In place of coverage.py's database: from line to line, by file."""

    def add_arcs(self, arcs: Mapping[str, Iterable[tuple[int, int]]]) -> None:
        self.update(arcs)

    def add_file_tracers(self, _: object) -> None:
        pass


class Branches:
    """Which branches of the rooms are taken between `start` and `stop`."""

    def __init__(self) -> None:
        import coverage

        rooms = [str(ROOT / room) for room in ROOMS]
        self._coverage = coverage.Coverage(
            data_file=None, branch=True, source=rooms, config_file=str(ROOT / "pyproject.toml")
        )
        for name, value in (("parallel", False), ("patch", []), ("core", "ctrace")):
            self._coverage.set_option(f"run:{name}", value)
        self._known: dict[str, tuple[Any, set[int]]] = {}  # its lines that branch

    def start(self) -> None:
        """Begin to note."""
        self._coverage.start()

    def stop(self) -> None:
        """End."""
        self._coverage.stop()

    def taken(self) -> set[Branch]:
        """Return the branches taken since the last call.

        coverage.py's own way to ask writes to a database, which takes longer than the reading.
        """
        collector: Any = self._coverage._collector
        data, taken = collector.covdata, _Arcs()
        collector.covdata = taken
        try:
            collector.flush_data()
        finally:
            collector.covdata = data
        found: set[Branch] = set()
        for file, arcs in taken.items():
            if file not in self._known:
                reporter = self._coverage._get_file_reporter(file)
                exits = reporter.exit_counts().items()
                self._known[file] = reporter, {line for line, count in exits if count > 1}
            reporter, lines = self._known[file]
            # A condition of several lines counts as its first.
            found |= {(file, *arc) for arc in reporter.translate_arcs(arcs) if arc[0] in lines}
        return found

    def by_file(self) -> dict[str, tuple[int, int, list[Any]]]:
        """Return for each file how many branches it has, how many were taken, and the others."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            self._coverage.json_report(outfile=str(report))
            held = json.loads(report.read_text())["files"]
        return {
            os.path.relpath(name, ROOT): (
                said["summary"]["num_branches"],
                said["summary"]["covered_branches"],
                said["missing_branches"],
            )
            for name, said in held.items()
        }


class Corpus:
    """Entries that were met, with the branches that they take, as long as each takes a new one."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Entry, set[Branch]]] = {}
        self.met: set[str] = set()
        self.all: set[Branch] = set()

    @cached_property
    def branches(self) -> Branches:
        """What notes them: once it is there, nobody else measures this process."""
        return Branches()

    def take(self, entry: Entry) -> None:
        """Read an entry, and keep it if it takes a branch that none before took."""
        if entry.name in self.met:
            return
        self.met.add(entry.name)
        with tempfile.TemporaryDirectory() as folder:
            self.branches.start()
            try:
                came = outcome(entry, Path(folder))
            except Exception as error:
                print(f"{entry.path}: {error!r}", file=sys.stderr)
                return
            finally:
                self.branches.stop()
                taken = self.branches.taken()
        if taken - self.all:
            self.kept[entry.name] = entry._replace(outcome=came), taken
            self.all |= taken

    def fewest(self) -> list[Entry]:
        """Return entries that take all branches, by the greedy choice of the most for its bytes."""
        chosen, left, waiting = [], set(self.all), dict(self.kept)

        def worth(name: str) -> float:
            entry, taken = waiting[name]
            return len(taken & left) / (4096 + sum(map(len, entry.files.values())))

        while left:
            best = max(waiting, key=worth)
            entry, taken = waiting.pop(best)
            if taken & left:
                chosen.append(entry)
            left -= taken
        return chosen


def grow(count: int, seed: int, tests: bool, folder: Path) -> None:
    """Make the corpus anew; see above."""
    from reference import harvest

    corpus = Corpus()
    pool: list[Entry] = [*entries(folder)]
    if tests:
        harvest.of_tests(pool.append)
    harvest.of_golden_files(pool.append)
    for entry in (*pool, *harvest.of_odd_files(), *harvest.of_attacks()):
        corpus.take(entry)
    print(f"{len(corpus.met)} files, {len(corpus.kept)} kept, {len(corpus.all)} branches")
    harvest.of_mutants(count, seed, corpus.take)
    chosen = corpus.fewest()
    write(chosen, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{len(corpus.met)} inputs, {len(corpus.all)} branches: {len(chosen)} entries, {size} bytes"
    )


def measure(corpus: Path) -> dict[str, float]:
    """Read a corpus, print what share of each room's branches it takes, and return it."""
    branches = Branches()
    branches.start()
    with tempfile.TemporaryDirectory() as folder:
        for number, entry in enumerate(entries(corpus)):
            outcome(entry, Path(folder) / str(number))
    branches.stop()
    shares = {}
    by_file = {k: _counted(k, *said) for k, said in branches.by_file().items()}
    for room in ROOMS:
        files = {k: v for k, v in by_file.items() if k.startswith(room)}
        for name, (number, taken, missing, _) in sorted(files.items()):
            if taken < number:
                lines = ", ".join(f"{start}→{end}" for start, end in missing)
                print(f"{name}: {taken} of {number}; not {lines}")
        for name, said in sorted(files.items()):
            for why, count in said[3].items():
                print(f"{name}: {count} left out, {why}")
        total, taken = (sum(said[i] for said in files.values()) for i in (0, 1))
        shares[room] = taken / total
        print(f"{room}: {taken} of {total}, {taken / total:.1%} of the branches")
    return shares


def _counted(
    file: str, number: int, taken: int, missing: list[Any]
) -> tuple[int, int, list[Any], Counter[str]]:
    """Return how many branches of a file count, how many were taken, the others, and which not."""
    rules = [(text, why) for name, text, why in LEFT_OUT if file == f"qmath/{name}"]
    lines = (ROOT / file).read_text().splitlines() if rules else []
    out: Counter[str] = Counter()
    for text, why in rules:
        if not text:
            return 0, 0, [], Counter({why: number})
        at = [i for i, line in enumerate(lines, 1) if line.strip() == text]
        if not at:
            raise SystemExit(f"{file} has no line {text!r}; see LEFT_OUT")
        out[why] += sum(arc[0] in at for arc in missing)
        missing = [arc for arc in missing if arc[0] not in at]
    return number - out.total(), taken, missing, +out


def main(arguments: list[str] | None = None) -> int:
    """Measure or grow the corpus."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.corpus", description="Files that take every branch of a reader."
    )
    parser.add_argument("--measure", action="store_true", help="print the share of branches")
    parser.add_argument("--grow", type=int, metavar="N", help="try N mutants of each container")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants")
    parser.add_argument("--tests", action="store_true", help="try what the tests load, too")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the corpus")
    options = parser.parse_args(arguments)
    if options.grow is not None:
        grow(options.grow, options.seed, options.tests, options.folder)
        if options.measure:  # in a process that has read nothing yet
            again = [sys.executable, "-m", "reference.corpus", "--measure", "--folder"]
            return subprocess.run([*again, str(options.folder)], check=False).returncode
    if options.measure:
        shares = measure(options.folder)
        return int(any(shares[room] < least for room, least in LEAST.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
