"""Failing calls, signals and killed processes: a slice of ``python -m reference.faults``."""

import errno
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from qmath.exports.output import temporary
from qmath.exports.output.atomic import replacing, replacing_folder
from qmath.exports.output.temporary import Temporary
from reference.faults import Case, containers, faults, formats, judge, sweep
from reference.interposing import Fault, Machine, Result, UnavailableError

HAS_LOCKS = temporary._boot() is not None
needs_locks = pytest.mark.skipif(not HAS_LOCKS, reason="Linux alone tells when it started")


@pytest.fixture(scope="module")
def machine():
    try:
        found = Machine()
    except UnavailableError as error:
        pytest.skip(str(error))
    with found:
        yield found


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def swept(machine, case: Case, place, wanted) -> Counter:
    """Return how often each kind of call was struck; what is wrong fails the test."""
    wrong = []
    counts = sweep(machine, case, place, wanted, report=wrong.append)
    assert not wrong
    found: Counter = Counter()
    for (_, kind, _), number in counts.items():
        found[kind] += number
    return found


CASES = {case.name: case for case in (*formats(), *containers())}


@pytest.mark.once
def test_each_call_of_a_file_fails_in_turn(machine, tmp_path):
    case = CASES["onnx, over an older"]
    counts = swept(machine, case, tmp_path, faults(case))
    assert {"open", "write", "sync", "rename", "close", "lock"} <= counts.keys()


@pytest.mark.once
def test_each_call_of_a_folder_fails_in_turn(machine, tmp_path):
    kinds = {"write", "sync", "rename", "mkdir", "remove", "lock"}
    case = CASES["bin, over an older"]
    wanted = [fault for fault in faults(case) if fault.action == "fail" and kinds & {*fault.kinds}]
    counts = swept(machine, case, tmp_path, wanted)
    assert counts.keys() == kinds


@pytest.mark.once
def test_a_signal_at_each_call_of_a_folder_and_in_its_cleanup(machine, tmp_path):
    counts = swept(machine, CASES["bin, new"], tmp_path, [Fault("signal on", signal.SIGTERM)])
    assert counts["mkdir"] == 1


@pytest.mark.once
def test_each_call_on_a_model_fails_in_turn(machine, tmp_path):
    wanted = [Fault("fail", errno.EMFILE, ("open",))]
    counts = swept(machine, CASES["read HDF5"], tmp_path, wanted)
    assert counts["open"] > 2


@pytest.mark.parametrize(
    ("result", "fault", "found", "wrong"),
    [
        ((2, ["qmath: error: a"]), Fault("fail", 5), {"a": b"old"}, False),
        ((2, ["Traceback", "OSError"]), Fault("fail", 5), {"a": b"old"}, True),
        ((1, ["qmath: error: a"]), Fault("fail", 5), {"a": b"old"}, True),
        ((2, ["qmath: error: a"]), Fault("fail", 5), {"a": b"ol"}, True),
        ((2, ["qmath: error: a"]), Fault("fail", 5), {"a": b"old", ".qmath-1.tmp": b""}, True),
        ((0, []), Fault("fail", 5), {"a": b"old"}, True),
        ((0, []), Fault("fail", 5), {"a": b"new"}, False),
        ((143, []), Fault("signal", 15), {"a": b"old"}, False),
        ((143, []), Fault("signal", 15), {"a": b"old", ".qmath-1.tmp": b""}, True),
        ((-9, []), Fault("signal", 9), {"a": b"old", ".qmath-1.tmp": b""}, False),
        ((1, ["Traceback"]), Fault("signal", 15), {"a": b"new"}, True),
    ],
)
def test_the_judge_can_say_no(result, fault, found, wrong):
    outcome = judge(Result(*result, 1, "write"), fault, found, {"a": b"old"}, {"a": b"new"})
    assert (outcome not in ("old", "new", "left behind")) == wrong


# ---- what killed processes leave


