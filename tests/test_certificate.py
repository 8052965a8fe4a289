"""The prover's journal and certificate, without TensorFlow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from reference.prove import certificate
from reference.prove.certificate import KINDS, CertificateError
from reference.prove.journal import Journal, JournalError

SCHEMA = Draft202012Validator(
    json.loads(Path(certificate.__file__).with_name("certificate.schema.json").read_text("utf-8"))
)
DIGEST = "0" * 64
ENVIRONMENT = {
    "versions": {"python": "3", "qmath-tfmot": "1", "numpy": "2", "tensorflow": "2"},
    "cpu": "one",
}
SWEEP = {
    "name": "sweep", "op": "fake_quant_with_min_max_vars", "num_bits": 8, "narrow_range": False,
    "min": [-1.0, 0.0], "max": [1.0, 2.0], "gradient": None, "patterns": 2**32,
    "compared": 2**33, "integers": 2**33, "differing_bits": 0, "sha256": DIGEST,
    "commit": "unknown",
}  # fmt: skip
TRIP = {
    "op": "fake_quant_with_min_max_args", "num_bits": 3, "range_widths": 5, "compared": 320,
    "differing": 2, "sha256": DIGEST, "commit": "a" * 40 + "+",
}  # fmt: skip
SYMMETRIC = {
    **SWEEP, "op": "quantize_and_dequantize_v2", "min": [-1.0], "max": [1.0], "compared": 2**32,
    "integers": 0, "signed_input": True, "round_mode": "HALF_UP", "axis": None,
}  # fmt: skip
ENTRIES = [
    {"task": "trips", "seconds": 30.0, "records": [TRIP, {**TRIP, "num_bits": 2}]},
    {"task": "sweep", "seconds": 60.0, "records": [SWEEP]},
]
PARTS = {"trips": "round_trips", "sweep": "sweeps"}


def made(entries: list[dict]) -> dict:
    return certificate.build(ENVIRONMENT, PARTS, entries)


def test_it_matches_its_schema_and_counts_what_differs(tmp_path):
    written = tmp_path / "certificate.json"
    certificate.write(made(ENTRIES), written)
    read = json.loads(written.read_text("utf-8"))
    assert read == made(ENTRIES)
    SCHEMA.validate(read)
    assert read["differing"] == 4
    assert read["cpu_minutes"] == 1.5
    with pytest.raises(ValidationError):
        SCHEMA.validate({**read, "sweeps": [{**SWEEP, "differing_bits": -1}]})


def test_a_sweep_of_symmetric_integers_says_how_it_rounds():
    SCHEMA.validate({**made(ENTRIES), "sweeps": [SYMMETRIC]})
    unsaid = {key: value for key, value in SYMMETRIC.items() if key != "round_mode"}
    with pytest.raises(ValidationError, match="round_mode"):
        SCHEMA.validate({**made(ENTRIES), "sweeps": [unsaid]})


def test_a_certificate_to_complete_is_read_back_and_its_minutes_count(tmp_path):
    written = tmp_path / "certificate.json"
    certificate.write(made(ENTRIES), written)
    before = certificate.read(written, ENVIRONMENT)
    assert before == made(ENTRIES)
    assert certificate.build(ENVIRONMENT, PARTS, ENTRIES[:1], 1.5)["cpu_minutes"] == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is no certificate"),
        ("{}", "is no certificate"),
        (json.dumps({**made(ENTRIES), "cpu": "another"}), "was made with other cpu; run without"),
    ],
)
def test_what_cannot_be_completed_is_refused(tmp_path, text, message):
    path = tmp_path / "certificate.json"
    if text is not None:
        path.write_text(text, "utf-8")
    with pytest.raises(CertificateError, match=f"^{re.escape(str(path))} {message}"):
        certificate.read(path, ENVIRONMENT)


def test_records_of_other_kernels_are_not_taken_for_those_of_eager_tensorflow(tmp_path):
    path = tmp_path / "certificate.json"
    certificate.write({**made(ENTRIES), "against": "xla-cpu", "build": "xla-cpu"}, path)
    with pytest.raises(CertificateError, match="was made with other against, build"):
        certificate.read(path, ENVIRONMENT)


def test_a_row_of_the_table_for_each_proof_and_op():
    more = {**SWEEP, "num_bits": 4, "differing_bits": 7}
    entries = [*ENTRIES, {"task": "sweep", "seconds": 1, "records": [more, SYMMETRIC]}]
    assert list(certificate.table(made(entries)))[2:] == [
        "| every float32 | `quantize_and_dequantize_v2` | 8 | 1 | 4,294,967,296 | 0 |",
        "| every float32 | `vars` | 4, 8 | 4 | 34,359,738,368 | 7 |",
        "| every integer, there and back | `args` | 2, 3 | 10 | 640 | 4 |",
    ]


def test_records_name_the_commit_of_their_kernels(monkeypatch, tmp_path):
    assert SCHEMA.evolve(schema=SCHEMA.schema["$defs"]["commit"]).is_valid(certificate.commit())
    monkeypatch.setattr(certificate, "ROOT", tmp_path)
    assert certificate.commit() == "unknown"


def test_a_finished_task_is_not_done_again(tmp_path):
    path = tmp_path / "journal"
    for entry in ENTRIES:
        Journal(path, ENVIRONMENT, resume=True).add(entry)
    resumed = Journal(path, ENVIRONMENT, resume=True)
    assert list(resumed.finished.values()) == ENTRIES
    assert not Journal(path, ENVIRONMENT, resume=False).finished


def test_a_line_that_a_crash_cut_off_is_a_task_to_do_again(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, ENVIRONMENT, resume=False)
    for entry in ENTRIES:
        journal.add(entry)
    path.write_text(path.read_text("utf-8")[:-9], "utf-8")
    resumed = Journal(path, ENVIRONMENT, resume=True)
    assert list(resumed.finished) == ["trips"]
    resumed.add(ENTRIES[1])
    assert list(Journal(path, ENVIRONMENT, resume=True).finished) == ["trips", "sweep"]


def test_records_of_another_processor_are_not_mixed_in(tmp_path):
    path = tmp_path / "journal"
    Journal(path, ENVIRONMENT, resume=False).add(ENTRIES[0])
    with pytest.raises(JournalError, match="other cpu"):
        Journal(path, {**ENVIRONMENT, "cpu": "another"}, resume=True)


def test_the_committed_certificate_says_that_no_bit_differs():
    made = json.loads(certificate.CERTIFICATE.read_text("utf-8"))
    SCHEMA.validate(made)
    assert made["differing"] == sum(certificate.count_differing(made[k]) for k in KINDS) == 0
    symmetric = [record for record in made["sweeps"] if "signed_input" in record]
    assert {record["round_mode"] for record in symmetric} == {"HALF_TO_EVEN", "HALF_UP"}
    for record in symmetric:
        assert record["patterns"] == 2**32
        assert record["compared"] == 2**32 * len(record["min"]), record["name"]
    forward = [
        record
        for record in made["sweeps"]
        if record["gradient"] is None and record not in symmetric
    ]
    assert len(forward) >= 24
    for record in forward:
        every_pattern = 2**32 * len(record["min"])
        assert record["patterns"] == 2**32
        assert record["compared"] == record["integers"] == every_pattern, record["name"]
    assert {record["num_bits"] for record in forward} >= {2, 3, 4, 5, 8, 12, 16}
    assert len({(record["op"], record["narrow_range"]) for record in forward}) == 6
    ops = {record["op"] for record in forward}
    for op in ops:
        near = [record for record in made["thresholds"] if record["op"] == op]
        assert sum(record["configurations"] for record in near) >= 1000
    assert made["round_trips"]


OTHERS = sorted(certificate.path("xla-cpu").parent.glob("*.json"))


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_the_committed_certificates_of_other_kernels_say_that_no_bit_differs(path):
    made = json.loads(path.read_text("utf-8"))
    SCHEMA.validate(made)
    assert certificate.path(made["against"].removesuffix(", emulated")) == path
    assert made["differing"] == sum(certificate.count_differing(made[k]) for k in KINDS) == 0
    assert len(made["sweeps"]) >= (3 if made["against"].endswith("emulated") else 8)
    assert {record["op"] for record in made["sweeps"]} >= {
        f"fake_quant_with_min_max_{op}" for op in ("args", "vars", "vars_per_channel")
    }
    for record in made["sweeps"]:
        assert record["patterns"] == record["compared"] == 2**32, record["name"]
        assert record["integers"] >= 2**32 - 2**24, record["name"]  # all but NaN
    for op in ("args", "vars", "vars_per_channel"):
        near = [record for record in made["thresholds"] if record["op"].endswith(f"max_{op}")]
        assert sum(record["configurations"] for record in near) >= 1000
