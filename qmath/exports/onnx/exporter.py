"""What the two ONNX formats have in common: they write a network, and read one of qmath's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from numpy.typing import NDArray

from qmath.exports.bundle import Bundle
from qmath.exports.exporter import Content, Exporter, Reading
from qmath.exports.onnx import library, reading
from qmath.exports.onnx.network import Network

__all__ = ["NetworkExporter"]


class NetworkExporter(Exporter):
    """A format whose file is a network.

    Raises
    ------
    OutputError
        The model is not a network, or a setting is unknown.
    MissingExtraError
        onnx is not installed.
    """

    def network(self, bundle: Bundle) -> Network:
        """Return the network that `files` writes."""
        raise NotImplementedError

    def integers(self, name: str, held: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
        """Return a weight's integers, if the initializers by name tell them."""
        return held[name]

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the one file."""
        network = self.network(bundle)
        manifest = bundle.manifest | {"export": network.export}
        yield f"network.{self.name}", lambda file: library.save(network.model, manifest, file)

    def read(self, file: BinaryIO) -> Reading:
        """Return the manifest of a file, and the arrays that are parts of its graph.

        Raises
        ------
        FileFormatError
            The file is damaged, or not one of qmath's.
        """
        return reading.read(file, self.name, self.integers)

    def differences(
        self, file: BinaryIO, bundle: Bundle, manifest: Mapping[str, Any]
    ) -> Iterable[str]:
        """Return in words where the network of a file differs from that of `files`."""
        return reading.differences(file, manifest, self.network(bundle))
