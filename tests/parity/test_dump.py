"""`reference.dump`: what TensorFlow computes, under qmath's names."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from tests.helpers import assert_same_bits

tfmot = pytest.importorskip("tensorflow_model_optimization")
import tensorflow as tf  # noqa: E402
from tensorflow_model_optimization.python.core.quantization.keras import quant_ops  # noqa: E402

from reference import models, samples  # noqa: E402
from reference.dump import DumpError, dump, inputs_of, kernels, load, main  # noqa: E402

keras = tf.keras
layers = keras.layers
configs = models.config

MODELS = ("every_layer", "annotated", "lazy", "nested", "w4a8")


@pytest.fixture(scope="module", params=[*samples.RECIPES, *MODELS])
def dumped(request):
    """Return a model, data for it, and its dump."""
    if request.param in samples.RECIPES:
        model = samples.load(request.param)
        data = {"image": samples.digits().test_images[:3]}
    else:
        model = models.build(request.param)
        data = models.data(model, 3)
    return model, data, dump(model, data)


def called(model, data):
    """Return what the model itself returns in inference mode."""
    tensors = [tf.constant(data[name]) for name in model.input_names]
    return [y.numpy() for y in tf.nest.flatten(model(tensors, training=False))]


def test_outputs_are_those_of_the_model(dumped):
    model, data, arrays = dumped
    outputs = called(model, data)
    for i, output in enumerate(outputs):
        assert_same_bits(arrays[f"outputs/{i}"], output)
    assert f"outputs/{len(outputs)}" not in arrays


def test_names_are_those_of_qmath(dumped):
    model, _, arrays = dumped
    loaded = qmath.from_keras(model)
    expected = {
        f"{node.name}/{place}"
        for node in loaded.graph.nodes
        for place in ("pre_activation", "post_activation", "output")
        if f"{node.layer}/{place}" in loaded.tensors
    }
    assert expected == {name for name in arrays if not name.startswith("outputs/")}


def test_tensors_are_what_tfmot_fake_quantizes(dumped, monkeypatch):
    model, data, arrays = dumped
    of_weights = {
        id(state["min_var"])
        for layer in models.leaves(model)
        for _, _, state in getattr(layer, "_weight_vars", ())
    }
    seen = []
    original = quant_ops._FakeQuantWithMinMaxVars

    def recording(inputs, min_var, *args, **kwargs):
        outputs = original(inputs, min_var, *args, **kwargs)
        if id(min_var) not in of_weights:
            seen.append(outputs.numpy().tobytes())
        return outputs

    monkeypatch.setattr(quant_ops, "_FakeQuantWithMinMaxVars", recording)
    called(model, data)
    assert sorted(seen) == sorted(
        array.tobytes() for name, array in arrays.items() if not name.startswith("outputs/")
    )


def test_shared_layers_are_numbered_by_their_calls():
    """The first call may lie deeper in the graph than the second, and so run later."""
    model = models.build("nested")
    data = models.data(model, 2)
    arrays = dump(model, data)
    for layer, path in (("quant_shared", "shared"), ("inner", "inner/project")):
        for i, number in enumerate(("", "#1")):
            until = keras.Model(model.inputs, model.get_layer(layer).get_output_at(i))
            assert_same_bits(arrays[f"{path}{number}/post_activation"], called(until, data)[0])


def test_the_batch_changes_nothing():
    model = samples.load("default8")
    images = samples.digits().test_images[:7]
    whole, parts = dump(model, images), dump(model, images, batch=3)
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        assert_same_bits(parts[name], array, name)


def test_quantizers_before_and_after_an_activation():
    image = layers.Input((4,))
    model = tfmot.quantization.keras.quantize_model(
        keras.Model(image, layers.Dense(3, activation="gelu", name="dense")(image))
    )
    data = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    arrays = dump(model, data)
    assert {"dense/pre_activation", "dense/post_activation"} < arrays.keys()
    function = model.layers[-1].layer.activation.activation
    assert_same_bits(
        arrays["dense/post_activation"],
        tf.quantization.fake_quant_with_min_max_vars(
            function(arrays["dense/pre_activation"]), -6, 6
        ).numpy(),
    )


def test_fixed_ranges_have_no_variables_and_are_dumped_too():
    image = layers.Input((4,))
    model = tfmot.quantization.keras.quantize_model(
        keras.Model(image, layers.Dense(3, name="dense")(image))
    )
    with tfmot.quantization.keras.quantize_scope():
        model = tfmot.quantization.keras.fix_input_output_range(model)
    data = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    arrays = dump(model, data)
    (first,) = (name for name in arrays if name.startswith("quantize_layer"))
    assert_same_bits(
        arrays[first], tf.quantization.fake_quant_with_min_max_args(data, 0, 1).numpy()
    )
    with tfmot.quantization.keras.quantize_scope():
        model = tfmot.quantization.keras.remove_input_range(model)
    assert not any(name.startswith("quantize_layer") for name in dump(model, data))


class Twice(layers.Layer):
    """A layer that calls its activation twice."""

    def __init__(self, activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)

    def call(self, x):
        return self.activation(self.activation(x) - 1)


def test_an_activation_without_a_name_is_refused():
    image = layers.Input((4,))
    layer = models.annotate(Twice(name="twice"), configs([], ["activation"], False))
    with tfmot.quantization.keras.quantize_scope({"Twice": Twice}):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(image, layer(image)))
    with pytest.raises(DumpError, match="twice calls its activation more than once"):
        dump(model, np.zeros((1, 4)))


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    model = Own()
    model(np.zeros((1, 4), np.float32))
    with pytest.raises(DumpError, match="no Sequential or Functional model"):
        dump(model, {})


def test_inputs_are_found_by_name_or_by_shape():
    model = samples.load("integer4")
    images, labels = np.zeros((2, 8, 8, 1)), np.zeros(2)
    assert inputs_of(model, {"labels": labels, "x": images}) == {"image": images}
    assert inputs_of(model, {"image": images, "x": images})["image"] is images
    for data in ({"labels": labels}, {"x": images, "y": images}):
        with pytest.raises(DumpError, match=r"the model's inputs are \['image'\]"):
            inputs_of(model, data)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "dump.npz"
    np.savez(tmp_path / "data.npz", images=samples.digits().test_images[:5], labels=np.zeros(5))
    np.save(tmp_path / "data.npy", samples.digits().test_images[:5])
    model = samples.SAMPLES / "integer4.h5"
    live = load(model)
    expected = {f"kernels/{name}": array for name, array in kernels(live).items()}
    of_data = dump(live, samples.digits().test_images[:5])
    for data, arrays in (
        ("data.npz", expected | of_data), ("data.npy", expected | of_data), (None, expected)
    ):  # fmt: skip
        given = [] if data is None else [str(tmp_path / data)]
        assert main([str(model), *given, "-o", str(path), "--batch", "2"]) == 0
        assert f"{len(arrays)} tensors" in capsys.readouterr().out
        with np.load(path) as written:
            assert set(written) == set(arrays)
            for name, array in arrays.items():
                assert_same_bits(written[name], array, name)
    np.savez(tmp_path / "data.npz", labels=np.zeros(5))
    assert main([str(model), str(tmp_path / "data.npz"), "-o", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: the model's inputs are ['image']")
    assert main([str(model), str(tmp_path / "none.npz"), "-o", str(path)]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main([str(tmp_path / "none.h5"), "-o", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: No file or directory found")


def test_an_open_size_fits_any_data():
    model = keras.Sequential([keras.Input((None, 3), name="x"), layers.Dense(2)])
    signal = np.zeros((2, 5, 3), np.float32)
    assert inputs_of(model, {"": signal, "labels": np.zeros(2)})["x"] is signal


def test_classes_of_ones_own_are_imported(tmp_path, monkeypatch):
    (tmp_path / "training_script.py").write_text(
        "from reference.models import config\n\nclass OwnConfig(config):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import training_script

    image = layers.Input((4,))
    own = training_script.OwnConfig(["kernel"], ["activation"], False)
    annotated = models.annotate(layers.Dense(3, name="dense"), own)(image)
    with tfmot.quantization.keras.quantize_scope({"OwnConfig": training_script.OwnConfig}):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(image, annotated))
    model.save(tmp_path / "own.h5", include_optimizer=False)
    with pytest.raises(ValueError, match="OwnConfig"):
        load(tmp_path / "own.h5")
    loaded = load(tmp_path / "own.h5", ["training_script"])
    data = np.ones((1, 4), np.float32)
    assert_same_bits(
        dump(loaded, data)["dense/post_activation"], dump(model, data)["dense/post_activation"]
    )
