"""The kind of file that a path leads to, by its first and last bytes, never by its suffix."""

from __future__ import annotations

import os
from typing import Literal

from qmath.containers.sorted_table import MAGIC as TABLE  # which ends such a file
from qmath.containers.source_files import open_source
from qmath.containers.tflite.schema import IDENTIFIER
from qmath.errors import FileFormatError

__all__ = ["HDF5", "ZIP", "Kind", "sniff"]

Kind = Literal["hdf5", "keras_zip", "saved_model", "tf_checkpoint", "tflite"]

_SUPPORTED = (
    "qmath reads what Keras and TensorFlow save: .h5, .keras and .weights.h5 files, SavedModels, "
    "TensorFlow checkpoints, and TFLite files"
)
HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
_NPY = b"\x93NUMPY"
# The first field, which is the schema version, and the tag of the second.
SAVED_MODEL = b"\x08\x01\x12"


def sniff(path: str) -> Kind:
    """Return the kind of what a path leads to.

    ================= ==========================================================================
    ``hdf5``          a file: whole model, weights by name, or ``.weights.h5``
    ``keras_zip``     a file: ``.keras``
    ``tflite``        a file: ``.tflite``
    ``saved_model``   the directory, or its ``saved_model.pb``
    ``tf_checkpoint`` the prefix (``ckpt``, no file of that name), its ``.index`` file, or the
                      directory that holds checkpoints
    ================= ==========================================================================

    Parameters
    ----------
    path : str
        The path.

    Raises
    ------
    FileFormatError
        It leads to nothing, or to something else, which the message names.
    """
    try:
        if os.path.isdir(path):
            return _sniff_directory(path)
        with open_source(path) as file:
            head = file.read(16)
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - len(TABLE), 0))
            tail = file.read(len(TABLE))
    except FileFormatError:
        raise
    except FileNotFoundError:
        if os.path.exists(f"{path}.index"):
            return "tf_checkpoint"
        raise FileFormatError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise FileFormatError(f"{path}: it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise FileFormatError(f"{path!r} is no path: {error}") from None
    if head.startswith(HDF5):
        return "hdf5"
    if head.startswith(ZIP):
        return "keras_zip"
    if head.startswith(SAVED_MODEL) or os.path.basename(path) == "saved_model.pb":
        return "saved_model"
    if head[4:8] == IDENTIFIER:
        return "tflite"
    if tail == TABLE:
        return "tf_checkpoint"
    raise FileFormatError(f"{path}: this is {_name_other(path, head)}; {_SUPPORTED}")


def _sniff_directory(path: str) -> Kind:
    entries = os.listdir(path)
    if "saved_model.pb" in entries:
        return "saved_model"
    if any(entry.endswith(".index") for entry in entries):
        return "tf_checkpoint"
    kind = "a directory with neither a SavedModel nor a checkpoint in it"
    if "saved_model.pbtxt" in entries:
        kind = "a SavedModel in text form"
    raise FileFormatError(f"{path}: this is {kind}; {_SUPPORTED}")


def _name_other(path: str, head: bytes) -> str:
    stem, _, tail = path.rpartition(".data-")
    if tail and os.path.exists(f"{stem}.index"):
        return f"one shard of a TensorFlow checkpoint, to be read by its prefix {stem}"
    if not head:
        return "an empty file"
    if head.startswith(_NPY):
        return (
            "an array (.npy), which is data, and no model; a pattern of files of data is quoted: "
            "'shards/*.npy'"
        )
    if head.lstrip().startswith(b"{"):
        return (
            "JSON, such as an architecture, which belongs to weights in another file (give it "
            "with --architecture), or the index of weights that Keras 3 cut in pieces"
        )
    return "no file that Keras or TensorFlow wrote, whatever its name says"
