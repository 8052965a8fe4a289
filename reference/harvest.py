"""Where entries of the corpus come from: whole files, files of the tests, odd ones, mutants."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from reference.corpus import ROOT, Entry, gathered

__all__ = ["of_attacks", "of_golden_files", "of_mutants", "of_odd_files", "of_tests"]

# Read in seconds, for what smaller ones show as well; or larger than an entry may be.
_SLOW = ("bomb", "brackets", "datasets_over_the_same_bytes", "gzip_bomb",
         "models_that_double", "objects_without_end")  # fmt: skip


def of_tests(take: Callable[[Entry], object]) -> None:
    """Run the tests of readers and containers, and take what they load."""
    import pytest

    import qmath
    from qmath.containers.hdf5 import Hdf5File
    from qmath.containers.keras_zip import KerasZip
    from qmath.containers.saved_model import SavedModel
    from qmath.containers.tensor_bundle import TensorBundle
    from qmath.readers import loading

    def note(path: Any, told: Any = None, beside: Any = None, force: bool = False) -> None:
        with suppress(TypeError):
            architecture = os.fsdecode(beside) if beside else None
            entry = gathered(os.fsdecode(path), architecture, told, force)
            if entry:
                take(entry)

    def noted(path: Any, quantizers: Any = None, **options: Any) -> Any:
        note(path, quantizers, options.get("architecture"), options.get("force", False))
        return load(path, quantizers, **options)

    load = loading.load
    loading.load = qmath.load = noted
    for kind in (TensorBundle, Hdf5File, KerasZip, SavedModel):
        _note_first(kind, note)
    skipped = ("readers/test_mutants.py", "readers/test_saved_model_fuzz.py",
               "readers/test_zoo.py", "containers/test_isolation.py")  # fmt: skip
    pytest.main(
        [
            *(str(ROOT / "tests" / place) for place in ("readers", "containers")),
            *(f"--ignore={ROOT / 'tests' / name}" for name in skipped),
            *("-q", "-p", "no:cacheprovider", "-k", "not isolate"),
        ]
    )
    loading.load = qmath.load = load


def _note_first(kind: Any, note: Callable[[Any], None]) -> None:
    """Let a class of files note the path of each."""
    init = kind.__init__

    def noted(self: Any, path: Any, *more: Any, **options: Any) -> None:
        note(path)
        init(self, path, *more, **options)

    kind.__init__ = noted


def of_attacks() -> Iterator[Entry]:
    """Yield hostile files, and odd ones that are right, straight from what builds them."""
    from tests.attacks import (
        archives,
        hdf5_files,
        test_checkpoint_attacks,
        test_config_attacks,
        test_tflite_attacks,
    )

    for module, name in (
        (hdf5_files, "model.h5"),
        (archives, "model.keras"),
        (test_checkpoint_attacks, "ckpt"),
        (test_tflite_attacks, "model.tflite"),
    ):
        builds = {name: build for name, (build, _) in module.ATTACKS.items()} | module.READ
        for title, build in sorted(builds.items()):
            if title in _SLOW:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                made = build(path)
                path = made if isinstance(made, Path) and name == "ckpt" else path
                beside = path.parent / "config.json"
                entry = gathered(str(path), str(beside) if beside.exists() else None, {}, False)
            if entry:
                yield entry
    for sample, change, _ in test_config_attacks.CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = test_config_attacks.edited(Path(folder), sample, change)
            entry = gathered(str(path), None, {}, False)
        if entry:
            yield entry


def of_odd_files() -> Iterator[Entry]:
    """Yield what is written for a branch each."""
    from reference import odd_configs, odd_files, odd_tflite
    from reference.odd_saved_models import edited

    models = (Entry(files, "m") for files in edited())
    return chain(models, odd_configs.written(), odd_files.written(), odd_tflite.written())


def of_golden_files(take: Callable[[Entry], object]) -> None:
    """Take what Keras and TensorFlow wrote."""
    from reference.mutants import CONTAINERS

    golden = ROOT / "reference" / "golden"
    paths = [*golden.glob("saved_models/*/*/*"), *golden.glob("zoo/*/*/*"),
             *golden.glob("checkpoints/*"), *golden.glob("keras3/*.keras")]  # fmt: skip
    pairs = {
        (source.path, source.architecture) for c in CONTAINERS.values() for source in c.sources
    }
    for path, beside in [*sorted(pairs, key=str), *((path, None) for path in sorted(paths))]:
        entry = gathered(str(path), str(beside) if beside else None, {}, False)
        if entry and path.suffix not in (".json", ".npz"):
            take(entry)
            if path.parent.name == "kernel_bias" and path.suffix in (".h5", ".keras"):
                take(entry._replace(isolate=True))


def of_mutants(count: int, seed: int, take: Callable[[Entry], object]) -> None:
    """Take mutants; none of bytes of HDF5 files, on which the library crashes."""
    from reference.mutants import CONTAINERS, mutants

    with tempfile.TemporaryDirectory() as folder:
        for name in [name for name in CONTAINERS if not name.endswith(".h5")]:
            for _, mutant in mutants(name, range(count), seed, Path(folder) / "now"):
                beside = str(mutant.architecture) if mutant.architecture else None
                entry = gathered(str(mutant.path), beside, {}, False)
                if entry:
                    take(entry)
