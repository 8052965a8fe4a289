"""The exported C, compiled and loaded: NumPy's integers, or words that say why not."""

import json
import threading
import tracemalloc
import warnings

import numpy as np
import pytest

import qmath
from qmath import QmathError, QmathWarning
from qmath.engine import compiler
from qmath.engine.api import engine_named
from qmath.integer import api
from qmath.integer.profiles.fixed import Integer
from tests.cli.running import fails, run
from tests.exports.compiling import needs_compiler
from tests.exports.networks import separable
from tests.exports.test_c import NETWORKS
from tests.helpers import read_npz

SAMPLES = "reference/samples"
DEFAULT = f"{SAMPLES}/default8.h5"
IMAGES = read_npz(f"{SAMPLES}/digits_test.npz")["images"]

pytestmark = needs_compiler


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place / "qmath"


def data_of(program: api.Program, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        name: rng.uniform(-1.2, 1.7, (count, *shape)).astype(np.float32)
        for name, shape in program.inputs.items()
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape), name
        assert np.count_nonzero(found[name] != values) == 0, name


def assert_same_runs(found: api.Run, expected: api.Run) -> None:
    assert (found.engine, expected.engine) == ("c", "numpy")
    assert_same(found.integers, expected.integers)
    assert_same(found.outputs, expected.outputs)


def test_separable_convolutions_give_the_integers_of_numpy():
    model = separable()
    data = data_of(api.program_of(model), 3)
    assert_same_runs(qmath.run(model, data, engine="c"), qmath.run(model, data))


@pytest.mark.once
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_integers_of_numpy(name):
    model = NETWORKS[name]
    data = data_of(api.program_of(model), 5)
    assert_same_runs(qmath.run(model, data, engine="c"), qmath.run(model, data))


@pytest.mark.parametrize("bits", [8, 16, 31])
def test_a_sample_in_several_batches_with_every_width_of_multipliers(bits):
    found = qmath.run(DEFAULT, IMAGES, engine="c", multiplier_bits=bits)
    assert_same_runs(found, qmath.run(DEFAULT, IMAGES, multiplier_bits=bits))


def test_only_what_is_kept_is_returned_and_floats_read_what_is_not():
    model = NETWORKS["float_layers"]
    program = api.program_of(model)
    data = data_of(program, 3)
    executor = engine_named("c", model)(program, Integer())
    for keep in ({step.name for step in program.steps[::2]}, {program.steps[-1].name}):
        expected = api.Executor(program, Integer()).run(data, keep=keep)
        found = executor.run(data, keep=keep)
        assert found.keys() == keep
        assert_same(found, expected)
    assert all(len(x) == 0 for x in executor.run({k: x[:0] for k, x in data.items()}).values())


def test_memory_is_for_what_is_kept_or_read():
    model = NETWORKS["float_layers"]
    program = api.program_of(model)
    data = data_of(program, 2000)
    executor = engine_named("c", model)(program, Integer())
    peaks = []
    for keep in ([], None):
        tracemalloc.start()
        executor.run(data, keep=keep)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] > 2000 * 50  # bytes


def test_teacher_forcing_is_numpys():
    program = api.program_of(DEFAULT)
    executor = engine_named("c", qmath.load(DEFAULT))(program, Integer())
    inputs = {next(iter(program.inputs)): IMAGES[:3]}
    first = program.steps[0]
    forced = {first.name: np.full((3, *first.shape), 7, np.uint8)}
    expected = api.Executor(program, Integer()).run(inputs, forced)
    assert_same(executor.run(inputs, forced), expected)


def test_threads_do_not_mix_their_batches():
    program = api.program_of(DEFAULT)
    executor = engine_named("c", qmath.load(DEFAULT))(program, Integer())
    name = next(iter(program.inputs))
    parts = [IMAGES[start : start + 60] for start in range(0, 240, 60)]
    found: dict[int, dict[str, np.ndarray]] = {}

    def work(number: int) -> None:
        found[number] = executor.run({name: parts[number]})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, part in enumerate(parts):
        assert_same(found[number], api.Executor(program, Integer()).run({name: part}))


def test_nan_is_refused_as_numpy_refuses_it():
    images = IMAGES[:4].copy()
    images[2, 3, 4] = np.nan
    with pytest.raises(QmathError, match="NaN") as in_numpy:
        qmath.run(DEFAULT, images)
    with pytest.raises(QmathError) as in_c:
        qmath.run(DEFAULT, images, engine="c")
    assert str(in_c.value) == str(in_numpy.value)


def test_a_cut_point_with_a_function_is_a_float_layer_and_one_without_is_left_to_numpy():
    of = NETWORKS["images"]
    assert of.graph is not None
    *nodes, last = of.graph.nodes
    added = qmath.Node("my", "my", "MyLayer", last.inputs, {}, "MyConfig")
    graph = qmath.Graph((*nodes, last, added), of.graph.inputs, (*of.graph.outputs, "my"))
    model = qmath.QatModel(of.tensors, graph)
    layers = {"MyLayer": np.square}
    data = data_of(api.program_of(model, layers=layers), 2)
    assert_same_runs(
        qmath.run(model, data, engine="c", layers=layers), qmath.run(model, data, layers=layers)
    )
    with pytest.warns(QmathWarning, match="NumPy runs the model: it has cut points: my"):
        found = qmath.run(model, data, engine="c")
    assert found.engine == "numpy"
    assert list(found.missing) == ["my"]


def test_it_is_compiled_once(monkeypatch):
    qmath.run(DEFAULT, IMAGES[:1], engine="c")

    def build(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(compiler, "_build", build)
    assert qmath.run(DEFAULT, IMAGES[:1], engine="c").engine == "c"
    with pytest.raises(AssertionError):
        qmath.run(DEFAULT, IMAGES[:1], engine="c", multiplier_bits=9)


def test_the_command_line_names_the_engine(tmp_path):
    data, outputs = f"{SAMPLES}/digits_test.npz", {}
    for engine in ("numpy", "c"):
        out = tmp_path / f"{engine}.npz"
        result = run("run", DEFAULT, data, "--engine", engine, "-o", out, "--json")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert (document["engine"], document["notes"]) == (engine, [])
        outputs[engine] = read_npz(out)
    assert outputs["c"].keys() == outputs["numpy"].keys()
    assert all(np.array_equal(x, outputs["numpy"][name]) for name, x in outputs["c"].items())


@pytest.mark.parametrize("profile", ["exact", "tflite", "xnnpack"])
def test_another_profile_is_refused(profile):
    message = fails(
        "run", DEFAULT, f"{SAMPLES}/digits_test.npz", "--engine", "c", "--profile", profile
    )
    assert f"the engine 'c' has the profile 'integer' alone, not '{profile}'" in message


def test_a_program_and_an_unknown_engine_are_refused():
    with pytest.raises(QmathError, match="give it the model"):
        qmath.run(api.program_of(DEFAULT), IMAGES, engine="c")
    with pytest.raises(QmathError, match="use one of: numpy, c"):
        qmath.run(DEFAULT, IMAGES, engine="rust")


def test_both_signatures_of_run_are_alike():
    import inspect

    ours, below = (inspect.signature(f).parameters for f in (qmath.run, api.run))
    assert list(ours) == list(below)
    assert [p.kind for p in ours.values()] == [p.kind for p in below.values()]


def test_numpy_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert qmath.run(DEFAULT, IMAGES[:2]).engine == "numpy"
