"""Streams that are closed, full or without a reader, and signals: processes of every verb."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import run as run_here

fcntl = pytest.importorskip("fcntl", reason="streams and signals are Unix's")
termios = pytest.importorskip("termios")

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
MODEL = SAMPLES / "default8.h5"
DATA = SAMPLES / "digits_test.npz"
MAIN = "from qmath.cli import main; main()"
# What a shell's background job, which ignores the signal, would not do.
HANDLED = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
VERBS = ["inspect", "export", "verify", "run", "diff", "recover"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what verbs read beside a model."""
    folder = tmp_path_factory.mktemp("inputs")
    assert run_here("export", MODEL, "-o", folder / "model.npz").exit_code == 0
    np.savez(folder / "weights.npz", w=np.arange(-8, 8, dtype=np.float32))
    np.savez(folder / "data.npz", x=np.load(DATA)["images"][:2])
    return folder


def command(verb: str, inputs: Path, out: Path) -> tuple[list[str], Path | None]:
    """Return arguments that end in status 0, and the output that they ask for."""
    data = inputs / "data.npz"
    arguments, output = {
        "inspect": (["--html", out / "o.html"], out / "o.html"),
        "export": (["-o", out / "o.npz"], out / "o.npz"),
        "verify": ([inputs / "model.npz"], None),
        "run": ([data, "-o", out / "o.npz"], out / "o.npz"),
        "diff": ([data], None),
        "recover": (["-o", out / "o.npz"], out / "o.npz"),
    }[verb]
    first = inputs / "weights.npz" if verb == "recover" else MODEL
    return [str(part) for part in (verb, first, *arguments)], output


def call(arguments: list[str], code: str = MAIN, **options) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], text=True, timeout=60, **options
    )


def broken_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("verb", VERBS)
def test_a_reader_that_has_gone_costs_no_output(verb, inputs, tmp_path):
    arguments, output = command(verb, inputs, tmp_path)
    result = call(arguments, stdout=broken_pipe())
    assert (result.returncode, result.stderr) == (141, "")
    assert output is None or output.stat().st_size > 500


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_standard_output_is_an_error_and_costs_no_output(verb, inputs, tmp_path):
    arguments, output = command(verb, inputs, tmp_path)
    result = call(arguments, preexec_fn=lambda: os.close(1))
    assert result.returncode == 2
    assert result.stderr == ("qmath: error: cannot write to standard output: Bad file descriptor\n")
    assert output is None or output.stat().st_size > 500


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_an_error_and_costs_no_output(verb, inputs, tmp_path):
    arguments, output = command(verb, inputs, tmp_path)
    with open("/dev/full", "w") as full:
        result = call(arguments, stdout=full)
    assert result.returncode == 2
    assert result.stderr == (
        "qmath: error: cannot write to standard output: No space left on device\n"
    )
    assert output is None or output.stat().st_size > 500


@pytest.mark.parametrize("verb", VERBS)
def test_an_interruption_is_one_line_and_leaves_nothing(verb, inputs, tmp_path):
    code = (
        HANDLED
        + f"""
import qmath.containers.array_file, qmath.readers.loading
def interrupted(*_args, **_options):
    os.kill(os.getpid(), signal.SIGINT)
qmath.readers.loading.load = qmath.containers.array_file.read_arrays = interrupted
{MAIN}"""
    )
    arguments, _ = command(verb, inputs, tmp_path)
    result = call(arguments, code)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "qmath: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_under_json_is_a_document(inputs, tmp_path):
    code = (
        HANDLED
        + f"""
import qmath.readers.loading
qmath.readers.loading.load = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
{MAIN}"""
    )
    result = call([*command("export", inputs, tmp_path)[0], "--json"], code)
    assert result.returncode == 130
    assert json.loads(result.stdout)["error"] == "interrupted"


def test_an_interruption_while_modules_are_imported():
    code = (
        HANDLED
        + f"""
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
import qmath.cli
sys.meta_path.insert(0, Finder())
{MAIN}"""
    )
    result = call(["inspect", MODEL], code)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "qmath: interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="asks how full a pipe is")
def test_an_interruption_while_nobody_reads():
    arguments = [sys.executable, "-c", HANDLED + MAIN, "inspect", "--json", "--quiet"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*arguments, *[MODEL] * 8], stdout=pipe, stderr=pipe) as process:
        held = np.zeros(1, np.int32)
        until = time.monotonic() + 60
        while held[0] < 65536 and time.monotonic() < until:
            fcntl.ioctl(process.stdout, termios.FIONREAD, held)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b"qmath: interrupted\n"


def test_a_difference_is_told_by_the_status_alone(inputs):
    arguments = ["verify", SAMPLES / "nbit4.h5", inputs / "model.npz"]
    assert call(arguments, stdout=broken_pipe()).returncode == 1
    assert call(arguments, preexec_fn=lambda: os.close(1)).returncode == 2


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_meets_the_same_streams(option):
    assert call([option], stdout=broken_pipe()).returncode == 141
    closed = call([option], preexec_fn=lambda: os.close(1))
    assert (closed.returncode, len(closed.stderr.splitlines())) == (2, 1)


def test_shells_are_told_how_to_complete():
    result = call([], env={**os.environ, "_QMATH_COMPLETE": "zsh_source"})
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("#compdef qmath")


def test_a_terminal_is_known_though_output_is_held():
    leader, follower = os.openpty()
    result = call(["inspect", MODEL], stdout=follower, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    assert result.returncode == 0
    assert b"\x1b[1m" in os.read(leader, 65536)
    os.close(leader)


def close_all() -> None:
    for number in range(3):
        os.close(number)


def test_no_file_takes_the_number_of_a_closed_stream(inputs, tmp_path):
    code = f"""
import os, qmath.exports.arrays.npz
finish = qmath.exports.arrays.npz.NpzWriter.finish
def noisy(self, manifest):
    finish(self, manifest)
    os.write(1, b"noise"), os.write(2, b"noise")  # as a library may do
qmath.exports.arrays.npz.NpzWriter.finish = noisy
{MAIN}"""
    out = tmp_path / "o.npz"
    for options, status in ([], 2), (["--quiet", "--overwrite"], 0):
        result = call(["export", MODEL, "-o", out, *options], code, preexec_fn=close_all)
        assert (result.returncode, result.stdout, result.stderr) == (status, "", "")
        assert out.read_bytes() == (inputs / "model.npz").read_bytes()


@pytest.mark.parametrize("verb", ["inspect", "nonsense"])
def test_an_error_that_nobody_can_read_is_one_still(verb):
    assert call([verb, "missing.h5"], stderr=broken_pipe()).returncode == 2
    closed = call([verb, "missing.h5"], preexec_fn=lambda: os.close(2))
    assert (closed.returncode, closed.stdout) == (2, "")


def test_a_bug_is_one_line(tmp_path):
    code = f"""
import qmath.readers.loading
qmath.readers.loading.load = lambda *_, **__: 1 / 0
{MAIN}"""
    arguments = ["export", MODEL, "-o", tmp_path / "o.npz"]
    result = call(arguments, code)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("qmath: error: ZeroDivisionError: division by zero; this is a bug of ")
    document = json.loads(call([*arguments, "--json"], code).stdout)
    assert document["status"] == 2
    assert "ZeroDivisionError" in document["error"]
    shown = call(arguments, code, env={**os.environ, "QMATH_DEBUG": "1"})
    assert shown.returncode == 2
    assert shown.stderr.startswith("Traceback ")
    assert shown.stderr.splitlines()[-1] == line
    assert call(arguments, code, stdout=broken_pipe(), stderr=broken_pipe()).returncode == 2
