"""A process of its own for the HDF5 library: the same answers, and errors for all it does."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmath.containers import isolation
from qmath.containers.hdf5 import Hdf5File
from qmath.containers.isolation import IsolatedHdf5File
from qmath.errors import FileFormatError, MissingExtraError, QmathError
from qmath.model import QatModel
from qmath.readers.loading import load
from tests.readers.builders import TOLD, kernel, sequential, span, wrapped, write_v3

h5py = pytest.importorskip("h5py")

REFERENCE = Path(__file__).parents[2] / "reference"
QUESTION = REFERENCE / "samples" / "question.h5"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with what a Keras file has, and what it must not have."""
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file.attrs["text"], file.attrs["names"], file.attrs["none"] = "a", ["a", "b"], []
        for dtype in (">f4", "<f2", "i8", "u1", "?"):
            file[f"group/{dtype}"] = np.arange(6).reshape(2, 3).astype(dtype)
        file["scalar"], file["empty"] = np.float32(0.1), np.zeros((0, 4), np.float32)
        file["link"] = h5py.SoftLink("/scalar")
        file["string"] = "no numbers"
    return path


QUESTIONS: list[tuple[str, ...]] = [
    ("has", "scalar"), ("has", "nothing"), ("has", "link"), ("has_attribute", "", "text"),
    ("has_attribute", "", "absent"), ("has_attribute", "nothing", "text"), ("text", "", "text"),
    ("text", "", "names"), ("names", "", "names"), ("names", "", "none"), ("names", "", "absent"),
    ("children", ""), ("children", "scalar"), ("datasets", "group"), ("datasets", ""),
    *((method, path) for method in ("array", "read", "place") for path in (
        "group/>f4", "group/<f2", "group/i8", "group/u1", "group/?", "scalar", "empty", "link",
        "string", "group", "absent",
    )),
]  # fmt: skip


def answer(file: Hdf5File, question: tuple[str, ...]) -> Any:
    method, *arguments = question
    try:
        value = getattr(file, method)(*arguments)
    except QmathError as error:
        return type(error), str(error)
    if method in ("array", "read"):
        values = np.asarray(value)
        return value.shape, value.dtype, values.tobytes(), values.dtype
    return value


def test_answers_are_those_of_this_process(path: Path) -> None:
    with Hdf5File(str(path)) as here, IsolatedHdf5File(str(path)) as there:
        for question in QUESTIONS:
            assert answer(there, question) == answer(here, question), question


def test_an_array_is_read_when_the_file_is_closed(path: Path) -> None:
    with IsolatedHdf5File(str(path)) as file:
        array = file.array("group/>f4")
    assert (np.asarray(array) == np.arange(6).reshape(2, 3)).all()
    assert (np.asarray(pickle.loads(pickle.dumps(array))) == np.asarray(array)).all()
    with h5py.File(path, "w") as other:
        other["group/>f4"] = np.zeros((2, 3), np.float32)
    for reader in (array, pickle.loads(pickle.dumps(array))):
        with pytest.raises(FileFormatError, match="has changed"):
            np.asarray(reader)


def test_the_other_process_ends_with_the_file(path: Path) -> None:
    with IsolatedHdf5File(str(path)) as file:
        process = file._child._process  # type: ignore[union-attr]
        assert process.poll() is None
    del file
    assert process.poll() is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_a_child_of_its_own(path: Path) -> None:
    with IsolatedHdf5File(str(path)) as file:
        array = file.array("scalar")
    pid = os.fork()
    if not pid:
        os._exit(int(np.asarray(array) != np.float32(0.1)))
    assert os.waitpid(pid, 0)[1] == 0
    assert np.asarray(array) == np.float32(0.1)


def content(model: QatModel) -> Any:
    return [
        (
            *(t.name, t.role, t.spec, t.provenance, t.hint),
            *(None if x is None else np.asarray(x).tobytes() for x in (t.values, t.min, t.max)),
        )
        for t in model.tensors.values()
    ], model.notes


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, Path]:
    """Weights without names, and a model with names for them."""
    config = sequential(wrapped("d", TOLD, use_bias=False))
    values, *ends = kernel().values()
    variables = [values, values, np.int32(-1), *ends, *span("post_activation").values()]
    groups = {"layers/quantize_wrapper_v2": variables}
    whole = write_v3(tmp_path / "whole.keras", groups, config)
    return write_v3(tmp_path / "model.weights.h5", groups), whole


def test_models_are_the_same(weights: tuple[Path, Path]) -> None:
    for path, architecture in (
        (QUESTION, None),
        (REFERENCE / "golden" / "keras3" / "int8.keras", None),
        weights,
    ):
        options = {"architecture": architecture}
        assert content(load(path, isolate=True, **options)) == content(load(path, **options))


