import json
import os

import h5py
import numpy as np
import pytest

import qmath
from qmath import FileFormatError, OutputError
from tests.exports.models import model
from tests.helpers import assert_same_bits
from tests.readers.builders import (
    SAMPLES,
    TOLD,
    kernel,
    one_layer,
    sequential,
    step,
    wrapped,
    write,
    write_v3,
)

FOUR_BITS = {
    "d/kernel": qmath.LastValueQuantizer(
        num_bits=4, symmetric=True, narrow_range=False, per_axis=False
    )
}
NAMES = ("question", "integer4", "default8", "nbit4")


def datasets(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, node: (
                found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None
            )
        )
    return found


@pytest.mark.parametrize("options", [{}, {"signed": False}])
@pytest.mark.parametrize("name", NAMES)
def test_only_the_kernels_differ(tmp_path, name, options):
    source, path = SAMPLES / f"{name}.h5", tmp_path / "copy.h5"
    bundle = qmath.export(source, path, **options)
    before, after = datasets(source), datasets(path)
    assert before.keys() == after.keys()
    kernels = {
        tensor.values.path: name
        for name, tensor in bundle.model.tensors.items()
        if tensor.role == "weight"
    }
    assert len(kernels) == 3 - (name == "question")
    for place, values in before.items():
        if place in kernels:
            assert_same_bits(after[place], bundle.tensors[kernels[place]].dequantize())
            assert (after[place] != values).any()
        else:
            np.testing.assert_array_equal(after[place], values)
    old, new = (np.frombuffer(p.read_bytes(), np.uint8) for p in (source, path))
    inside = np.zeros(len(old), bool)
    with h5py.File(source) as file:
        for place in kernels:
            start = file[place].id.get_offset()
            inside[start : start + file[place].nbytes] = True
    np.testing.assert_array_equal(old[~inside], new[~inside], strict=True)


def test_equal_bytes_and_verify(tmp_path):
    for name in ("a.h5", "b.h5"):
        qmath.export(SAMPLES / "nbit4.h5", tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    found = qmath.verify(SAMPLES / "nbit4.h5", tmp_path / "a.h5")
    assert found.ok
    assert found.elements > 2848
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        dataset = file["model_weights/quant_conv1/conv1/kernel:0"]
        start, value = dataset.id.get_offset(), dataset[0, 0, 0, 0]
        dataset[0, 0, 0, 0] = -value
    (line,) = qmath.verify(SAMPLES / "nbit4.h5", tmp_path / "a.h5").differences
    assert f"a.h5: it differs from byte {start + 3} on" in line  # the sign is in the last byte
    os.truncate(tmp_path / "b.h5", 1 << 14)
    (line,) = qmath.verify(SAMPLES / "nbit4.h5", tmp_path / "b.h5").differences
    assert "16384 bytes" in line


def test_a_process_of_its_own_may_read_the_model(tmp_path):
    for isolate in (False, True):
        model = qmath.load(SAMPLES / "nbit4.h5", isolate=isolate)
        qmath.export(model, tmp_path / f"{isolate}.h5")
    assert (tmp_path / "True.h5").read_bytes() == (tmp_path / "False.h5").read_bytes()
    assert qmath.verify(model, tmp_path / "True.h5").ok


def test_the_copy_is_a_model_of_the_same_integers(tmp_path):
    before = qmath.export(SAMPLES / "default8.h5", tmp_path / "copy.h5")
    after = qmath.load(tmp_path / "copy.h5")
    for name, tensor in after.tensors.items():
        if tensor.role == "weight":
            np.testing.assert_array_equal(
                tensor.quantize().values, before.tensors[name].values, strict=True
            )


def weights_by_name(path):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["quant_d"]
        group = file.create_group("quant_d")
        variables = kernel() | step()
        group.attrs["weight_names"] = list(variables)
        for name, values in variables.items():
            group[name] = values
    return path


def test_weights_alone(tmp_path):
    source = weights_by_name(tmp_path / "weights.h5")
    bundle = qmath.export(qmath.load(source, FOUR_BITS), tmp_path / "o.h5")
    assert_same_bits(
        datasets(tmp_path / "o.h5")["quant_d/d/kernel:0"], bundle.tensors["d/kernel"].dequantize()
    )
    assert qmath.verify(qmath.load(source, FOUR_BITS), tmp_path / "o.h5").ok


def test_the_files_byte_order_is_kept(tmp_path):
    source = stored(tmp_path / "m.h5", dtype=">f4")
    bundle = qmath.export(qmath.load(source, FOUR_BITS), tmp_path / "o.h5")
    found = datasets(tmp_path / "o.h5")["model_weights/quant_d/d/kernel:0"]
    assert found.dtype == ">f4"
    assert_same_bits(found.astype(np.float32), bundle.tensors["d/kernel"].dequantize())


def stored(path, dtype=None, **how):
    """Write a model whose kernel is stored in a way of its own."""
    one_layer(path)
    with h5py.File(path, "r+") as file:
        place = "model_weights/quant_d/d/kernel:0"
        values = file[place][()]
        del file[place]
        file.create_dataset(place, data=values.astype(dtype or values.dtype), **how)
    return path


@pytest.mark.parametrize("how", [{"chunks": (3, 2)}, {"compression": "gzip"}], ids=str)
def test_what_is_not_stored_plainly_is_refused(tmp_path, how):
    source = stored(tmp_path / "m.h5", **how)
    with pytest.raises(FileFormatError, match=r"kernel:0 is compressed, in chunks.*h5repack"):
        qmath.export(qmath.load(source, FOUR_BITS), tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()


def test_one_array_of_two_names_is_refused(tmp_path):
    source = tmp_path / "m.h5"
    groups = {f"quant_{name}": kernel(layer=name) for name in "de"}
    write(source, sequential(wrapped("d"), wrapped("e")), groups)
    with h5py.File(source, "r+") as file:
        del file["model_weights/quant_e/e/kernel:0"]
        file["model_weights/quant_e/e/kernel:0"] = file["model_weights/quant_d/d/kernel:0"]
    with pytest.raises(FileFormatError, match="e/kernel:0: its bytes are those of another tensor"):
        qmath.load(source)


def test_other_sources_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"in no file; save it with model\.save"):
        qmath.export(model(), tmp_path / "o.h5")
    checkpoint = SAMPLES.parent / "golden/checkpoints/question"
    with pytest.raises(OutputError, match="another kind of file"):
        qmath.export(checkpoint, tmp_path / "o.h5")
    source = write_v3(tmp_path / "m.keras", by_position(), CONFIG)
    with pytest.raises(FileFormatError, match=r"part of an archive; .*model\.save\('model\.h5'\)"):
        qmath.export(qmath.load(source, FOUR_BITS), tmp_path / "o.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


CONFIG = sequential(wrapped("d", TOLD, units=4, use_bias=True))


def by_position():
    """Return a layer's variables as Keras's newer format holds them: the kernel is in it twice."""
    values, *ends = kernel().values()
    bias = np.zeros(4, np.float32)
    place = "layers/quantize_wrapper_v2"
    return {
        place: [values, bias, values, np.int32(-1), *ends, *ends],
        f"{place}/layer": [bias],
    }


@pytest.mark.parametrize("isolate", [False, True])
def test_all_copies_of_a_kernel_in_weights_by_position(tmp_path, isolate):
    source = write_v3(tmp_path / "m.weights.h5", by_position())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    options = {"quantizers": FOUR_BITS, "architecture": tmp_path / "config.json"}
    model = qmath.load(source, isolate=isolate, **options)
    bundle = qmath.export(model, tmp_path / "o.h5")
    before, after = datasets(source), datasets(tmp_path / "o.h5")
    kernels = [f"layers/quantize_wrapper_v2/vars/{i}" for i in (0, 2)]
    for place, values in before.items():
        if place in kernels:
            assert_same_bits(after[place], bundle.tensors["d/kernel"].dequantize())
            assert (after[place] != values).any()
        else:
            np.testing.assert_array_equal(after[place], values)
    assert qmath.verify(model, tmp_path / "o.h5").ok


def test_a_model_without_quantized_weights_is_refused(tmp_path):
    source = write(tmp_path / "m.h5", sequential(), {"d": {"d/kernel:0": np.ones((2, 2))}})
    with pytest.raises(OutputError, match="no weight is quantized"):
        qmath.export(source, tmp_path / "o.h5")


@pytest.mark.parametrize(
    ("options", "word"), [({"layouts": ["OHWI"]}, "--layout"), ({"vectors": 1}, "--vectors")]
)
def test_what_a_copy_cannot_follow_is_refused(tmp_path, options, word):
    with pytest.raises(OutputError, match=f"so {word} does not apply; leave it out"):
        qmath.export(SAMPLES / "default8.h5", tmp_path / "o.h5", **options)


@pytest.mark.parametrize("load", [False, True])
def test_the_model_itself_is_never_the_copy(tmp_path, load):
    path = one_layer(tmp_path / "m.h5")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is an input itself"):
        qmath.export(qmath.load(path, FOUR_BITS) if load else path, path, overwrite=True)
    assert path.read_bytes() == before


def test_a_file_that_changed_meanwhile_is_found(tmp_path):
    path = one_layer(tmp_path / "m.h5")
    loaded = qmath.load(path, FOUR_BITS)
    one_layer(path, None, kernel(shape=(4, 4)))
    with pytest.raises(FileFormatError, match="changed since it was loaded"):
        qmath.export(loaded, tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()