def killed(target, *, is_folder=False):
    """Leave what a killed process was writing beside `target`; return its path."""
    before = set(target.parent.iterdir())
    code = f"""
import os, pathlib
from qmath.exports.output.temporary import Temporary
with Temporary(pathlib.Path({str(target)!r}), is_folder={is_folder}) as found:
    if {is_folder}:
        (found.path / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""
    run = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL
    (left,) = set(target.parent.iterdir()) - before
    return left


@needs_locks
def test_the_next_output_removes_what_killed_processes_left(tmp_path):
    killed(tmp_path / "a")
    killed(tmp_path / "b", is_folder=True)
    assert len(listing(tmp_path)) == 1  # the second removed what the first left
    with replacing(tmp_path / "out", overwrite=False) as file:
        file.write(b"all")
    assert listing(tmp_path) == ["out"]


@needs_locks
def test_what_a_live_process_writes_stays(tmp_path):
    code = f"""
import pathlib, sys
from qmath.exports.output.atomic import replacing, replacing_folder
folder = pathlib.Path({str(tmp_path)!r})
with replacing(folder / "a", overwrite=False) as file, \\
        replacing_folder(folder / "b", overwrite=False) as place:
    file.write(b"all")
    (place / "c").write_text("all")
    print("written", flush=True)
    sys.stdin.readline()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"written\n"
        with replacing(tmp_path / "out", overwrite=False) as file:
            file.write(b"all")
        assert len(listing(tmp_path)) == 3
        process.stdin.close()
        assert process.wait(60) == 0
    assert listing(tmp_path) == ["a", "b", "out"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b/c").read_bytes() == b"all"


@needs_locks
def test_a_users_file_with_a_similar_name_stays(tmp_path):
    name = killed(tmp_path / "a").name
    (tmp_path / name).unlink()
    digit = "0" if name[20] != "0" else "1"
    similar = [
        ".qmath-0123456789ab.tmp",
        name + "~",
        name[:20] + digit + name[21:],  # the checksum is another's
        temporary._name("00000000-" + "1" * 16),  # of another start of the system
    ]
    for other in similar:
        (tmp_path / other).write_text("precious")
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", tmp_path / name)
    temporary.sweep(tmp_path)
    assert set(listing(tmp_path)) == {*similar, "precious", name}
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "precious")
    temporary.sweep(tmp_path)
    assert set(listing(tmp_path)) == {*similar, "precious", name}


@needs_locks
def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    left = killed(tmp_path / "a")

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(temporary.fcntl, "flock", refuse)
    with Temporary(tmp_path / "out") as found:
        assert not temporary._NAME.fullmatch(found.path.name)  # so that nobody ever sweeps it
        monkeypatch.undo()
        temporary.sweep(tmp_path)
        assert found.path.exists()
    assert not left.exists()
    assert listing(tmp_path) == []


@needs_locks
def test_a_name_that_another_process_sweeps_at_once_is_given_up(tmp_path, monkeypatch):
    real, names = temporary.fcntl.flock, []

    def swept_before(descriptor, operation):
        if not names:
            names.extend(listing(tmp_path))
            (tmp_path / names[0]).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(temporary.fcntl, "flock", swept_before)
    with replacing(tmp_path / "out", overwrite=False) as file:
        assert names != listing(tmp_path)
        file.write(b"all")
    assert listing(tmp_path) == ["out"]


# ---- errors in cleaning up


def test_an_error_in_closing_does_not_hide_the_first(tmp_path, monkeypatch):
    real, refused = os.dup, []

    def full(descriptor):
        refused.append(real(descriptor))
        return os.open("/dev/full", os.O_WRONLY)

    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(os, "dup", full)

    def interrupted():
        with replacing(tmp_path / "a", overwrite=False) as file:
            file.write(b"kept in the buffer")
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        interrupted()
    for descriptor in refused:
        os.close(descriptor)
    assert listing(tmp_path) == []


def test_what_cannot_be_removed_is_tried_again_at_the_end(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(5, "Input/output error")

    def interrupted():
        with replacing_folder(tmp_path / "a", overwrite=False) as place:
            (place / "half").write_text("half")
            raise KeyError("first")

    with monkeypatch.context() as patched:
        patched.setattr(temporary, "_remove", refuse)
        with pytest.raises(KeyError, match="first"):
            interrupted()
        assert len(listing(tmp_path)) == 1
    temporary.remove_unfinished()
    assert listing(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_removes_nothing_of_its_parent(tmp_path):
    with replacing(tmp_path / "a", overwrite=False) as file:
        pid = os.fork()
        if not pid:
            temporary.remove_unfinished()
            os._exit(0)
        os.waitpid(pid, 0)
        file.write(b"all")
    assert listing(tmp_path) == ["a"]
