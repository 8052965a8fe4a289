"""Every layer class and networks, from training to the exported C: `reference.matrix`."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest

pytest.importorskip("tensorflow_model_optimization")
pytest.importorskip("onnxruntime")
from reference.matrix import __main__ as command
from reference.matrix import cases, networks, table
from reference.matrix.judging import Count, Verdict
from reference.matrix.running import judged

SLICE = (
    "8bit/DepthwiseConv2D, normalized/w8a8/axis",
    "nbit/Concatenate/w4a4",
    "own/Multiply a gate/w3a3",
    "own/GRU/w8a8",
    "own/AdditiveAttention/w8a8",
)
NETWORKS = ("ds_cnn",)
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler cc")


def assert_right(name):
    """Judge a cell; whatever is wrong is in the message."""
    verdict = judged(name)
    assert list(table.faults(verdict)) == []
    if verdict.kind in ("not built", "refused"):
        return verdict
    saved = {what.replace("save", "load") for what in verdict.refusals}
    assert {"exact", "integer", "self-check in C", "load whole.h5"} <= {*verdict.did, *saved}
    assert verdict.counts["exact"].integers
    return verdict


@pytest.mark.parametrize("scheme", ["8bit", "nbit"])
def test_every_class_of_a_registry_has_a_case(scheme):
    covered = {cases.class_of(scheme, label) for label in cases.CASES[scheme]}
    held = {cases.class_of("own", label) for label in cases.CASES["own"]}
    assert cases.registered(scheme) - covered - held == set()
    assert len(cases.registered(scheme)) > 30


def test_every_class_of_keras_has_a_case_or_a_reason():
    covered = {
        cases.class_of(scheme, label) for scheme in cases.CASES for label in cases.CASES[scheme]
    }
    assert cases.keras_classes() - covered == cases.LEFT_OUT.keys()
    assert all(cases.LEFT_OUT.values())


def test_every_cell_has_a_name_of_its_own():
    names = [cell.name for cell in cases.cells()]
    assert len(set(names)) == len(names) > 1000
    assert set(SLICE) <= set(names)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", SLICE)
def test_some_cells(name):
    assert assert_right(name).kind not in ("not built", "refused")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_small_network(name):
    verdict = assert_right(name)
    assert (verdict.kind, verdict.cuts) == ("integer", [])


@needs_compiler
@pytest.mark.nightly
@pytest.mark.parametrize("name", [c.name for c in cases.cells() if c.name not in SLICE])
def test_every_cell(name):
    assert_right(name)


@needs_compiler
@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in networks.NETWORKS if name not in NETWORKS])
def test_every_network(name):
    assert assert_right(name).kind not in ("not built", "refused")


def verdict(name="8bit/Add/w8a8", **changes):
    counts = {"exact": Count(100, 2, 2, 0, ["layer/output: 2 of 100 by up to 1"])}
    return Verdict(name, **{"counts": counts, "did": ["self-check in C"], **changes})


def told(tmp_path, capsys, *verdicts):
    """Return the exit status and what is printed of a state file that has all that is asked for."""
    state = tmp_path / "state.jsonl"
    state.write_text("".join(json.dumps(asdict(each)) + "\n" for each in verdicts))
    names = [each.name for each in verdicts]
    status = command.main(["--only", *names, "--state", str(state)])
    return status, capsys.readouterr().out.splitlines()


def test_what_is_in_the_state_file_is_not_done_again(tmp_path, capsys):
    status, lines = told(tmp_path, capsys, verdict(), verdict("8bit/ReLU/w8a8", kind="cut"))
    assert status == 0
    assert "| 8bit/Add | 1 | integer | 100 | 2 | 2 | 0 of 0 | 1 | 0 |" in lines[2:4]
    assert lines[4] == "| all | 2 |  | 200 | 4 | 4 | 0 of 0 | 2 | 0 |"
    assert lines[-1].startswith("- differs, exact: layer/output: 2 of 100")


def test_a_state_file_is_printed_by_class_and_alone(tmp_path, capsys):
    state = tmp_path / "state.jsonl"
    some = verdict("own/ReLU to 3/w8a8"), verdict("own/ReLU with all/w8a8", kind="float")
    state.write_text("".join(json.dumps(asdict(each)) + "\n" for each in some))
    assert command.main(["--done", "--classes", "--state", str(state)]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row == "| ReLU | 2 | integer, float | 200 | 4 | 4 | 0 of 0 | 2 | 0 |"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"counts": {"integer": Count(100, 3, 1, 1)}}, "integer: 1 unexplained"),
        ({"faults": {"self-check in C": "status 1"}}, "self-check in C: status 1"),
        ({"refusals": {"export npz": "no reason"}}, "export npz refused: no reason"),
    ],
)
def test_what_is_wrong_is_named_and_is_the_status(tmp_path, capsys, change, said):
    status, lines = told(tmp_path, capsys, verdict(**change))
    assert status == 1
    assert any(line.startswith(f"- FAULT {said}") for line in lines)


def test_a_refusal_that_is_meant_is_no_fault(tmp_path, capsys):
    refusals = {"save keras_saved": "Keras: ValueError: Unable to save function"}
    status, lines = told(tmp_path, capsys, verdict(refusals=refusals))
    assert status == 0
    assert any("- refused, save keras_saved: " in line for line in lines)


def test_names_that_match_nothing_are_an_error(capsys):
    with pytest.raises(SystemExit):
        command.main(["--only", "none/*"])
    assert "nothing is named none/*" in capsys.readouterr().err
