"""``--resume``: commands that are killed, and go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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


def test_outputs_that_are_gone_are_an_error(tmp_path):
    done, out = tmp_path / "done", tmp_path / "out.npz"
    arguments = ["run", MODEL, DATA, "-o", out, "--resume", done]
    np.savez(tmp_path / "done.npz", x=1)
    (tmp_path / "done.npz").rename(done)
    message = run_here(*arguments)
    assert message.exit_code == 2
    assert "done.outputs is gone" in message.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", MODEL, MODEL, DATA, "--resume", "done"], "of one model"),
        (["run", MODEL, DATA, "-o", "x.npz", "--resume", "x.npz"], "another file of this command"),
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
