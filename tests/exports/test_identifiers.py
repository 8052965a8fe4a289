import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmath.exports.bundle import quantize_model
from qmath.exports.output.identifiers import Identifiers
from tests.exports.models import model

# Text, and text in which collisions are likely.
NAMES = st.lists(
    st.one_of(
        st.text(max_size=130),
        st.text(alphabet="aA/:_.2 é", max_size=5),
        st.sampled_from(["int", "INT", "Module", "com1", "a_2", "a", "A", "", "x" * 300]),
    ),
    max_size=20,
)


@given(NAMES, NAMES)
def test_valid_unique_and_of_every_name(names, more):
    found = Identifiers(names)
    assert set(found) == set(names)
    others = [found.new(name) for name in more]
    identifiers = [*found.values(), *others]
    assert len({identifier.lower() for identifier in identifiers}) == len(identifiers)
    for identifier in identifiers:
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", identifier)
        assert len(identifier) <= (100 if identifier in others else 80)
        assert identifier.lower() not in ("int", "module", "com1")
    assert dict(Identifiers(names)) == dict(found)


@pytest.mark.parametrize(
    ("names", "identifiers"),
    [
        (["conv1/kernel", "conv1/kernel.scale"], ["conv1_kernel", "conv1_kernel_scale"]),
        (["a/b", "a:b", "a_b", "a_b_2"], ["a_b", "a_b_2", "a_b_3", "a_b_2_2"]),
        (["Conv/kernel", "conv/kernel"], ["Conv_kernel", "conv_kernel_2"]),
        (["int", "Register", "wire", "NUL", "main"],
         ["int_2", "Register_2", "wire_2", "NUL_2", "main_2"]),
        (["1x1", "__x__", "日本", ""], ["t_1x1", "x", "t", "t_2"]),
        (["café", "cafe"], ["cafe", "cafe_2"]),
        (["x" * 150, "x" * 151], ["x" * 80, "x" * 78 + "_2"]),
    ],
)  # fmt: skip
def test_examples(names, identifiers):
    assert list(Identifiers(names).values()) == identifiers


def test_there_is_room_for_an_ending():
    found = Identifiers(["x" * 300])
    assert found.new(found["x" * 300] + "_zero_point") == "x" * 80 + "_zero_point"


def test_a_bundle_names_the_keys_of_its_arrays():
    bundle = quantize_model(model(), layouts=["OHWI"])
    assert list(bundle.keys()) == [key for key, _ in bundle.arrays()]
