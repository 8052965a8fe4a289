"""Print a digest of what each format writes of models made by hand: ``python -m …exported_bytes``.

Any Python and NumPy has to print the same. ``null`` is a format whose package is not installed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import qmath._version

# It is written into every manifest. Set before anything else reads it.
qmath._version.__version__ = "0"

import qmath  # noqa: E402
from qmath.errors import MissingExtraError  # noqa: E402
from tests.exports import models, networks  # noqa: E402

ROOT = Path(__file__).parents[2]


def exports() -> dict[str, tuple[qmath.QatModel | Path, str, dict[str, object]]]:
    """Return the model, the format and the options of each export."""
    arrays, network = models.model(), networks.images()
    layers = networks.layers(4, weight_bits=8)
    plain = {name: (arrays, name, {}) for name in ("npz", "safetensors", "bin")}
    words = {name: (network, name, {}) for name in ("mem", "hex", "coe", "mif")}
    return plain | words | {
        "vectors": (network, "npz", {"vectors": 2}),
        "unpacked": (arrays, "safetensors", {"packing": "none"}),
        "h5": (ROOT / "reference" / "samples" / "default8.h5", "h5", {}),
        "c": (network, "c", {"vectors": 2}),
        "cmsis-nn": (layers, "cmsis-nn", {}),
        "onnx": (layers, "onnx", {}),
        "qonnx": (layers, "qonnx", {}),
        "tflite": (layers, "tflite", {}),
    }  # fmt: skip


def digest(place: Path) -> str:
    """Return the digest of a file, or of the names and contents of a folder."""
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    sha = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            sha.update(f"{path.relative_to(place).as_posix()} {content}\n".encode())
    return sha.hexdigest()


def main() -> None:
    digests: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, format, options) in exports().items():
            output = Path(folder, name)
            try:
                source = qmath.load(model) if isinstance(model, Path) else model
                qmath.export(source, output, format=format, **options)
                digests[name] = digest(output)
            except MissingExtraError:
                digests[name] = None
    print(json.dumps(digests, indent=1))


if __name__ == "__main__":
    main()
