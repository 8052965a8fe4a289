"""`check_exporter`: whether a format keeps the contract of `qmath.exports.Exporter`."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qmath.errors import QmathError
from qmath.exports.bundle import Bundle, quantize_model
from qmath.exports.exporter import Exporter, Option, content_bytes
from qmath.exports.registry import FORMATS
from qmath.exports.writing import export
from qmath.model import Graph, Node, QatModel, QatTensor, QuantSpec
from qmath.verification.check import verify

__all__ = ["check_exporter", "sample_models"]

_MOST_CHOICES = 8
# What a user may ask of any format; one that cannot do it has to refuse.
_ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"signed": False},
    {"layouts": ["OI"]},
    {"multiplier_bits": 16},
    {"vectors": 1},
)
_KERNEL = QuantSpec("LastValueQuantizer", 4, per_axis=True, narrow_range=True)
_OUTPUT = QuantSpec("MovingAverageQuantizer", 8, per_axis=False, narrow_range=False)


def check_exporter(exporter: type[Exporter], models: Sequence[QatModel] | None = None) -> None:
    r"""Assert that a format keeps its contract.

    Each model is exported with every option of the format, and with what a user may ask of all
    formats. Equal models have to give equal bytes; names have to be plain and used once; `verify`
    has to find the output equal, and different once a byte of it is changed. A refusal, that is
    a `QmathError`, is an answer, but not to every model.

    Parameters
    ----------
    exporter : type of Exporter
        The class, not an instance.
    models : sequence of QatModel, optional
        Default: `sample_models`.

    Raises
    ------
    AssertionError
        Says what the format did, with which options.

    Examples
    --------
    >>> from qmath.exports import Exporter
    >>> from qmath.testing import check_exporter
    >>> class Names(Exporter):
    ...     name = "names"
    ...     def files(self, bundle):
    ...         yield "names.txt", "\n".join(bundle.tensors).encode()
    >>> check_exporter(Names)
    """
    models = sample_models() if models is None else models
    assert exporter.name not in FORMATS, f"{exporter.name!r} is the name of one of qmath's formats"
    accepted = 0
    for number, model in enumerate(models):
        for options, asked in itertools.chain(
            (({}, asked) for asked in _ASKED), ((chosen, {}) for chosen in _choices(exporter))
        ):
            where = f"{exporter.__name__}, model {number}, {options | asked}"
            try:
                _check_files(exporter, options, quantize_model(model, **asked), where)
                _check_output(exporter, options, asked, model, where)
                accepted += not options and not asked
            except QmathError:
                continue  # a refusal
    assert accepted, f"{exporter.__name__} refuses every model"


def _choices(exporter: type[Exporter]) -> Iterator[dict[str, Any]]:
    """Yield each option with some values that it takes."""
    for item in exporter.options:
        for value in itertools.islice(_values(item), _MOST_CHOICES):
            yield {item.name: value}


def _values(item: Option) -> Iterator[Any]:
    if item.choices is not None:
        yield from item.choices
    elif isinstance(item.default, bool):
        yield from (True, False)
    else:
        yield item.default


def _check_files(
    exporter: type[Exporter], options: Mapping[str, Any], bundle: Bundle, where: str
) -> None:
    """Assert that the files have plain names and equal bytes each time."""
    made = [list(exporter(**options).files(bundle)) for _ in range(2)]
    names = [name for name, _ in made[0]]
    assert all(isinstance(name, str) and Path(name).name == name for name in names), (
        f"{where}: the names {names} are not those of files in one folder"
    )
    assert len({*names, "manifest.json"}) == len(names) + 1, f"{where}: {names} are not unique"
    assert exporter.is_folder or len(names) == 1, f"{where}: {len(names)} files and no folder"
    contents = [[content_bytes(content) for _, content in files] for files in made]
    assert all(isinstance(content, bytes) for content in contents[0]), f"{where}: text, not bytes"
    assert contents[0] == contents[1], f"{where}: the bytes differ from one export to the next"


def _check_output(
    exporter: type[Exporter],
    options: Mapping[str, Any],
    asked: Mapping[str, Any],
    model: QatModel,
    where: str,
) -> None:
    """Assert that `verify` finds an output equal, and a damaged one not."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        export(model, output, format=exporter, **asked, **options)
        result = verify(model, output, format=exporter)
        assert result.ok, f"{where}: verify finds differences: {result.differences}"
        file = next(path for path in (*sorted(output.glob("[!m]*")), output) if path.is_file())
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        try:
            found = verify(model, output, format=exporter).ok
        except QmathError:
            return
        assert not found, f"{where}: verify calls {file.name} equal with a byte changed"


def sample_models() -> tuple[QatModel, ...]:
    """Return small models: one that runs in integers, and one of names that trip formats up.

    Examples
    --------
    >>> [len(model.tensors) for model in sample_models()]
    [4, 3]
    """
    rng = np.random.RandomState(0)  # whose stream is frozen
    nodes = (
        Node("image", "image", "InputLayer", (), {"batch_input_shape": [None, 5]}),
        Node("quantize", "quantize", "QuantizeLayer", ("image",), {}),
        Node("dense", "dense", "Dense", ("quantize",), {"activation": "relu"}, "MyConfig"),
    )
    network = (
        _range("quantize/output", "input", 0.0, 1.0),
        _weight("dense/kernel", rng.normal(size=(5, 3))),
        QatTensor("dense/bias", "float", np.array([0.5, -0.25, 0.0], np.float32)),
        _range("dense/post_activation", "activation", -1.0, 6.0),
    )
    strange = tuple(
        _weight(name, rng.normal(size=(2, 3))) for name in ("2d/größe", "a b/c:d", "while")
    )
    graph = Graph(nodes, ("image",), ("dense",))
    return (
        QatModel({tensor.name: tensor for tensor in network}, graph, source="network"),
        QatModel({tensor.name: tensor for tensor in strange}, source="strange names"),
    )


def _weight(name: str, values: Any) -> QatTensor:
    floats = np.asarray(values, np.float32)
    largest = np.abs(floats).max(axis=0)
    return QatTensor(name, "weight", floats, -largest, largest, _KERNEL)


def _range(name: str, role: Any, low: float, high: float) -> QatTensor:
    ends = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return QatTensor(name, role, None, *ends, _OUTPUT)