def test_this_process_never_loads_the_library() -> None:
    code = (
        "import sys, numpy, qmath; model = qmath.load(sys.argv[1], isolate=True); "
        "[numpy.asarray(t.values) for t in model.tensors.values()]; "
        "assert 'h5py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(QUESTION)], check=True)


READY = "import os, sys, time; print('ready', flush=True); sys.stdin.readline();"
LINE = "sys.stdin.readline();"
OPENED = READY + LINE + "print('{\"value\": null}', flush=True);"


def playing(code: str) -> Callable[[], subprocess.Popen[bytes]]:
    """Return what starts a process that runs `code`."""

    def start() -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe)

    return start


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (READY, "crashed"),
        (OPENED, "crashed"),
        (OPENED + "os.abort()", "crashed"),
        (OPENED + LINE + "print('no JSON', flush=True)", "crashed"),
        (OPENED + LINE + "print('[1]', flush=True)", "crashed"),
        (OPENED + LINE + "print('[' * 100_000, flush=True)", "crashed"),
        (OPENED + LINE + "print('{' + 1_000_000 * ' ' + '}', flush=True)", "crashed"),
        (OPENED + LINE + 'print(\'{"error": "SystemExit", "message": ""}\')', "crashed"),
        (OPENED + LINE + 'print(\'{"error": "FileFormatError", "message": 1}\')', "crashed"),
        (READY + "time.sleep(60)", "took longer than 1 s"),
        (OPENED + "time.sleep(60)", "took longer than 1 s"),
        ("print('Ready')", "does not|no process to read it in starts"),
    ],
)
def test_whatever_the_other_process_does_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(isolation, "spawn", playing(code))
    if "took longer" in message:  # only there: a busy machine may need a second for the others
        monkeypatch.setattr(isolation, "SECONDS", 1)
    file = IsolatedHdf5File(str(path))
    for _ in range(2):
        with pytest.raises(QmathError, match=message) as caught, file:
            file.text("", "text")
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("text", "1"),
        ("children", "null"),
        ("children", "[1]"),
        ("array", "null"),
        ("array", "[[1], 1e9]"),
        ("array", '[[-1], "<f4"]'),
        ("array", '[[3], "O"]'),
        ("array", '[[1000000000], "<f4"]'),
        ("read", '[[3], "<f4"]'),
        ("place", "null"),
        ("place", '[-1, "<f4"]'),
        ("place", '[1000000000, "<f4"]'),
        ("place", '[1, "O"]'),
        ("place", '["1", "<f4"]'),
    ],
)
def test_no_answer_is_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch, method: str, value: str
) -> None:
    code = OPENED + LINE + f"print('{{\"value\": {value}}}', flush=True); print(end='abc')"
    monkeypatch.setattr(isolation, "spawn", playing(code))
    with pytest.raises(FileFormatError, match="crashed"), IsolatedHdf5File(str(path)) as file:
        getattr(file, method)(*(("", "text") if method == "text" else ("scalar",)))


def test_an_interruption_ends_the_other_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with IsolatedHdf5File(str(path)) as file:
        array = file.array("scalar")
        process = file._child._process  # type: ignore[union-attr]
        with monkeypatch.context() as patch:
            patch.setattr(isolation._Child, "answer", interrupt)
            with pytest.raises(KeyboardInterrupt):
                file.has("scalar")
    assert process.poll() is not None
    assert np.asarray(array) == np.float32(0.1)


def test_without_a_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(QmathError, match="no process"), IsolatedHdf5File(str(path)):
        pass


def test_without_h5py(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = isolation._BOOT.replace("from qmath", "sys.modules['h5py'] = None; from qmath")
    monkeypatch.setattr(isolation, "_BOOT", boot)
    with pytest.raises(MissingExtraError, match="h5py"), IsolatedHdf5File(str(path)):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(1 << 26, np.uint8)
    boot = isolation._BOOT.replace(
        "; serve(",
        "; from qmath.containers import isolation; "
        "isolation.MEMORY, isolation._MEMORY_PER_BYTE = 1 << 25, 0; serve(",
    )
    with IsolatedHdf5File(str(path)) as opened:
        assert not np.asarray(opened.array("x")).any()
    monkeypatch.setattr(isolation, "_BOOT", boot)
    with pytest.raises(FileFormatError, match="HDF5 cannot"), IsolatedHdf5File(str(path)) as f:
        f.read("x")


ASK = """
import json, os, sys
from qmath.containers import isolation
isolation._BOOT = isolation._BOOT.split("from qmath")[0] + sys.argv[1]
process = isolation.spawn()
print(process.pid, process.stdout.readline().decode(), flush=True)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not offer all of it")


@linux
def test_what_the_other_process_may_take() -> None:
    code = (
        "import resource as r; from qmath.containers import isolation; isolation._bind(parent); "
        "isolation._limit(1 << 30, 60); names = ['AS', 'CPU', 'FSIZE', 'NPROC', 'CORE']; "
        "found = [r.getrlimit(getattr(r, 'RLIMIT_' + name)) for name in names]; "
        "new = [l for l in open('/proc/self/status') if l.startswith('NoNewPrivs')]; "
        "print(json.dumps([found, new]), flush=True)"
    )
    run = subprocess.run([sys.executable, "-c", ASK, code], capture_output=True, text=True)
    limits, new = json.loads(run.stdout.partition(" ")[2])
    (memory, _), (seconds, _), *others = limits
    assert memory == 1 << 30
    assert 60 < seconds < 90
    assert others == [[0, 0]] * 3
    assert new == ["NoNewPrivs:\t1\n"]


@linux
@pytest.mark.parametrize("parent", ["parent", "parent + 1"])
def test_the_other_process_ends_with_this_one(parent: str) -> None:
    """Even where it does not look at its input, and where this one had ended before it asked."""
    code = (
        "import time; from qmath.containers import isolation; print('', flush=True); "
        f"isolation._bind({parent}); time.sleep(60)"
    )
    run = subprocess.run([sys.executable, "-c", ASK, code], capture_output=True, text=True)
    status = Path(f"/proc/{int(run.stdout.split()[0])}/stat")
    for _ in range(200):
        if not status.exists() or ") Z " in status.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("it is still there")


@linux
def test_a_thread_may_end_before_what_it_opened(path: Path) -> None:
    found = []

    def read() -> None:
        with IsolatedHdf5File(str(path)) as file:
            found.append(file.array("scalar"))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert np.asarray(found[0]) == np.float32(0.1)
