"""hls4ml converts the integer QONNX with the types of its manifest, and computes its integers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qmath
from tests.exports import integer_networks
from tests.exports.test_integer_qonnx import given
from tests.exports.test_onnx import images, onnx
from tests.helpers import read_npz

pytest.importorskip("hls4ml", reason="no hls4ml (pip install hls4ml)")
pytest.importorskip("qonnx", reason="no qonnx for this Python")
pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++"),
    pytest.mark.once,
]

# What docs/onnx.md shows, in a process of its own: hls4ml imports TensorFlow where it finds it.
PAGE = Path("docs/onnx.md").read_text(encoding="utf-8")
RECIPE = PAGE.partition("import hls4ml\n")[2].partition("```")[0]
RUN = """
import sys
import numpy as np
sys.modules["tensorflow"] = sys.modules["keras"] = None
import hls4ml
{recipe}
from pathlib import Path
for layer in model.get_layers():
    if layer.class_name.endswith(("Conv2D", "Dense")):
        print(layer.name, layer.attributes["accum_t"].precision)
model.write()
script = Path("hls/build_lib.sh")
text = script.read_text()
assert "-O3" in text and "-std=c++23" in text
# What is computed is the same, and compiled in a quarter of the time.
script.write_text(text.replace("-O3", "-O0").replace("-std=c++23", "-std=c++17"))
model._compile()
np.save("found.npy", model.predict(np.load("given.npy")))
"""


def simulated(folder: Path, integers: np.ndarray) -> tuple[np.ndarray, str]:
    """Return what hls4ml's C simulation of ``model.qonnx`` computes, and what it printed."""
    np.save(folder / "given.npy", np.ascontiguousarray(integers, np.float32))
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(recipe=RECIPE)], cwd=folder, capture_output=True,
        text=True, check=False, timeout=600,
    )  # fmt: skip
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
    return np.load(folder / "found.npy"), done.stdout


def assert_simulated(folder: Path, model, data, multiplier_bits: int) -> None:
    qmath.export(model, folder / "model.qonnx", arithmetic="integer",
                 multiplier_bits=multiplier_bits)  # fmt: skip
    (entry,) = onnx.load(folder / "model.qonnx").metadata_props
    export = json.loads(entry.value)["export"]
    bits = min(multiplier_bits, 24)
    run = qmath.run(model, data, profile="integer", multiplier_bits=bits)
    (integers,) = given(model, export, run.integers).values()
    found, said = simulated(folder, integers)
    (output,) = export["names"]["outputs"]
    np.testing.assert_array_equal(found.reshape(run.integers[output].shape), run.integers[output])
    # The accumulators have the widths that are proved, and no bit more.
    widths = {types["accum"].partition("<")[2].partition(",")[0]
              for types in export["hls4ml"].values() if "accum" in types}  # fmt: skip
    assert {line.partition("fixed<")[2].partition(",")[0] for line in said.splitlines()
            if "fixed<" in line and not line.startswith("Layer")} == widths  # fmt: skip


@pytest.mark.slow
def test_the_simulation_has_the_integers_of_the_profile(tmp_path):
    model = integer_networks.straight()
    assert_simulated(tmp_path, model, images(model, 100), 16)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("make", "bits"),
    [(integer_networks.residual, 8), (integer_networks.residual, 31), (integer_networks.leaky, 16)],
)
def test_branches_pools_and_slopes_are_simulated(make, bits, tmp_path):
    model = make()
    assert_simulated(tmp_path, model, images(model, 100), bits)


@pytest.mark.nightly
@pytest.mark.parametrize("bits", [16, 31])
@pytest.mark.parametrize("name", ["default8", "nbit4"])
def test_samples_are_simulated(name, bits, tmp_path):
    pytest.importorskip("h5py")
    model = qmath.load(f"reference/samples/{name}.h5")
    pictures = read_npz("reference/samples/digits_test.npz")["images"].astype(np.float32)
    assert_simulated(tmp_path, model, pictures, bits)
