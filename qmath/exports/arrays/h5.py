"""The format ``h5``: a copy of the model's own HDF5 file, its kernels fake-quantized.

Every quantized weight is overwritten, in place, by the float32 numbers that its integers stand for;
all other bytes are the model's, so that whatever loads the model loads the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from qmath.containers.hdf5 import Hdf5File
from qmath.containers.lazy_array import LazyArray
from qmath.containers.source_files import open_source
from qmath.errors import FileFormatError, OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.exporter import Content, Exporter
from qmath.model import QatModel

__all__ = ["H5"]

_BLOCK = 1 << 20


class _Place(NamedTuple):
    """Where a kernel begins: file, offset in bytes, dtype."""

    source: str
    offset: int
    dtype: str


class H5(Exporter):
    """The format ``h5``, of a model that was read from HDF5: a whole model's, or its weights'.

    Raises
    ------
    OutputError
        The model was read from something else, or the export has options that a copy cannot follow.
    FileFormatError
        A weight is compressed, or the model's file has changed.

    Examples
    --------
    >>> import io
    >>> import qmath
    >>> from qmath.exports import quantize_model
    >>> path = "reference/samples/default8.h5"
    >>> copy = io.BytesIO()
    >>> H5().write(quantize_model(qmath.load(path)), copy)
    >>> with open(path, "rb") as file:
    ...     len(copy.getvalue()) == len(file.read())
    True
    """

    name = "h5"
    is_recorded = False  # no option of an export changes the copy

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the copy, written one weight after another."""
        yield "model.h5", lambda file: _write(bundle, file)


def _write(bundle: Bundle, file: BinaryIO) -> None:
    for option, remedy in (("layouts", "--layout"), ("vectors", "--vectors")):
        if bundle.manifest["options"][option]:
            raise OutputError(
                f"the format 'h5' is a copy of the model's file, so {remedy} does not apply; leave "
                "it out"
            )
    places = _places(bundle.model)
    (source,) = {place.source for found in places.values() for place in found}
    for block in _blocks(source):
        file.write(block)
    for name, found in places.items():
        real = bundle.weights[name].dequantize()
        for place in found:
            file.seek(place.offset)
            file.write(real.astype(place.dtype).tobytes())


def _blocks(source: str) -> Iterator[bytes]:
    """Yield the bytes of the model's file, whose errors are not those of the output."""
    try:
        with open_source(source) as original:
            while block := original.read(_BLOCK):
                yield block
    except OSError as error:
        raise FileFormatError(f"{source}: it cannot be read ({error.strerror})") from None


def _places(model: QatModel) -> dict[str, list[_Place]]:
    """Return where each quantized weight lies in the model's file."""
    places: dict[str, list[_Place]] = {}
    owners: dict[int, str] = {}
    for tensor in model.tensors.values():
        if tensor.role != "weight":
            continue
        values = tensor.values
        if tensor.spec.op == "tflite":
            raise OutputError(
                f"{model.source}: the format 'h5' is a copy of the model's HDF5 file, and this is "
                "a TFLite file; export to npz or onnx"
            )
        if not isinstance(values, LazyArray):
            raise OutputError(
                f"{model.source}: the format 'h5' is a copy of the file that holds the model, and "
                "this one is in no file; save it with model.save('model.h5') and export that"
            )
        if not isinstance(values.file, Hdf5File):
            raise OutputError(
                f"{model.source}: the format 'h5' is a copy of the model's HDF5 file, and this is "
                "another kind of file; save the model with model.save('model.h5') and export that"
            )
        places[tensor.name] = [
            _Place(values.file.source, *values.file.place(path))
            for path in _copies(values.file, values.path)
        ]
        for place in places[tensor.name]:
            if owners.setdefault(place.offset, tensor.name) != tensor.name:
                raise OutputError(
                    f"{model.source}: {tensor.name} and {owners[place.offset]} are one array in "
                    "the file, or equal copies; save the model again"
                )
    if not places:
        raise OutputError(
            f"{model.source}: no weight is quantized, so the copy would be the model's file itself"
        )
    return places


def _copies(file: Hdf5File, path: str) -> list[str]:
    """Return the paths of a kernel: Keras's newer weight files may hold it twice in its group."""
    group, _, name = path.rpartition("/")
    if not name.isdigit():
        return [path]
    with file:
        kernel = file.read(path)
        found = [other for other in file.datasets(group) if file.array(other).shape == kernel.shape]
        return [other for other in found if file.read(other).tobytes() == kernel.tobytes()]
