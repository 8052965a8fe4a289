"""Test vectors of `qmath export` as a user asks for them: by their number, or of a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import fails, run

SAMPLES = Path(__file__).parents[2] / "reference" / "samples"
MODEL, DIGITS = SAMPLES / "default8.h5", SAMPLES / "digits_test.npz"


@pytest.mark.parametrize("format", ["npz", "c"])
def test_vectors_of_a_file_are_recorded_so_that_verify_makes_them_again(tmp_path, format):
    images = np.load(DIGITS)["images"][:3]
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(3))
    out = tmp_path / "out"
    options = ("--format", format, "--vectors", tmp_path / "data.npz")
    assert run("export", MODEL, "-o", out, *options).exit_code == 0
    assert (
        run("verify", MODEL, out, *(("--format", "npz") if format == "npz" else ())).exit_code == 0
    )
    if format == "npz":
        with np.load(out) as arrays:
            np.testing.assert_array_equal(arrays["vectors/image"], images)
    else:
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["options"]["vectors"]["image"]["shape"] == [3, 8, 8, 1]


def test_directed_vectors_keep_to_the_bytes(tmp_path):
    for number, (bytes_, is_there) in enumerate((("0", False), ("30000", True))):
        out = tmp_path / f"{number}.npz"
        assert (
            run("export", MODEL, "-o", out, "--vectors", "1", "--vector-bytes", bytes_).exit_code
            == 0
        )
        with np.load(out) as arrays:
            manifest = json.loads(arrays["manifest"].tobytes())
        assert ("directed" in manifest) == is_there
        assert manifest.get("directed", {"bytes": 0})["bytes"] <= int(bytes_)
        assert run("verify", MODEL, out).exit_code == 0


def test_what_are_no_vectors(tmp_path):
    np.save(tmp_path / "wrong.npy", np.zeros((2, 9, 9, 1)))
    question = SAMPLES / "question.h5"  # of which the settings of activations are unknown
    for model, vectors, message in (
        (MODEL, tmp_path / "none.npz", "there is no such file"),
        (MODEL, MODEL, "is not an .npz or .npy of plain arrays"),
        (MODEL, -1, "must be 0 to 65536, got -1"),
        (MODEL, tmp_path / "wrong.npy", "the model needs image of shape (N, 8, 8, 1)"),
        (question, DIGITS, "the quantizer settings of"),
        (question, 2, "test vectors need an integer model"),
    ):
        line = fails("export", model, "-o", tmp_path / "out.npz", f"--vectors={vectors}")
        assert message in line
    assert not (tmp_path / "out.npz").exists()
