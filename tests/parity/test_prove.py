"""The prover: a slice of all that it proves, and that it would notice a difference."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import qmath
from reference.prove import certificate
from reference.prove.__main__ import main
from reference.prove.configurations import SymmetricSweep, sweeps
from reference.prove.sweeping import BLOCK, patterns, sweep
from reference.prove.tally import Tally
from reference.prove.tasks import tasks
from reference.prove.thresholding import bisect, groups, numbered, ordinal, threshold_floats


def test_a_slice_of_every_proof(tmp_path):
    output = tmp_path / "certificate.json"
    assert main(["--quick", "--jobs", "1", "--output", str(output)]) == 0
    made = json.loads(output.read_text("utf-8"))
    assert made["differing"] == 0
    assert {record["name"] for record in made["sweeps"]} == {of.name for of in sweeps()}
    assert min(record["compared"] for record in made["sweeps"]) >= 2**20
    assert list(tmp_path.iterdir()) == [output]  # the journal is gone


@pytest.mark.slow
def test_a_slice_against_xla(tmp_path):
    output = tmp_path / "certificate.json"
    names = ["vars 8 bits, untrained", "vars_per_channel 16 bits*", "thresholds 4*"]
    run = ["--quick", "--jobs", "1", "--against", "xla-cpu", "--output", str(output), "--configs"]
    assert main([*run, *names]) == 0
    made = json.loads(output.read_text("utf-8"))
    assert (made["against"], made["build"]) == ("xla-cpu", "xla-cpu")
    assert made["differing"] == 0
    assert [record["integers"] > 2**19 for record in made["sweeps"]] == [True, True]
    assert sum(record["configurations"] for record in made["thresholds"]) == 3 * 48
    # Other kernels make other integers of the range from -6 to 6, and other floats.
    of = replace(sweeps("xla-cpu")[0], against="tf")
    assert sweep(of, lambda _: None, quick=True)["sha256"] != made["sweeps"][0]["sha256"]


def test_an_integer_that_stands_for_two_floats_or_out_of_order_is_a_difference():
    x = np.float32([-1, 0, 0.5, 1])
    q = qmath.quantize(x, -1, 1, 4, build="xla-cpu")
    y = qmath.fake_quant_with_min_max_vars(x, -1, 1, 4, build="xla-cpu")
    tally = Tally()
    tally.in_order(q, y)
    assert tally.differing == 0
    other = y.copy()
    other[2] += np.float32(0.01)
    tally.in_order(q, other)
    assert tally.differing == 1
    reverse = Tally()
    reverse.in_order(q, y[::-1])
    assert reverse.differing == 3


def test_the_sweeps_cover_what_they_should():
    symmetric = [of for of in sweeps() if isinstance(of, SymmetricSweep)]
    assert {of.signed_input for of in symmetric} == {of.narrow_range for of in symmetric}
    assert {of.round_mode for of in symmetric} == {"HALF_TO_EVEN", "HALF_UP"}
    assert {of.axis for of in symmetric} == {None, 1}
    forward = [of for of in sweeps() if of.gradient is None and of not in symmetric]
    assert len(forward) >= 24
    assert {of.num_bits for of in forward} >= {2, 3, 4, 5, 8, 12, 16}
    assert {(of.op, of.narrow_range) for of in forward} == {
        (op, narrow) for op in ("args", "vars", "vars_per_channel") for narrow in (False, True)
    }
    assert {of.op for of in sweeps() if of.gradient} == {of.op for of in forward}


def test_completing_keeps_records_and_runs_what_is_missing(tmp_path, capsys):
    first, second = "args 8 bits, default", "round trips 2 bits"
    output = tmp_path / "certificate.json"
    assert main(["--quick", "--jobs", "1", "--configs", second, "--output", str(output)]) == 0
    before = json.loads(output.read_text("utf-8"))
    before["round_trips"][0]["sha256"] = "f" * 64  # not what a run would write
    output.write_text(json.dumps(before), "utf-8")
    capsys.readouterr()
    complete = ["--quick", "--jobs", "1", "--configs", first, "--complete", str(output)]
    assert main(complete) == 0
    assert f"{second}:" not in capsys.readouterr().out
    made = json.loads(output.read_text("utf-8"))
    assert made["round_trips"] == before["round_trips"]
    assert [record["name"] for record in made["sweeps"]] == [first]
    assert made["cpu_minutes"] >= before["cpu_minutes"]


def test_a_record_of_other_settings_does_not_count_as_held():
    name = "args 8 bits, default"
    committed = json.loads(certificate.CERTIFICATE.read_text("utf-8"))
    task = tasks()[name]
    (record,) = task.held(committed)
    assert record["name"] == name
    assert tasks(quick=True)[name].held(committed) is None
    assert task.held({"sweeps": [{**record, "max": [7.0]}]}) is None
    assert task.held({"sweeps": []}) is None


@pytest.mark.parametrize(
    "against", ["tf", "2.4.1 x86_64", "2.21.0 aarch64", "xla-cpu", "xla-cpu-nofma"]
)
def test_a_committed_certificate_holds_every_task(against):
    committed = json.loads(certificate.path(against).read_text("utf-8"))
    found = tasks(against=against)
    assert [name for name, task in found.items() if task.held(committed) is None] == []


def test_a_certificate_of_elsewhere_is_not_completed(tmp_path, capsys):
    other = {**json.loads(certificate.CERTIFICATE.read_text("utf-8")), "cpu": "another"}
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(other), "utf-8")
    with pytest.raises(SystemExit, match="2"):
        main(["--complete", str(path)])
    assert "other" in capsys.readouterr().err
    assert json.loads(path.read_text("utf-8")) == other


def differing(monkeypatch, function, task) -> bool:
    """Run a task with one bit of one output of a function wrong."""
    right = getattr(qmath, function)

    def wrong(*arguments, **options):
        outputs = right(*arguments, **options)
        broken = outputs.values if function == "quantize" else outputs
        broken.reshape(-1)[0] += 1
        return outputs

    monkeypatch.setattr(qmath, function, wrong)
    return main(["--quick", "--jobs", "1", "--configs", task]) == 1


@pytest.mark.parametrize("function", ["fake_quant_with_min_max_args", "quantize"])
def test_one_wrong_output_is_a_difference(monkeypatch, function):
    assert differing(monkeypatch, function, "args 8 bits, default")


def test_one_wrong_multiple_is_a_difference(monkeypatch):
    function = "quantize_and_dequantize_v2"
    assert differing(monkeypatch, function, f"{function} 8 bits narrow, conv kernel")


def test_one_wrong_mask_is_a_difference(monkeypatch):
    function = "fake_quant_with_min_max_args_gradient"
    assert differing(monkeypatch, function, "gradient by inputs: args 8 bits, default")


def test_one_wrong_threshold_is_a_difference(monkeypatch):
    assert differing(monkeypatch, "fake_quant_with_min_max_vars_per_channel", "thresholds 2 bits")


def test_one_wrong_round_trip_is_a_difference(monkeypatch):
    assert differing(monkeypatch, "quantize", "round trips 8 bits")


@pytest.mark.slow
def test_processes_share_the_work():
    names = ["args 8 bits, default", "round trips 2 bits"]
    assert main(["--quick", "--jobs", "2", "--configs", *names]) == 0


def test_an_unknown_configuration_is_refused():
    with pytest.raises(SystemExit, match="no configuration matches"):
        main(["--configs", "vars 99 bits*"])


def test_blocks_are_all_patterns_in_order():
    blocks = patterns(2, quick=False)
    first, second = (next(blocks).copy().view(np.uint32) for _ in range(2))
    rows = np.arange(BLOCK, dtype=np.uint32)
    np.testing.assert_array_equal(np.concatenate([first, second])[:, 0], rows)
    np.testing.assert_array_equal(first[:, 0], first[:, 1])


def test_ordinals_go_through_all_floats():
    floats = np.float32([-np.inf, -1, -1e-45, 0, 1e-45, 1, np.inf])
    np.testing.assert_array_equal(numbered(ordinal(floats)), floats)
    np.testing.assert_array_equal(
        numbered(ordinal(floats[1:-1]) + 1), np.nextafter(floats[1:-1], np.float32(np.inf))
    )
    assert ordinal(np.float32([-0.0]))[0] == 0
    np.testing.assert_array_equal(numbered(ordinal(floats) * 2)[[0, -1]], floats[[0, -1]])


def test_bisection_ends_at_the_last_float_below_a_step():
    levels = np.float32([-2, 0, 3])
    last = bisect(np.floor, levels)
    np.testing.assert_array_equal(np.floor(numbered(last)), levels)
    np.testing.assert_array_equal(np.floor(numbered(last + 1)), levels + 1)


def test_every_integer_of_a_range_is_met_near_its_thresholds():
    group = next(groups(4))
    x = np.concatenate(list(threshold_floats(group, "vars")))
    q = qmath.quantize(x[:, 0], group.min[0], group.max[0], 4, signed=False)
    assert np.unique(q.values).size == 16
