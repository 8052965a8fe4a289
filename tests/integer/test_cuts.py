"""Cut points: layers that qmath cannot compute, and the integer model on both sides of them."""

from __future__ import annotations

import json
import math
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qmath
from qmath import Graph, Node, QatModel
from qmath.errors import QmathError
from qmath.exports.bundle import quantize_model
from qmath.inspection.report import inspect
from qmath.integer.api import element, program_of
from qmath.integer.executor import Executor
from qmath.integer.lowering.lower import lower
from qmath.integer.program import CutStep
from qmath.readers import loading
from qmath.readers.architecture.graph import read_graph
from qmath.verification.check import verify
from tests.cli.running import run
from tests.integer.test_float_layers import CONV, conv, image, layer, model

SHAPE = (4, 4, 2)
X = np.random.default_rng(0).uniform(-1, 1, (7, *SHAPE)).astype(np.float32)


def doubled(x: np.ndarray) -> np.ndarray:
    return x * np.float32(2)


def cut_model(
    class_name: str = "Mine>My", built: tuple[int, ...] | None = SHAPE, **config: Any
) -> QatModel:
    """Return input → conv → a layer that is unknown → conv, and another conv beside it."""
    found = model(
        *image("a"), conv("before", "a_q", "kp"),
        layer(class_name, "my", "before", marks="o", **config), conv("after", "my", "kp"),
        conv("beside", "before", "kp"),
    )  # fmt: skip
    assert found.graph is not None
    nodes = [
        replace(node, built_for=(built,) if node.name == "after" and built else ())
        for node in found.graph.nodes
    ]
    tensors = {
        # So that real 0 is an integer, in all arithmetics the same one.
        name: tensor if tensor.role == "weight" else replace(tensor, max=np.float32(127 / 128))
        for name, tensor in found.tensors.items()
    }
    return replace(found, tensors=tensors, graph=replace(found.graph, nodes=tuple(nodes)))


def test_the_program_goes_up_to_a_cut_and_on_from_it() -> None:
    program = lower(cut_model())
    (cut,) = program.cuts
    assert (cut.name, cut.class_name, cut.shape, cut.is_shaped) == ("my", "Mine>My", SHAPE, True)
    assert [type(step).__name__ for step in program.steps] == [
        "QuantizeStep", "Requantize", "CutStep", "QuantizeStep", "Requantize", "Requantize",
    ]  # fmt: skip
    assert program.outputs == ("after/post_activation", "beside/post_activation")
    assert program.feeds == {"a": SHAPE, "my": SHAPE}
    assert list(program.float_layers) == ["my"]
    with pytest.raises(QmathError, match="these layers run in float32: my: qmath cannot compute"):
        program_of(cut_model(), require_integer=True)


def test_without_a_function_what_does_not_need_it_is_computed() -> None:
    found = qmath.run(cut_model(), X)
    assert found.missing == {"my": ("my/output", "after/post_activation")}
    assert list(found.outputs) == ["beside/post_activation"]
    assert list(found.integers) == [
        "a_q/output", "before/post_activation", "beside/post_activation",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["my", "Mine>My", "My"])
def test_a_function_is_found_by_the_name_and_the_class_of_its_layer(key: str) -> None:
    of = cut_model()
    by_function = qmath.run(of, X, layers={key: doubled})
    assert by_function.missing == {}
    params = Executor(by_function.program).quant_params["before/post_activation"]
    real = params.dequantize(by_function.integers["before/post_activation"])
    by_data = qmath.run(of, X, cuts={"my": doubled(real)})
    for name, integers in by_function.integers.items():
        np.testing.assert_array_equal(integers, by_data.integers[name])
    relative = by_function.integers["before/post_activation"].astype(int) - 128
    assert (by_function.integers["my/output"] == np.clip(2 * relative, -128, 127) + 128).all()


@pytest.mark.parametrize(
    ("function", "words"),
    [(lambda x: x.astype(np.float64), "my: its function returned float64"),
     (lambda x: x[:, :3], r"returned an array of shape \(7, 3, 4, 2\), and \(7, 4, 4, 2\) follows"),
     (lambda x: x / np.float32(0), "my: its function returned NaN or infinities"),
     (lambda x: np.multiply(x, 2, out=x), "my: its function failed .*read-only"),
     (lambda x: [x, x[0]], "my: its function failed .*inhomogeneous"),
     (lambda _: None, "my: its function returned None; a layer's output is an array of float32"),
     (lambda _: {}, "my: its function returned what is of type dict; a layer's output is an arr"),
     (lambda x: x.astype(object), "my: its function returned object; a layer's output is an arr"),
     (lambda x: np.ma.masked_array(x, x > 0), "my: what its function returns must have no mask")],
)  # fmt: skip
def test_what_a_function_returns_is_checked(function: Any, words: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=words):
        qmath.run(cut_model(), X, layers={"my": function})


@pytest.mark.parametrize(
    ("given", "words"),
    [({"layers": [doubled]}, "layers is of type list; expected {NAME: function}, by the name or"),
     ({"layers": ()}, "layers is of type tuple; expected"),
     ({"layers": doubled}, "layers is of type function; expected"),
     ({"layers": {0: doubled}}, "layers has what is of type int as a name; expected {NAME: fun"),
     ({"layers": {"my": None}}, "layers has None for my; expected a function of the layer's inp"),
     ({"layers": {"my": X}}, "layers has what is of type ndarray for my; expected a function"),
     ({"cuts": [X]}, "cuts is of type list; expected {NAME: array}, by the name of a layer"),
     ({"cuts": X}, "cuts is of type ndarray; expected"),
     ({"cuts": {0: X}}, "cuts has what is of type int as a name; expected"),
     ({"cuts": {"my": None}}, "cuts has None for my; expected an array"),
     ({"cuts": {"my": doubled}}, "cuts has what is of type function for my; expected an array"),
     ({"cuts": {"my": X.astype(object)}}, "my: the data must be numbers, got dtype object")],
)  # fmt: skip
def test_what_stands_for_cuts_has_to_be_of_its_type(given: dict[str, Any], words: str) -> None:
    for call in (qmath.run, partial(qmath.diff, against="exact")):
        with pytest.raises(QmathError, match=words):
            call(cut_model(), X, **given)  # type: ignore[operator]


def test_names_of_no_cut_are_refused() -> None:
    with pytest.raises(QmathError, match=r"layers has conv, .* are: my \(Mine>My\)"):
        qmath.run(cut_model(), X, layers={"conv": doubled})
    with pytest.raises(QmathError, match=r"cuts has conv, .* are: my"):
        qmath.run(cut_model(), X, cuts={"conv": X})
    for of in (lower(cut_model()), cut_model()):  # the model knows better than the data
        with pytest.raises(QmathError, match=r"my: the data must have shape \(N, 4, 4, 2\)"):
            qmath.run(of, X, cuts={"my": X[:, :2]})
    with pytest.raises(QmathError, match="my must be an array: "):
        qmath.run(cut_model(), X, cuts={"my": [[1.0], [1.0, 2.0]]})
    with pytest.raises(QmathError, match=r"are: my .*; more may follow my, if you give the shape"):
        qmath.run(cut_model(built=None), X, cuts={"last": X})
    with pytest.raises(QmathError, match="my: the data hold NaN"):
        qmath.run(cut_model(), X, cuts={"my": X * np.float32(np.nan)})
    with pytest.raises(QmathError, match="the inputs differ in their number of examples"):
        qmath.run(cut_model(), X, cuts={"my": X[:2]})
    for call in (qmath.run, qmath.diff):
        with pytest.raises(QmathError, match="my: 7 are given, the data hold 5 examples"):
            call(cut_model(), iter([X[:2], X[2:5]]), cuts={"my": X})


def test_a_shape_that_nothing_tells_is_asked_for() -> None:
    of = cut_model(built=None)
    program = lower(of)
    assert [cut.is_shaped for cut in program.cuts] == [False]
    assert program.outputs == ("beside/post_activation",)
    (note,) = program.notes
    assert note.startswith("my: nothing in the model tells the shape of what this Mine>My makes")
    assert "--shape my=N,N" in note
    assert qmath.run(of, X).missing == {"my": ("my/output", "after/post_activation")}
    (advice,) = [item for item in inspect(of).warnings if item.kind == "open-shape"]
    assert (advice.where, "--shape my=N,N" in advice.remedy) == ("my", True)
    for known in (
        lower(of, {"my": SHAPE}), lower(replace(of, shapes={"my": SHAPE})),
        lower(of, layers={"My": doubled}), lower(of, {"my/output": SHAPE}),
    ):  # fmt: skip
        assert known.cuts[0].shape == SHAPE
        assert known.outputs == ("after/post_activation", "beside/post_activation")
    assert len(qmath.run(of, X, layers={"My": doubled}).outputs) == 2
    assert len(qmath.run(of, X, cuts={"my": X}).outputs) == 2
    with pytest.raises(QmathError, match="made without the shape"):
        qmath.run(program, X, layers={"My": doubled})
    for shape in ((), (4, 0, 2), (4, None, 2)):
        with pytest.raises(QmathError, match=r"my: the shape of what it makes is given as \("):
            lower(of, {"my": shape})  # type: ignore[dict-item]
    description = quantize_model(of).manifest["program"]
    assert [step["shape"] for step in description["steps"] if step["kind"] == "cut"] == [None]


