"""What compares other builds with qmath, without TensorFlow: it counts, and says what lacks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from qmath.kernels.builds import BUILDS
from reference.builds.inputs import SUMMED, cases
from reference.builds.recognising import matrix, table
from reference.builds.running import SUMS, compared, of_release
from reference.builds.twins import TWINS
from reference.builds.wheels import RELEASES, MissingError, Release


def test_every_differing_bit_is_counted() -> None:
    made = list(cases(1, SUMMED))
    outputs = [[array.copy() for array in case.computed("tf")] for case in made]
    assert not any(count["differing"] for count in compared(made, outputs, "tf").values())
    outputs[0][0][7] += np.float32(0.01)
    outputs[-1][2][3] += np.float32(1)
    tally = compared(made, outputs, "tf")
    assert {op: count["differing"] for op, count in tally.items() if count["differing"]} == {
        made[0].op: 1,
        SUMS: 1,
    }
    assert compared(made, outputs, "xla-cpu")["per_channel"]["differing"] > 100
    assert "vars gradient" not in compared(made, outputs, "tf<2.6")  # which qmath refuses


def test_a_release_that_cannot_be_run_says_why(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMATH_BUILDS", str(tmp_path))
    monkeypatch.setattr(Release, "libraries", lambda _: [])
    other = dataclasses.replace(RELEASES[0], machine="pdp11")
    with pytest.raises(MissingError, match="qemu-pdp11 is not installed"):
        of_release(other, [])
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(MissingError, match=r"sysroot-pdp11 holds no Python; .* or set QMATH_SYS"):
        of_release(other, [])


def test_a_release_that_is_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = SimpleNamespace(version="2.20.0", close=lambda: None)
    monkeypatch.setattr("reference.builds.twins.Session", lambda _: session)
    case = next(cases(1, SUMMED))
    settings = (case.min, case.max, case.num_bits, case.narrow_range)
    with pytest.raises(MissingError, match=r"2\.4\.1 x86_64: .* they are 2\.20\.0"):
        TWINS["2.4.1 x86_64"].outputs("fake_quant_with_min_max_vars", case.arrays, settings)


@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_slice_of_the_matrix(with_inputs: bool) -> None:
    makers = {
        build: lambda made, build=build: [case.computed(build) for case in made] for build in BUILDS
    }
    found = matrix(makers, 60, with_inputs=with_inputs)
    for build, counts in found.items():
        assert sum(counts.values()) == 15
        assert all(build in name.split("; ") for name in counts)
    rows = list(table(found))
    assert len(rows) == 2 + len(BUILDS)
    assert rows[2].endswith(" | 0 | 0 |")
