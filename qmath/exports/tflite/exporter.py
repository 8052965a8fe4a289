"""The ``.tflite`` format: the integer model for LiteRT, tflite-micro and their compilers.

``docs/tflite.md`` says what is in a file, and which arithmetic runs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.exporter import Content, Exporter, Reading, option
from qmath.exports.tflite import reading
from qmath.exports.tflite.graph import with_manifest
from qmath.exports.tflite.moves import UnsupportedError
from qmath.exports.tflite.network import Settings, Writer
from qmath.exports.tflite.packing import packed
from qmath.exports.tflite.ties import with_own_zero_points
from qmath.exports.tflite.vectors import with_vectors
from qmath.integer.program import Program
from qmath.model import why_no_graph

__all__ = ["Tflite"]

_MOST_BATCH = 1 << 31


class Tflite(Exporter):
    """The ``.tflite`` format.

    Raises
    ------
    OutputError
        The model is no integer model, or TFLite cannot hold it: the message names what.
    MissingExtraError
        flatbuffers is not installed.
    """

    name = "tflite"
    weights: str = option(
        "int8",
        "the narrowest type of weights: those of that many bits or fewer are packed",
        ("int8", "int4", "int2"),
    )
    io: str = option("float", "the type of inputs and outputs", ("float", "int8", "uint8", "int16"))
    batch: int = option(1, "how many examples the network takes", range(1, _MOST_BATCH))
    bare: bool = option(
        False, "keep the manifest out of the file, which is smaller then: it is put beside it"
    )

    @property
    def can_read(self) -> bool:
        """Whether the file holds its manifest."""
        return not self.bare

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the one file."""
        network = self.network(bundle)
        if floats := network.export["names"]["floats"]:
            self.remarks = (
                "in this file these steps are computed in float32, for want of an integer operator "
                f"of TFLite or of a quantizer in training: {', '.join(floats)}",
            )
        manifest = bundle.manifest | {"export": network.export}
        text = None if self.bare else json.dumps(manifest, allow_nan=False).encode()
        model = with_manifest(network.model, text)
        yield "network.tflite", lambda file: file.write(packed(model))

    def read(self, file: BinaryIO) -> Reading:
        """Return the manifest of a file, and the weights that operators on integers hold.

        Raises
        ------
        FileFormatError
            The file is damaged, or not one of qmath's.
        """
        return reading.read(file)

    def differences(
        self, file: BinaryIO, bundle: Bundle, manifest: Mapping[str, Any]
    ) -> Iterable[str]:
        """Yield in words where a file differs from that of `files`."""
        network = self.network(bundle)
        return reading.differences(file, manifest, network.model, network.export)

    def network(self, bundle: Bundle) -> Network:
        """Return the network that `files` writes.

        Raises
        ------
        OutputError
            TFLite cannot hold the model.
        """
        program, where = bundle.program, bundle.model.source
        if bundle.model.graph is None:
            raise OutputError(
                f"{where}: {why_no_graph(bundle.model)}, so there is no network for the format "
                f"{self.name!r}; name the file of its architecture, or export to npz"
            )
        if program is None:
            raise OutputError(
                f"{where}: the format {self.name!r} holds an integer model, and there is none: "
                f"{bundle.obstacles}; else export to npz"
            )
        if bundle.vectors and self.batch != 1:
            raise OutputError(
                f"{where}: test vectors are run one by one; give --vectors 0, or --option batch=1"
            )
        settings = Settings(
            int(self.weights[3:]), {"float": "FLOAT32"}.get(self.io, self.io.upper()), self.batch
        )
        program = with_own_zero_points(program)
        writer = Writer(bundle, program, settings)
        try:
            writer.add_inputs()
            for step in program.steps:
                writer.write(step)
        except UnsupportedError as error:
            raise OutputError(f"{where}: TFLite does not hold {error}; {error.remedy}") from None
        return _finished(self, bundle, program, writer)


@dataclass(frozen=True, eq=False)
class Network:
    """A model that is complete.

    Attributes
    ----------
    model : dict
        As `qmath.exports.tflite.packing.packed` takes it, without the manifest.
    export : dict
        What the manifest says of the export: ``format``, ``options``, and ``names`` by layer, by
        step and, of weights, by tensor.
    """

    model: dict[str, Any]
    export: dict[str, Any]


def _finished(exporter: Tflite, bundle: Bundle, program: Program, writer: Writer) -> Network:
    assert bundle.model.graph is not None
    layers = bundle.model.graph.outputs
    outputs = [
        writer.output(step, layer) for step, layer in zip(program.outputs, layers, strict=True)
    ]
    names = {
        "inputs": {name: writer.builder.name_of(x) for name, x in writer.inputs.items()},
        "outputs": [writer.builder.name_of(x) for x in outputs],
        "integers": {
            step: {"name": writer.builder.name_of(writer.values[step]), "channels_first": False}
            for step in program.quant_params
        },
        "weights": {
            name: [
                {"name": w.tensor.name, "flipped": list(w.flipped), "dead": list(w.dead)}
                for w in weights
            ]
            for name, weights in writer.weights.items()
        },
        "floats": writer.float_steps,
    }
    model = writer.builder.model(writer.inputs, dict(zip(layers, outputs, strict=True)))
    if bundle.vectors:
        bits = {"INT4": 4, "INT2": 2}
        kinds = {name: weights[0].tensor.kind for name, weights in writer.weights.items()}
        narrow = {name: bits[kind] for name, kind in kinds.items() if kind in bits}
        model = with_vectors(model, bundle, program, writer.values, writer.float_steps, narrow)
    export = {"format": exporter.name, "options": exporter.given, "names": names}
    return Network(model, export)