@pytest.mark.parametrize(
    ("class_name", "config", "shape"),
    [("Lambda", {"output_shape": [4, 4, 2], "output_shape_type": "raw"}, SHAPE),
     ("Lambda", {"output_shape": [None, 2]}, None), ("Lambda", {}, None),
     ("Masking", {}, SHAPE)],
)  # fmt: skip
def test_a_config_tells_some_shapes(
    class_name: str, config: dict[str, Any], shape: tuple[int, ...] | None
) -> None:
    (cut,) = lower(cut_model(class_name, built=None, **config)).cuts
    assert (cut.shape if cut.is_shaped else None) == shape


def test_a_shape_that_disagrees_with_what_follows_is_an_error() -> None:
    with pytest.raises(QmathError, match="after"):
        lower(cut_model(built=(4, 4, 3)))


def test_an_unknown_activation_cuts_after_its_layers_own_arithmetic() -> None:
    of = model(*image("a"), conv("mid", "a_q", "kbp", activation="mine"), conv("tail", "mid", "kp"))
    program = lower(of)
    (cut,) = program.cuts
    assert (cut.name, cut.class_name, cut.shape) == ("mid", "mine", SHAPE)
    found = qmath.run(of, X, layers={"mine": doubled})
    assert {"mid/pre_activation", "mid/post_activation"} <= found.integers.keys()
    (advice,) = [item for item in inspect(of).warnings if item.kind == "cut-point"]
    assert (advice.where, advice.message.split()[0]) == ("mid", "mine")


def test_two_cuts_in_a_row_miss_the_first() -> None:
    of = model(
        *image("a"), layer("My", "one", "a_q"), layer("My", "two", "one", marks="o"),
        conv("tail", "two", "kp"),
    )  # fmt: skip
    of = replace(of, shapes={"one": SHAPE, "two": SHAPE})
    assert qmath.run(of, X).missing == {"one": (), "two": ("two/output", "tail/post_activation")}
    found = qmath.run(of, X, layers={"My": doubled})
    assert found.missing == {}
    given = qmath.run(of, X, layers={"one": doubled}, cuts={"two": X})
    assert given.missing == {}
    assert (given.integers["two/output"] != found.integers["two/output"]).any()


def two_open_cuts() -> QatModel:
    """Return input → conv → first → mid → second → conv, and what needs both ways."""
    return model(
        *image("a"), conv("before", "a_q", "kp"), layer("My", "first", "before", marks="o"),
        conv("mid", "first", "kp"), layer("Its", "second", "mid", marks="o"),
        conv("tail", "second", "kp"), layer("Add", "both", "mid", "tail", marks="o"),
    )  # fmt: skip


BEHIND_FIRST = ("first/output", "mid/post_activation", "both/output")


def test_a_run_goes_on_behind_an_open_cut_from_the_outputs_of_a_later_one() -> None:
    of = two_open_cuts()
    program = lower(of)
    assert [(cut.name, cut.is_shaped, cut.behind) for cut in program.cuts] == [
        ("first", False, ()), ("second", False, ("first",)),
    ]  # fmt: skip
    assert [note.split(":")[0] for note in program.notes] == ["first", "second"]
    assert qmath.run(of, X).missing == {
        "first": BEHIND_FIRST, "second": ("second/output", "tail/post_activation"),
    }  # fmt: skip
    given = qmath.run(of, X, cuts={"second": X})
    assert given.missing == {"first": BEHIND_FIRST}
    whole = qmath.run(
        replace(of, shapes={"first": SHAPE, "second": SHAPE}), X,
        layers={"My": doubled}, cuts={"second": X},
    )  # fmt: skip
    assert list(given.integers) == [
        "a_q/output", "before/post_activation", "second/output", "tail/post_activation",
    ]  # fmt: skip
    for name, integers in given.integers.items():
        np.testing.assert_array_equal(integers, whole.integers[name])
    # A function of what is not computed is not called; one of the first computes everything.
    left = qmath.run(replace(of, shapes={"second": SHAPE}), X, layers={"second": doubled})
    assert left.missing["second"] == ("second/output", "tail/post_activation")
    assert not qmath.run(of, X, layers={"My": doubled, "Its": doubled}).missing
    with pytest.raises(QmathError, match=r"cuts has mid, .* are: first .*, second"):
        qmath.run(of, X, cuts={"mid": X})


def test_an_open_cut_that_only_a_given_one_reads_is_not_missing() -> None:
    of = model(
        *image("a"), layer("My", "one", "a_q"), layer("My", "two", "one", marks="o"),
        conv("tail", "two", "kp"),
    )  # fmt: skip
    for shapes in ({}, {"one": SHAPE}):
        known = replace(of, shapes=shapes)
        assert qmath.run(known, X).missing["two"] == ("two/output", "tail/post_activation")
        assert qmath.run(known, X, cuts={"two": X}).missing == {}


def test_an_unknown_activation_behind_an_open_cut_starts_again() -> None:
    of = model(
        *image("a"), layer("My", "first", "a_q"), conv("mid", "first", "kbp", activation="mine"),
        conv("tail", "mid", "kp"),
    )  # fmt: skip
    given = qmath.run(of, X, cuts={"mid": X})
    assert given.missing == {"first": ("mid/pre_activation",)}
    assert "tail/post_activation" in given.integers


def test_a_comparison_goes_on_behind_an_open_cut() -> None:
    of = two_open_cuts()
    shaped = replace(of, shapes={"first": SHAPE, "second": SHAPE})
    whole = qmath.run(shaped, X, layers={"My": doubled, "Its": doubled}, profile="exact")
    params = Executor(whole.program).quant_params
    dump = {name: params[name].dequantize(q) for name, q in whole.integers.items()}
    found = qmath.diff(of, X, against={
        name: x for name, x in dump.items() if not name.startswith(("first", "mid", "both"))
    })  # fmt: skip
    assert [layer.name for layer in found.layers] == [
        "a_q/output", "before/post_activation", "tail/post_activation",
    ]  # fmt: skip
    assert all(layer.explained for layer in found.layers)
    opened = qmath.diff(of, X, against="exact", cuts={"second": X})
    assert [layer.name for layer in opened.layers][2:] == ["second/output", "tail/post_activation"]


def test_what_lies_behind_an_open_cut_is_exported(tmp_path: Path) -> None:
    of = replace(two_open_cuts(), shapes={"second": SHAPE})
    qmath.export(of, tmp_path / "c", format="c", vectors=2)
    header = (tmp_path / "c" / "model.h").read_text()
    assert "second (Its), of what follows first, whose shape is not known" in header
    assert verify(of, tmp_path / "c", format="c").ok
    with pytest.warns(
        qmath.QmathWarning, match=r"NumPy runs the model: .*cut points: first, second"
    ):
        by_c = qmath.run(of, X, engine="c", cuts={"second": X})
    assert by_c.missing == {"first": BEHIND_FIRST}
    onnx = pytest.importorskip("onnx")
    qmath.export(of, tmp_path / "m.onnx")
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    assert [value.name for value in graph.input] == ["a", "second"]
    assert [value.name for value in graph.output] == ["first/input"]
    assert verify(of, tmp_path / "m.onnx").ok


def test_a_layer_that_is_called_twice_is_cut_twice_and_computed_by_one_function() -> None:
    of = cut_model()
    assert of.graph is not None
    *nodes, after, beside = of.graph.nodes
    again = Node("my#1", "my", "Mine>My", ("before",), {})
    beside = replace(beside, inputs=("my#1",))
    of = replace(of, graph=replace(of.graph, nodes=(*nodes, after, again, beside)),
                 shapes={"my#1": SHAPE})  # fmt: skip
    assert [cut.name for cut in lower(of).cuts] == ["my", "my#1"]
    assert not qmath.run(of, X, layers={"My": doubled}).missing


def test_a_comparison_restarts_behind_a_cut_from_the_references_integers() -> None:
    of = cut_model()
    whole = qmath.run(of, X, layers={"my": doubled}, profile="exact")
    params = Executor(whole.program).quant_params
    dump = {name: params[name].dequantize(q) for name, q in whole.integers.items()}
    found = qmath.diff(of, X, against=dump)
    names = [layer.name for layer in found.layers]
    # What quantizes the cut's result is not computed, and what follows it is.
    assert names == [
        "a_q/output", "before/post_activation", "after/post_activation", "beside/post_activation",
    ]  # fmt: skip
    assert all(layer.explained for layer in found.layers)
    worse = dump | {"after/post_activation": dump["after/post_activation"] * np.float32(0)}
    (first,) = [item for item in qmath.diff(of, X, against=worse).layers if item.teacher_forced]
    assert (first.name, first.free_running) == ("after/post_activation", first.teacher_forced)
    assert len(qmath.diff(of, X, against=dump, layers={"My": doubled}).layers) == 5
    assert len(qmath.diff(of, X, against="exact").layers) == 3
    opened = qmath.diff(cut_model(built=None), X, against=dump)
    assert [layer.name for layer in opened.layers] == names


def test_vectors_restart_behind_a_cut() -> None:
    bundle = quantize_model(cut_model(), vectors=3)
    program = bundle.program
    assert program is not None
    assert bundle.vectors["vectors/my"].dtype == np.float32
    given = {name: bundle.vectors[f"vectors/{name}"] for name in ("a", "my")}
    results = Executor(program).run(given)
    for step in program.steps:
        if not isinstance(step, CutStep):
            held = bundle.vectors[f"vectors/{step.name}"]
            assert np.abs(results[step.name].astype(int) - held).max() <= 1
            assert len(np.unique(held)) > 5


@pytest.mark.parametrize("format", ["npz", "safetensors", "mem", "coe", "cmsis-nn", "c"])
def test_exports_hold_both_sides(format: str, tmp_path: Path) -> None:
    of, out = cut_model(), tmp_path / f"out.{format}"
    bundle = qmath.export(of, out, format=format, vectors=2)
    steps = {step["name"]: step for step in bundle.manifest["program"]["steps"]}
    assert (steps["my"]["kind"], steps["my"]["class_name"]) == ("cut", "Mine>My")
    assert "after/post_activation.multiplier" in bundle.constants
    assert verify(of, out, format=format).ok


def test_the_exported_c_runs_on_both_sides(tmp_path: Path) -> None:
    out = tmp_path / "c"
    qmath.export(cut_model(), out, format="c", vectors=2)
    header = (out / "model.h").read_text()
    assert "qmath cannot compute it, so that it is yours to compute" in header
    assert "my (Mine>My), of before/post_activation" in header
    assert "To have my in integers" not in header
    sources = [str(path) for path in sorted(out.glob("*.c"))]
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1"]
    try:
        subprocess.run(["cc", *flags, *sources, "-o", str(out / "t"), "-lm"], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    said = subprocess.run([str(out / "t")], check=True, capture_output=True, text=True).stdout
    assert said.startswith("ok:")
    assert "2 test vectors" in said


@pytest.mark.parametrize("format", ["onnx", "qonnx"])
def test_a_network_takes_what_a_cut_makes(format: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    of, out = cut_model(), tmp_path / f"out.{format}"
    qmath.export(of, out, format=format)
    graph = onnx.load(str(out)).graph
    assert [value.name for value in graph.input] == ["a", "my"]
    assert [value.name for value in graph.output] == ["after", "beside", "my/input"]
    assert verify(of, out).ok
    with pytest.raises(QmathError, match="holds no test vectors"):
        qmath.export(of, tmp_path / "other", format=format, vectors=2)
    opened = tmp_path / f"open.{format}"
    qmath.export(cut_model(built=None), opened, format=format)
    graph = onnx.load(str(opened)).graph
    assert [value.name for value in graph.input] == ["a"]
    assert [value.name for value in graph.output] == ["beside", "my/input"]


def test_a_runtime_computes_a_network_on_both_sides(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    of, out = cut_model(), tmp_path / "out.onnx"
    qmath.export(of, out)
    session = onnxruntime.InferenceSession(str(out))
    read = session.run(["my/input"], {"a": X, "my": np.zeros_like(X)})[0]
    made = session.run(["after"], {"a": X, "my": doubled(read)})[0]
    expected = qmath.run(of, X, layers={"my": doubled}, profile="exact").outputs
    step = 1 / 128
    assert np.abs(made - expected["after/post_activation"]).max() < 1.5 * step


def test_the_command_takes_recorded_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapeless = cut_model(built=None)
    monkeypatch.setattr(loading, "load", lambda *_, shapes=None, **__: replace(
        shapeless, shapes=dict(shapes or {})
    ))  # fmt: skip
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", X)
    np.savez(tmp_path / "y.npz", my=X, other=X)
    words = ["run", "m.h5", str(tmp_path / "x.npy"), "--json"]
    assert json.loads(run(*words).stdout)["missing"] == {
        "my": ["my/output", "after/post_activation"]
    }
    shaped = json.loads(run(*words, "--shape", "my=4,4,2").stdout)
    assert shaped["missing"] == {"my": ["my/output", "after/post_activation"]}
    for name in ("y.npy", "y.npz"):
        found = json.loads(run(*words, "--cut", f"my={tmp_path / name}").stdout)
        assert found["missing"] == {}
        assert "after/post_activation" in found["outputs"]
    np.savez(tmp_path / "other.npz", other=X, more=X)
    assert "holds no outputs of the name my" in run(
        *words, "--cut", f"my={tmp_path / 'other.npz'}"
    ).stderr  # fmt: skip
    assert "expected NAME=FILE" in run(*words, "--cut", "my").stderr
    assert "expected NAME=N,N" in run(*words, "--shape", "my=a").stderr
    said = run("run", "m.h5", str(tmp_path / "x.npy"), "--shape", "my=4,4,2").stdout
    assert "a cut point: my" in said
    assert "not computed, for want of my: my/output, after/post_activation" in said
    said = run("diff", "m.h5", str(tmp_path / "x.npy"), "--shape", "my=4,4,2").stdout
    assert "not compared, for want of my: my/output, after/post_activation" in said
    monkeypatch.setattr(loading, "load", lambda *_, **__: two_open_cuts())
    for verb, word in (("run", "computed"), ("diff", "compared")):
        given = [verb, "m.h5", str(tmp_path / "x.npy"), "--cut", f"second={tmp_path / 'y.npy'}"]
        said = " ".join(run(*given).stdout.split())
        assert f"not {word}, for want of first: {', '.join(BEHIND_FIRST)}" in said
        assert "for want of second" not in said
        assert "tail/post_activation" in said


def test_what_a_model_is_compared_with_tells_the_shape_of_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapeless = cut_model(built=None)
    monkeypatch.setattr(loading, "load", lambda *_, **__: shapeless)
    whole = qmath.run(cut_model(), X, layers={"my": doubled}, profile="exact")
    params = Executor(whole.program).quant_params
    dump = {name: params[name].dequantize(q) for name, q in whole.integers.items()}
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "dump.npz", **dump)
    for name, array in dump.items():
        path = tmp_path / "folder" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    names = [
        "a_q/output", "before/post_activation", "after/post_activation", "beside/post_activation",
    ]  # fmt: skip
    words = ["diff", "m.h5", str(tmp_path / "x.npy"), "--against"]
    for reference in ("dump.npz", "folder"):
        path = tmp_path / reference
        found = json.loads(run(*words, str(path), "--json").stdout)
        assert [layer["name"] for layer in found["layers"]] == names
        assert [layer.name for layer in qmath.diff(shapeless, X, against=path).layers] == names
    one = f"my/output={tmp_path / 'folder' / 'my' / 'output.npy'}"
    at = ["--at", "after/post_activation[0,0,0,0]", "--cut", f"my={tmp_path / 'x.npy'}"]
    element_found = json.loads(run(*words, one, *at, "--json").stdout)["element"]
    assert element_found["tensor"] == "after/post_activation"
    # With other orders of axes it is not known which shape is meant.
    found = json.loads(run(*words, str(tmp_path / "dump.npz"), "--axes", "NHWC", "--json").stdout)
    assert "after/post_activation" not in [layer["name"] for layer in found["layers"]]


def test_lowering_is_linear_in_the_number_of_layers() -> None:
    def chain(count: int) -> QatModel:
        layers = [*image("a")]
        for number in range(count):
            before = layers[-1][0]
            if number % 4 == 3:
                layers.append(layer("Masking", f"u{number}", before, marks="o"))
            else:
                layers.append(layer("Conv2D", f"c{number}", before, marks="kp",
                                    activation="relu", **CONV))  # fmt: skip
        return model(*layers)

    def seconds(of: QatModel) -> float:
        start = time.process_time()
        assert len(lower(of).cuts) == math.floor((len(of.graph.nodes) - 2) / 4)  # type: ignore[union-attr]
        return time.process_time() - start

    few, many = chain(200), chain(1600)
    seconds(few)
    # 8 times the layers: 64 times the time if it were quadratic.
    assert seconds(many) < 24 * max(seconds(few), 0.02)


def test_a_graph_of_the_config_says_what_layers_were_built_for() -> None:
    def entry(name: str, inbound: str, build: Any, where: str) -> dict[str, Any]:
        inner = {"class_name": "Dense", "config": {"name": name}}
        found: dict[str, Any] = {
            "class_name": "QuantizeWrapperV2",
            "config": {"name": f"quant_{name}", "layer": inner, "quantize_config": None},
            "inbound_nodes": [[[inbound, 0, 0, {}]]],
        }
        (inner if where == "inner" else found)["build_config"] = build
        return found

    def graph(build: Any, where: str) -> Graph:
        of_input = {"name": "a", "batch_input_shape": [None, 2]}
        start = {"class_name": "InputLayer", "config": of_input, "inbound_nodes": []}
        layers = [start, entry("d", "a", build, where)]
        config = {"layers": layers, "input_layers": [["a", 0, 0]],
                  "output_layers": [["quant_d", 0, 0]]}  # fmt: skip
        return read_graph({"class_name": "Functional", "config": config})

    for where in ("inner", "outer"):
        assert graph({"input_shape": [None, 2]}, where).nodes[1].built_for == ((2,),)
    two = graph({"input_shape": [[None, 2], [None, None, 3]]}, "outer")
    assert two.nodes[1].built_for == ((2,), (None, 3))
    for strange in (None, {}, {"input_shape": 3}, {"input_shape": []}, {"input_shape": [None, -2]},
                    {"input_shape": [None, "2"]}, {"input_shape": [[None, 2], 3]}):  # fmt: skip
        assert graph(strange, "outer").nodes[1].built_for == ()


def test_several_outputs_are_not_taken_for_one() -> None:
    of = cut_model()
    assert of.graph is not None
    nodes = [replace(n, outputs=2) if n.name == "my" else n for n in of.graph.nodes]
    of = replace(of, graph=replace(of.graph, nodes=tuple(nodes)))
    program = lower(of)
    assert [cut.is_shaped for cut in program.cuts] == [False]
    assert program.outputs == ("beside/post_activation",)
    assert any("has several outputs" in note for note in program.notes)
    (advice,) = [item for item in inspect(of).warnings if item.kind == "open-shape"]
    assert advice.remedy == "split it into layers of one output"


def test_a_graph_says_of_which_layers_several_outputs_are_read() -> None:
    def entry(name: str, class_name: str, *inbound: list[Any]) -> dict[str, Any]:
        config = {"name": name, "batch_input_shape": [None, 2]}
        return {"class_name": class_name, "config": config,
                "inbound_nodes": [list(inbound)] if inbound else []}  # fmt: skip

    layers = [
        entry("a", "InputLayer"), entry("two", "My", ["a", 0, 0, {}]),
        entry("add", "Add", ["two", 0, 0, {}], ["two", 0, 1, {}]),
    ]  # fmt: skip
    config = {"layers": layers, "input_layers": [["a", 0, 0]], "output_layers": [["add", 0, 0]]}
    graph = read_graph({"class_name": "Functional", "config": config})
    assert [node.outputs for node in graph.nodes] == [1, 2, 1]


def test_what_lies_behind_a_cut_without_data_is_not_equal() -> None:
    """Integers that nothing can be compared with are an error, whatever they are."""
    program = program_of(cut_model())
    whole = qmath.run(program, X, layers={"My": doubled}).integers
    behind = {name: x for name, x in whole.items() if name.startswith(("my", "after"))}
    assert "my/output" in behind
    with pytest.raises(QmathError, match="nothing can be compared"):
        qmath.diff(program, X, against={"my/output": behind["my/output"] ^ 1})
    with pytest.raises(QmathError, match="may be signed or unsigned"):
        qmath.diff(
            program, X, against={"my/output": np.minimum(behind["my/output"], 9).astype(int)}
        )
    with pytest.raises(QmathError, match="needs a layer"):
        element(program, X, "my/output[0,0,0,0]")
