"""What only a real process shows: missing extras, signals, pipes, imports."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SAMPLE = str(Path(__file__).parents[2] / "reference" / "samples" / "question.h5")
MAIN = "from qmath.cli import main; main()"
MODULE = "import runpy; runpy.run_module('qmath', run_name='__main__', alter_sys=True)"


def run(*args, code=MAIN, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("names", [["click"], ["rich"], ["h5py"], ["click", "rich", "h5py"]])
@pytest.mark.parametrize("start", [MAIN, MODULE], ids=["script", "module"])
def test_without_the_extra_it_says_what_to_install(names, start):
    block = f"import sys; sys.modules.update(dict.fromkeys({names!r})); {start}"
    result = run("--version", code=block)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"qmath: error: {', '.join(names)} ")
    assert line.endswith("pip install 'qmath-tfmot[cli]'")


def test_the_package_is_the_command_line():
    command = [sys.executable, "-m", "qmath", "inspect", "--x"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("qmath: error: ")
    assert result.stderr.endswith("see qmath inspect --help\n")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_little(option):
    code = f"import sys, atexit\natexit.register(lambda: print(*sys.modules))\n{MAIN}"
    loaded = set(run(option, code=code).stdout.splitlines()[-1].split())
    assert "qmath.cli.app" in loaded
    assert not loaded & {
        "numpy",
        "h5py",
        "rich",
        "tensorflow",
        "keras",
        "qmath.exports.bundle",
        "qmath.inspection.report",
    }


def test_errors_have_no_traceback(tmp_path):
    result = run("export", str(tmp_path / "no.h5"), "-o", str(tmp_path / "out.npz"))
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_a_closed_pipe_is_quiet():
    command = [sys.executable, "-c", MAIN, "inspect", SAMPLE, "--json", "--quiet"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_an_interruption_is_quiet_and_leaves_nothing(tmp_path):
    code = f"""
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
import qmath.exports.arrays.npz
def finish(self, manifest):
    open({str(tmp_path / "started")!r}, "w").close()
    time.sleep(30)
qmath.exports.arrays.npz.NpzWriter.finish = finish
{MAIN}
"""
    out = tmp_path / "folder"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "export", SAMPLE, "-o", str(out / "out.npz")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (output, error) == ("", "qmath: interrupted\n")
    assert list(out.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    result = run("export", SAMPLE, "-o", str(tmp_path / "out.npz"))
    assert result.returncode == 2
    assert "Permission denied" in result.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system nobody writes to")
def test_a_file_system_that_refuses():
    result = run("export", SAMPLE, "-o", "/proc/self/out.npz")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "cannot write /proc/self/out.npz" in result.stderr


def test_output_that_the_terminal_cannot_show():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = run("inspect", SAMPLE, env=environment)
    assert result.returncode == 0
    assert "integer-only: no" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are Unix's")
def test_a_terminal_shows_progress_and_a_pipe_none(tmp_path):
    import pty

    leader, follower = pty.openpty()
    out = str(tmp_path / "out.npz")
    command = [sys.executable, "-c", MAIN, "export", SAMPLE, "-o", out]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 65536):
                shown += part
        except OSError:  # Linux's way to say that the other end is closed
            pass
        assert process.stdout.read().startswith(out.encode())
    os.close(leader)
    assert "writing …" in shown.decode()
    quiet = run("verify", SAMPLE, out)
    assert (quiet.returncode, quiet.stderr) == (0, "")
