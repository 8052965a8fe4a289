"""``--resume``: commands that are killed, and go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qmath.errors import QmathError
from qmath.integer.claiming import claimed
from qmath.integer.running import Running
from tests.cli.running import run as run_here

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
MODEL = SAMPLES / "default8.h5"
DATA = SAMPLES / "digits_test.npz"
ENDING = """
import os, signal, sys
from qmath.cli import main
from qmath.integer import resuming
signal.signal(signal.SIGINT, signal.default_int_handler)
resuming._EVERY = resuming._SHARE = 0
write, number = resuming._write, []
def ending(*arguments):
    number.append(0)
    if len(number) == 3:
        os.kill(os.getpid(), {signal})
    write(*arguments)
resuming._write = ending
main()
"""


def ended(signal_number, *arguments):
    """Run a command that a signal ends after two batches of three, before it says so."""
    code = ENDING.format(signal=int(signal_number))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name != "posix", reason="signals are Unix's")
def test_a_killed_run_writes_the_same_file(tmp_path):
    whole, out, done = tmp_path / "whole.npz", tmp_path / "out.npz", tmp_path / "done"
    options = ["--labels", "labels", "--activations"]
    first = run_here("run", MODEL, DATA, "-o", whole, *options)
    arguments = ["run", MODEL, DATA, "-o", out, *options, "--resume", done]
    assert ended(signal.SIGKILL, *arguments).returncode == -signal.SIGKILL
    assert not out.exists()
    result = run_here(*arguments)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == whole.read_bytes()
    assert result.stdout == first.stdout.replace("whole.npz", "out.npz")
    assert sorted(tmp_path.iterdir()) == [out, whole]


@pytest.mark.skipif(os.name != "posix", reason="signals are Unix's")
def test_an_interruption_says_how_to_go_on(tmp_path):
    done = tmp_path / "done"
    arguments = ["diff", MODEL, DATA, "--profile", "tflite"]
    result = ended(signal.SIGINT, *arguments, "--resume", done)
    assert result.returncode == 130
    assert result.stderr == (
        f"qmath: {done} holds what is done: give the same command to go on\nqmath: interrupted\n"
    )
    message = run_here("diff", MODEL, DATA, "--resume", done)
    assert message.exit_code == 2
    assert f"{done} is of other options" in message.stderr
    found, whole = run_here(*arguments, "--resume", done), run_here(*arguments)
    assert (found.exit_code, found.stdout) == (whole.exit_code, whole.stdout)
    assert not done.exists()


def refused(*arguments):
    """Return what a command says that is refused."""
    result = run_here(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


def begun(done, monkeypatch, *options):
    """Leave what is done of a run when its second batch fails; return the command."""
    arguments = ["run", MODEL, DATA, "--resume", done, *options]
    with monkeypatch.context() as patch:
        add, calls = Running.add, []

        def failing(self, total, part):
            calls.append(part)
            if len(calls) == 2:
                raise QmathError("the second batch")
            add(self, total, part)

        patch.setattr(Running, "add", failing)
        assert "the second batch" in refused(*arguments)
    assert done.exists()
    return arguments


def test_what_is_beside_no_state_is_the_users(tmp_path):
    done, own = tmp_path / "done", tmp_path / "done.outputs"
    own.write_bytes(b"mine")
    arguments = ["run", MODEL, DATA, "-o", tmp_path / "out.npz", "--resume", done]
    assert f"{own} exists, and {done} does not" in refused(*arguments)
    assert own.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [own]
    new = own.rename(tmp_path / "done.new")
    assert f"{new} exists, and {done} does not" in refused(*arguments)
    assert list(tmp_path.iterdir()) == [new]
    lock = new.rename(tmp_path / "done.lock")
    assert f"{lock} is not empty" in refused(*arguments)
    assert lock.read_bytes() == b"mine"


def test_a_state_that_another_process_uses_is_left_to_it(tmp_path):
    done = tmp_path / "done"
    code = (
        "import pathlib, sys; from qmath.integer.claiming import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(done)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for verb in ("run", "diff"):
            message = refused(verb, MODEL, DATA, "--resume", done)
            assert f"{done} is used by another process" in message
        other.kill()  # its lock stays as a file, and binds nobody
    assert [path.name for path in tmp_path.iterdir()] == ["done.lock"]
    with claimed(done):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_outputs_is_of_other_options(tmp_path, monkeypatch):
    arguments = begun(done := tmp_path / "done", monkeypatch)
    message = refused(*arguments, "-o", tmp_path / "out.npz")
    assert f"{done} is of other options, a command without -o; remove it" in message


def test_what_is_damaged_or_gone_is_named_with_its_remedy(tmp_path, monkeypatch):
    done, outputs = tmp_path / "done", tmp_path / "done.outputs"
    arguments = begun(done, monkeypatch, "-o", tmp_path / "out.npz")
    both = f"remove {done} and {outputs} to begin anew"
    assert f"of other options, so nothing can go on from it; {both}" in refused(*arguments[:-2])
    content, written = done.read_bytes(), outputs.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"mine"):
        done.write_bytes(damaged)
        message = refused(*arguments)
        assert f"{done} is damaged, or does not hold what is done of a run" in message
        assert both in message
        assert "savez" not in message
    done.write_bytes(content)
    outputs.write_bytes(written[:9])
    message = refused(*arguments)
    assert f"that were written are not there any more; {both}\n" in message
    assert "Error(" not in message
    outputs.unlink()
    assert f"{outputs} is gone, which holds the outputs so far; remove {done} to" in refused(
        *arguments
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", MODEL, MODEL, DATA, "--resume", "done"], "of one model"),
        (["run", MODEL, DATA, "-o", "x.npz", "--resume", "x.npz"], "another file of this command"),
        (["run", MODEL, DATA, "-o", "x.outputs", "--resume", "x"], "--resume x keeps x.outputs"),
        (["diff", MODEL, DATA, "--resume", MODEL], "another file of this command"),
        (["run", MODEL, DATA, "-o", "x.npz", "--resume", "none/done"], "cannot write none/done"),
    ],
)
def test_what_cannot_be_kept_is_an_error(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_here(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []
