"""Compare an exported file with the model, element by element, by arithmetic of its own.

Scale and zero point are computed anew, each integer is decided by exact rational arithmetic
(`qmath.kernels.exact`), and where that is a near-tie, by the identity
``(q - zero_point) * scale == fake_quant(x)`` in float32. Axis orders and layer configs are worked
out here a second time. The integer model is lowered again from the model. Of the manifest, only the
notes, the source's file name and qmath's version are not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath._progress import Progress, with_progress
from qmath.errors import FileFormatError, QmathError
from qmath.integer.deployment import Deployment, described
from qmath.integer.executor import Executor
from qmath.integer.profiles.fixed import Integer
from qmath.integer.program import FloatStep
from qmath.kernels import exact, fake_quant
from qmath.model import Float32Array, Node, QatModel, QatTensor
from qmath.readers.records import SOURCES
from qmath.verification.forward import Forward, difference, differing_names

__all__ = ["FORCED", "SAME_OPTIONS", "USER", "Check", "object_in"]

SAME_OPTIONS = "verify with the options that export had"
_EDITED = "the file was edited or cut; export again"
_OTHER_MODEL = "the file was made from another model, or with another --architecture"
FORCED = "user, forced"  # the same of settings that contradict the file
USER = "user"  # the provenance of settings that no file holds
_FORMULA = "(values.astype(np.int32) - zero_point).astype(np.float32) * scale"
# Keras's kernels: height, width, input and output channels, depth multiplier.
_AXES = {"Dense": "IO", "Conv1D": "WIO", "Conv2D": "HWIO", "DepthwiseConv2D": "HWIM",
         "DepthwiseConv1D": "WIM", "Conv1DTranspose": "WOI", "Conv2DTranspose": "HWOI",
         "Conv3D": "DHWIO", "SeparableConv1D": "WIM", "SeparableConv2D": "HWIM"}  # fmt: skip
_TRAINING = ("initializer", "regularizer", "constraint")
# Whether the user told what a range's ratio shows, too, is not in the model.
_EQUAL_EVIDENCE = ([USER, "range ratio"], ["range ratio", USER])
_NODE_FIELDS = ("name", "layer", "class_name", "quantize_config")
Arrays = Mapping[str, NDArray[Any]]


class Check:
    """One check under way: its counts and findings.

    Attributes
    ----------
    forward : mapping of str to ndarray or None
        The kernels that a forward pass read, see `qmath.verification.forward`.
    tensors, elements, near_ties, differing, differences
        As in `qmath.verification.check.Verification`.
    """

    def __init__(self, name: str, forward: Forward | None = None) -> None:
        self.name = name
        self.forward = forward
        self.signed = True
        self.is_live = False  # one side of a live model, and the other of a file
        self.remedies: set[str] = set()  # that were given
        self.classes: dict[str, str] = {}
        self.tensors = self.elements = self.near_ties = self.differing = 0
        self.differences: list[str] = []

    def expect(self, what: str, found: object, expected: object, remedy: str = "") -> bool:
        """Note a difference unless `found` equals `expected`."""
        if found == expected:
            return True
        self.differ(f"{what}: the file holds {found!r}, the model gives {expected!r}", remedy)
        return False

    def differ(self, difference: str, remedy: str) -> None:
        """Note a difference, with its remedy unless one before it had the same."""
        is_new = remedy and remedy not in self.remedies
        self.differences.append(f"{difference}; {remedy}" if is_new else difference)
        self.remedies.add(remedy)

    def expect_names(
        self, what: str, found: Set[str], expected: Set[str], listed: Set[str] | None = None
    ) -> None:
        """Note a difference between two sets of names.

        Of arrays, what the manifest has `listed`, too: options change both alike.
        """
        known = found if listed is None else listed
        for names, word, remedy in (
            (expected - found - known, "missing", SAME_OPTIONS),
            ((expected - found) & known, "missing", _EDITED),
            ((found - expected) & known, "unexpected", SAME_OPTIONS),
            (found - expected - known, "unexpected", _EDITED),
        ):
            if names:
                self.differ(f"{what}: {', '.join(sorted(names))} {word}", remedy)

    def compare_model(
        self,
        model: QatModel,
        manifest: dict[str, Any],
        arrays: Arrays,
        deployed: Deployment,
        progress: Progress | None = None,
    ) -> None:
        """Compare everything; `deployed` is the integer model lowered again."""
        options = object_in(manifest, "options", self.name)
        self.signed = options.get("signed") is not False
        self.compare_source(object_in(manifest, "source", self.name), model)
        self.expect("build", options.get("build", "tf"), model.build, SAME_OPTIONS)
        self.classes = {n.layer: n.class_name for n in (model.graph.nodes if model.graph else ())}
        self.expect("reconstruction", manifest.get("reconstruction"), _FORMULA)
        self.expect("format_version", manifest.get("format_version"), 1)
        entries = object_in(manifest, "tensors", self.name)
        self.expect_names("tensors in the manifest", entries.keys(), model.tensors.keys())
        keys = {key for tensor in model.tensors.values() for key in _keys(tensor)}
        constants = {**deployed.constants, **deployed.vectors}
        listed = {key for name, entry in entries.items() for key in _listed(name, entry)}
        if manifest.get("program") == deployed.description:
            listed |= constants.keys()
        self.expect_names("arrays", arrays.keys(), keys | constants.keys(), listed)
        for name, tensor in with_progress(model.tensors.items(), progress):
            if name in entries and all(key in arrays for key in _keys(tensor)):
                self.tensors += 1
                self.compare_tensor(tensor, object_in(entries, name, self.name), arrays)
        if self.forward is not None:
            self.differences += differing_names(model, self.forward)
        self.compare_graph(model, manifest)
        for key, expected in constants.items():
            if key not in arrays:
                continue
            held = arrays[key]
            if self.expect(f"shape of {key}", held.shape, expected.shape, SAME_OPTIONS):
                self.compare_floats(key, held, expected)
        self.compare_program(manifest.get("program"), deployed.description)
        self.compare_directed(manifest, arrays, deployed)

    def compare_source(self, source: dict[str, Any], model: QatModel) -> None:
        """Compare the digests of the files that were read; a live model has none."""
        found, expected = source.get("sha256"), model.sha256
        self.is_live = (found is None) != (expected is None)
        if not self.is_live and not self.expect("source sha256", found, expected, _OTHER_MODEL):
            self.remedies.add(SAME_OPTIONS)  # which would not help

    def compare_directed(
        self, manifest: dict[str, Any], arrays: Arrays, deployed: Deployment
    ) -> None:
        """Compare what is said of directed vectors, and run the steps on the inputs that are held.

        The arrays were compared with those made again; this shows that the integers held are what
        each step makes of the inputs held, whoever chose these.
        """
        expected = described(deployed.directed) if deployed.directed else None
        is_same = self.expect("directed vectors", manifest.get("directed"), expected, SAME_OPTIONS)
        if deployed.program is None or expected is None or not is_same:
            return
        bits = object_in(manifest, "options", self.name)["multiplier_bits"]
        executor = Executor(deployed.program, Integer(bits))
        for name, entry in expected["steps"].items():
            keys = (*entry["inputs"].values(), entry["expected"])
            step = deployed.program.step(name)
            if not isinstance(step, FloatStep) and all(key in arrays for key in keys):
                inputs = {source: arrays[key] for source, key in entry["inputs"].items()}
                made = executor.apply(step, inputs)
                held = arrays[entry["expected"]]
                if self.expect(f"shape of {entry['expected']}", held.shape, made.shape):
                    self.note(entry["expected"], held != made, held, made)

    def compare_program(self, found: Any, expected: dict[str, Any] | None) -> None:
        """Compare the integer model's description, step by step."""
        if not isinstance(found, dict) or expected is None:
            self.expect("program", found, expected)
            return
        steps = found.get("steps")
        for step, other in zip(
            steps if isinstance(steps, list) else (), expected["steps"], strict=False
        ):
            self.expect(f"step {other['name']} of the program", step, other, SAME_OPTIONS)
        for key in sorted(found.keys() | expected.keys()):
            if key == "steps":
                count = len(steps) if isinstance(steps, list) else None
                self.expect("number of steps of the program", count, len(expected["steps"]))
            else:
                self.expect(f"{key} of the program", found.get(key), expected.get(key))

    def compare_graph(self, model: QatModel, manifest: dict[str, Any]) -> None:
        """Compare the layer list with the graph."""
        graph = model.graph
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
            raise FileFormatError(f"{self.name}: the manifest has no list of layers; export again")
        nodes = graph.nodes if graph else ()
        self.expect(
            "layers", [layer.get("name") for layer in layers], [node.name for node in nodes]
        )
        for layer, node in zip(layers, nodes, strict=False):
            for field in _NODE_FIELDS:
                self.expect(f"{field} of layer {node.name}", layer.get(field), getattr(node, field))
            self.expect(f"inputs of layer {node.name}", layer.get("inputs"), list(node.inputs))
            config, expected = object_in(layer, "config", self.name), _config(node)
            for key in sorted(config.keys() | expected.keys()):
                self.expect(f"{key} of layer {node.name}", config.get(key), expected.get(key))
        self.expect("inputs", manifest.get("inputs"), list(graph.inputs) if graph else [])
        self.expect("outputs", manifest.get("outputs"), list(graph.outputs) if graph else [])

    def compare_tensor(self, tensor: QatTensor, entry: dict[str, Any], arrays: Arrays) -> None:
        """Compare one tensor's arrays and its entry in the manifest."""
        expected: dict[str, Any] = {"role": tensor.role, "num_bits": tensor.spec.num_bits}
        if tensor.role == "float":
            expected |= {"num_bits": None, "stored": tensor.stored and asdict(tensor.stored)}
        else:
            expected |= _settings(tensor)
        if tensor.role != "float" and tensor.spec.is_complete:
            scale, counted = _scale_and_zero_point(tensor)
            zero_point = counted - self.offset(tensor)
            expected |= {
                "signed": self.signed and tensor.role == "weight",
                "scale_bits": _patterns(scale),
                "zero_point": zero_point.ravel().tolist(),
            }
            for key, array in ((".scale", scale), (".zero_point", zero_point)):
                self.compare_array(tensor.name + key, arrays[tensor.name + key], array, entry)
        if tensor.values is not None and tensor.name in arrays:
            held = self.in_source_order(tensor, entry, arrays[tensor.name])
            if held is not None and tensor.role == "float":
                self.compare_floats(tensor.name, held, np.asarray(tensor.values))
            elif held is not None:
                expected |= self.compare_integers(tensor, held)
            if held is not None:
                self.compare_forward(tensor, held, arrays)
        for key, value in expected.items():
            self.expect(f"{key} of {tensor.name}", entry.get(key), value, SAME_OPTIONS)
        provenance = object_in(entry, "evidence", self.name) if tensor.role != "float" else {}
        for field in sorted(provenance.keys() | tensor.provenance.keys()):
            found, source = provenance.get(field), tensor.provenance.get(field)
            is_told = found == USER and str(source).startswith("assumed")
            # A live model is asked what a file is read for.
            is_asked = self.is_live and _is_provenance(found) and _is_provenance(source)
            if [found, source] not in _EQUAL_EVIDENCE and not is_told and not is_asked:
                self.expect(f"provenance of {tensor.name}: {field}", found, source, SAME_OPTIONS)

    def compare_array(
        self, key: str, found: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any]
    ) -> None:
        """Compare a scale or zero point, whose shape must run along the entry's axis."""
        shape, axis = entry.get("shape"), entry.get("axis")
        if expected.ndim and isinstance(shape, list) and isinstance(axis, int):
            along = [*expected.shape, *[1] * (len(shape) - 1 - axis)]
            self.expect(f"shape of {key}", list(found.shape), along)
        if self.expect(f"number of values in {key}", found.size, expected.size):
            self.compare_floats(key, found.reshape(expected.shape), expected)

    def in_source_order(
        self, tensor: QatTensor, entry: dict[str, Any], found: NDArray[Any]
    ) -> NDArray[Any] | None:
        """Return an exported tensor with its axes in the model's order, if its entry fits it."""
        name = tensor.name
        shape = np.shape(tensor.values)  # type: ignore[arg-type]
        layer, _, weight = name.rpartition("/")
        kernel = weight in ("kernel", "depthwise_kernel", "pointwise_kernel")
        source = _AXES.get(self.classes.get(layer, "")) if kernel and not tensor.stored else None
        if source is not None and weight == "pointwise_kernel":
            source = source.replace("M", "O")
        if source is not None and len(source) != len(shape):
            source = None
        self.expect(f"source_layout of {name}", entry.get("source_layout"), source)
        layout, axes = entry.get("layout"), list(range(len(shape)))
        if source is None:
            self.expect(f"layout of {name}", layout, None)
        elif isinstance(layout, str) and sorted(layout) == sorted(source):
            axes = [source.index(letter) for letter in layout]
        else:
            self.differences.append(f"layout of {name}: {layout!r} does not fit {source!r}")
            return None
        exported = [shape[axis] for axis in axes]
        fits = self.expect(f"shape of {name}", list(found.shape), exported)
        fits &= self.expect(f"shape of {name} in the manifest", entry.get("shape"), exported)
        self.expect(f"dtype of {name} in the manifest", entry.get("dtype"), str(found.dtype))
        if tensor.role == "weight":
            last = len(shape) - 1
            if tensor.recovered is not None and tensor.recovered.axis is not None:
                last = tensor.recovered.axis
            axis = axes.index(last) if tensor.spec.per_axis else None
            self.expect(f"axis of {name}", entry.get("axis"), axis)
        return found.transpose(np.argsort(axes)) if fits else None

    def compare_floats(self, name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
        """Compare bit by bit."""
        self.elements += expected.size
        if not self.expect(f"dtype of {name}", str(found.dtype), str(expected.dtype)):
            return
        bits = np.dtype(f"u{expected.dtype.itemsize}") if expected.dtype.itemsize <= 8 else None
        a, b = np.ascontiguousarray(found), np.ascontiguousarray(expected)
        if bits is not None:
            a, b = a.view(bits), b.view(bits)
        self.note(name, np.reshape(a != b, expected.shape), found, expected)

    def offset(self, tensor: QatTensor) -> NDArray[np.int32]:
        """Return what is subtracted from TensorFlow's unsigned count of a tensor's integers."""
        signed = self.signed and tensor.role == "weight"
        # An array, as an int of Python's would make NumPy 1's differences int64.
        return np.asarray(1 << (_known(tensor).num_bits - 1) if signed else 0, np.int32)

    def compare_integers(self, tensor: QatTensor, held: NDArray[Any]) -> dict[str, int]:
        """Compare a weight's integers; return the counts its manifest entry should have."""
        low, high, bits, narrow = _known(tensor)
        x = np.asarray(tensor.values, np.float32)
        self.elements += x.size
        dtype = f"{'' if self.signed else 'u'}int{8 if bits <= 8 else 16}"
        self.expect(f"dtype of {tensor.name}", str(held.dtype), dtype)
        if np.isnan(x).any():
            self.differences.append(
                f"{tensor.name}: the model holds NaN, which no integer stands for"
            )
            return {}
        scale, counted = _scale_and_zero_point(tensor)
        zero_point = counted - self.offset(tensor)
        if tensor.recovered is not None:
            scale, zero_point = (
                np.reshape(a, tensor.recovered.scale.shape) for a in (scale, zero_point)
            )
            self.note(tensor.name, _real(held, zero_point, scale) != x, held, _of(x, scale), x)
            return {"clipped": 0, "near_ties": 0}
        build = tensor.spec.build
        integers, near = exact.relative_integers(
            x, low, high, bits, narrow_range=narrow, zero_point=counted, build=build
        )
        expected = integers + zero_point
        index = np.nonzero(near)
        if index[0].size:
            channel = index[-1] if low.ndim else ()
            faked = _fake_quant(tensor, x[index], channel)
            step = scale[channel]
            candidates = integers[index] + np.array([[-1], [0], [1]])
            real = candidates.astype(np.float32) * step
            # The integer of which the identity holds: steps are distinct in float32. Other builds
            # round once more, by far less than half a step.
            holds = real == faked if build == "tf" else np.abs(real - faked) < step / 4
            expected[index] = np.where(holds, candidates, 0).sum(axis=0) + zero_point[channel]
        self.near_ties += index[0].size
        self.note(tensor.name, held != expected, held, expected, x)
        first, last = exact.limits(bits, narrow)
        outside = (x < (first - counted).astype(np.float32) * scale) | (
            x > (last - counted).astype(np.float32) * scale
        )
        return {"clipped": int(np.count_nonzero(outside)), "near_ties": index[0].size}

    def compare_forward(self, tensor: QatTensor, held: NDArray[Any], arrays: Arrays) -> None:
        """Compare what a tensor stands for with what the forward pass read."""
        forward = self.forward or {}
        found = difference(tensor, held, arrays, forward)
        self.elements += held.size if tensor.name in forward else 0
        if found is not None:
            count, text = found
            self.differing += count
            self.differences.append(text)

    def note(
        self, name: str, wrong: NDArray[np.bool_], found: NDArray[Any], expected: NDArray[Any],
        values: NDArray[Any] | None = None,
    ) -> None:  # fmt: skip
        """Count differing elements and describe the first one."""
        count = int(np.count_nonzero(wrong))
        if count:
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            where = f"{name}[{', '.join(map(str, at))}]" if at else name
            real = f" for {values[at]!s}" if values is not None else ""
            self.differing += count
            self.differences.append(
                f"{where}: the file holds {found[at]!s}, the model gives "
                f"{expected[at]!s}{real} ({count} of {wrong.size} differ)"
            )


class _Known(NamedTuple):
    """A range, and the settings that are known once the tensor is ready."""

    low: Float32Array
    high: Float32Array
    num_bits: int
    narrow_range: bool


def _known(tensor: QatTensor) -> _Known:
    if tensor.min is None or tensor.max is None:
        raise QmathError(
            f"{tensor.name}: the model holds no range for it, so nothing can be checked"
        )
    # An activation's settings may be unknown: then only the range is looked at.
    return _Known(tensor.min, tensor.max, tensor.spec.num_bits or 0, bool(tensor.spec.narrow_range))


def _keys(tensor: QatTensor) -> Iterator[str]:
    """Yield the names of a tensor's arrays in the file."""
    if tensor.role in ("float", "weight"):
        yield tensor.name
    if tensor.role != "float" and tensor.spec.is_complete:
        yield f"{tensor.name}.scale"
        yield f"{tensor.name}.zero_point"


def _is_provenance(word: object) -> bool:
    return isinstance(word, str) and (word in SOURCES or word.startswith("assumed"))


def _listed(name: str, entry: Any) -> Iterator[str]:
    """Yield the names of a tensor's arrays by its entry in the manifest."""
    if isinstance(entry, dict) and entry.get("role") in ("float", "weight"):
        yield name
    if isinstance(entry, dict) and entry.get("scale_bits"):
        yield f"{name}.scale"
        yield f"{name}.zero_point"


def object_in(owner: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """Return a JSON object in another, or raise that the file `name` is damaged."""
    value = owner.get(key)
    if not isinstance(value, dict):
        raise FileFormatError(f"{name}: the manifest has no object {key!r}; export again")
    return value


def _config(node: Node) -> dict[str, Any]:
    """Return a layer's config without what only training needs, as JSON gives it back."""
    text = json.dumps(dict(node.config))  # NaN and infinities as words, which JSON has not
    config: dict[str, Any] = json.loads(text, parse_constant=lambda word: str(float(word)))
    return {key: value for key, value in config.items() if key.split("_")[-1] not in _TRAINING}


def _settings(tensor: QatTensor) -> dict[str, Any]:
    spec, (low, high, _, _) = tensor.spec, _known(tensor)
    return {
        "quantizer": spec.quantizer, "symmetric": spec.symmetric, "per_axis": spec.per_axis,
        "narrow_range": spec.narrow_range, "op": spec.op,
        "min": low.ravel().tolist(), "max": high.ravel().tolist(),
        "min_bits": _patterns(low), "max_bits": _patterns(high),
    }  # fmt: skip


def _patterns(array: Float32Array) -> list[str]:
    return [f"{value:#010x}" for value in array.astype(np.float32).ravel().view(np.uint32)]


def _scale_and_zero_point(tensor: QatTensor) -> tuple[Float32Array, NDArray[np.int32]]:
    """Compute scale and zero point in float32, as TensorFlow's ``Nudge``; check the latter exactly.

    The exact zero point holds, except where float32 rounding may decide a tie. It counts from 0.
    """
    low, high, bits, narrow = _known(tensor)
    if tensor.recovered is not None:  # no range gives this scale; the integers are checked by it
        zero_point = tensor.recovered.zero_point + np.int32(1 << (bits - 1))
        scale = tensor.recovered.scale
        return (scale.ravel(), zero_point.ravel()) if scale.ndim else (scale, zero_point)
    if tensor.stated is not None:  # by the file itself
        return tensor.stated.scale, tensor.stated.zero_point
    first, last = exact.limits(bits, narrow)
    tiny = np.finfo(np.float32).tiny
    low, high = (np.where(np.abs(end) < tiny, np.float32(0), end) for end in (low, high))
    with np.errstate(all="ignore"):
        scale = np.asarray((high - low) / np.float32(last - first))
        if tensor.spec.build.startswith("xla") and tensor.spec.op != "args":
            scale = np.asarray((high - low) * (np.float32(1) / np.float32(last - first)))
        below = low / scale
        if tensor.spec.build.startswith("xla") and low.shape == (1,):  # which XLA sees through
            below = low * np.float32(last - first) / (high - low)
        estimate = np.clip(np.float32(first) - below, first, last)
        rounded = np.floor(estimate.astype(np.float64) + 0.5)
    build = tensor.spec.build
    zero, near = exact.zero_points(low, high, bits, narrow_range=narrow, build=build)
    return scale, np.asarray(np.where(near, rounded, zero), np.int32)


def _real(held: NDArray[Any], zero_point: NDArray[np.int32], scale: Float32Array) -> Float32Array:
    """Return what integers stand for, by the formula that every export states."""
    return np.asarray((held.astype(np.int32) - zero_point).astype(np.float32) * scale)


def _of(x: Float32Array, scale: Float32Array) -> NDArray[np.int64]:
    """Return the integers of values that are multiples of a scale, relative to zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.nan_to_num(np.rint(x.astype(np.float64) / scale)), np.int64)


def _fake_quant(tensor: QatTensor, x: Float32Array, channel: Any) -> Float32Array:
    """Fake-quantize a list of elements, each with the range of its channel."""
    low, high, bits, narrow = _known(tensor)
    build = tensor.spec.build
    if low.ndim:
        return fake_quant.fake_quant_with_min_max_vars_per_channel(
            x, low[channel], high[channel], bits, narrow, build=build
        )
    if tensor.spec.op == "args":
        ends = float(low), float(high)
        return fake_quant.fake_quant_with_min_max_args(x, *ends, bits, narrow, build=build)
    return fake_quant.fake_quant_with_min_max_vars(x, low, high, bits, narrow, build=build)
