"""Hostile ``.keras`` archives, and hostile JSON in them: each a function, and what is said."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks.collection import Build, Collection
from tests.readers.builders import (
    TOLD,
    entry,
    functional,
    kernel,
    sequential,
    span,
    wrapped,
    write_v3,
)

VALUES, LOW, HIGH = kernel().values()
STEP = np.int32(-1)
VARIABLES = [VALUES, VALUES, STEP, LOW, HIGH, *span("post_activation").values()]
GROUPS = {"layers/quantize_wrapper_v2": VARIABLES}
CONFIG = sequential(wrapped("d", TOLD, use_bias=False))
WEIGHTS = "model.weights.h5"
FILES = Collection()
ATTACKS, READ, refused, is_read = FILES.attacks, FILES.read, FILES.refused, FILES.is_read


def ordinary(path: Path, config: Any = CONFIG) -> dict[str, bytes]:
    """Write an archive; return its members."""
    write_v3(path, GROUPS, config)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members.items():
            archive.writestr(name, content)


def with_config(text: str | bytes) -> Build:
    """Return what writes an archive with this for its config."""

    def build(path: Path) -> None:
        members = ordinary(path)
        packed(path, {**members, "config.json": text.encode() if isinstance(text, str) else text})

    return build


def edited(path: Path, record: bytes, at: int, value: bytes) -> None:
    """Overwrite a field of the first record that begins so."""
    ordinary(path)
    content = bytearray(path.read_bytes())
    start = content.index(record) + at
    content[start : start + len(value)] = value
    path.write_bytes(content)


# ---- archives


@is_read
def ordinary_archive(path: Path) -> None:
    ordinary(path)


@refused("compressed")
def bomb(path: Path) -> None:
    members = ordinary(path)
    packed(path, {**members, "config.json": b" " * (300 << 20)}, zipfile.ZIP_DEFLATED)


@refused("does not lie where")
def a_claim_of_a_gigabyte(path: Path) -> None:
    members = ordinary(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(WEIGHTS, members[WEIGHTS])
        archive.writestr("config.json", b"{}")
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02") + 20
    content[start : start + 8] = struct.pack("<LL", 1 << 30, 1 << 30)
    path.write_bytes(content)


@refused("one name")
def a_member_twice(path: Path) -> None:
    ordinary(path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("config.json", b"{}")


@is_read
def names_that_lead_out(path: Path) -> None:
    packed(path, {**ordinary(path), "../escape": b"x", "/tmp/qmath-escape": b"x", "..\\out": b"x"})


@is_read
def a_symbolic_link(path: Path) -> None:
    ordinary(path)
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")


@refused("damaged|does not lie")
def only_links(path: Path) -> None:
    ordinary(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", WEIGHTS):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, "/etc/passwd")


@refused("checksum")
def wrong_checksum(path: Path) -> None:
    edited(path, b"PK\x01\x02", 16, b"\0\0\0\0")
    members = zipfile.ZipFile(path).namelist()
    content = bytearray(path.read_bytes())
    for _ in members:  # of every member
        content = content.replace(b"PK\x01\x02", b"pk\x01\x02", 1)
        start = content.index(b"pk\x01\x02") + 16
        content[start : start + 4] = b"\1\2\3\4"
        content[start - 16 : start - 12] = b"PK\x01\x03"
    path.write_bytes(content.replace(b"PK\x01\x03", b"PK\x01\x02"))


@refused("encrypted")
def encrypted(path: Path) -> None:
    ordinary(path)
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 8] |= 1
    path.write_bytes(content)


@refused("does not lie where")
def members_over_each_other(path: Path) -> None:
    ordinary(path)
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 42 : at + 46] = bytes(4)
    path.write_bytes(content)


@refused("cannot be read|does not lie")
def beyond_the_end(path: Path) -> None:
    ordinary(path)
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 42 : at + 46] = b"\xf0\xff\xff\x7f"
    path.write_bytes(content)


@refused("missing from the zip")
def empty(path: Path) -> None:
    packed(path, {"x": b""})


@refused("directory of")
def a_directory_of_many(path: Path) -> None:
    packed(path, {**ordinary(path), **{f"assets/{i:0200d}": b"" for i in range(6000)}})


@refused("HDF5 cannot read|holds no")
def weights_that_are_an_archive(path: Path) -> None:
    members = ordinary(path)
    packed(path, {**members, WEIGHTS: path.read_bytes()})


@refused("link to elsewhere")
def weights_with_a_link(path: Path) -> None:
    import io

    import h5py

    members = ordinary(path)
    content = io.BytesIO(members[WEIGHTS])
    with h5py.File(content, "r+") as file:
        del file["layers/quantize_wrapper_v2"]
        file["layers/quantize_wrapper_v2"] = h5py.ExternalLink("/etc/passwd", "/")
    packed(path, {**members, WEIGHTS: content.getvalue()})


# ---- JSON

ATTACKS |= {
    "brackets": (with_config(b"[" * (132 << 20)), "longer than"),
    "lists": (with_config("[" + "[]," * 5_000_000 + "0]"), "values in"),
    "texts": (with_config("[" + '"ab",' * 3_000_000 + "0]"), "values in"),
    "nesting": (with_config("[" * 100_000 + "]" * 100_000), "nests"),
    "nesting_of_objects": (with_config('{"a":' * 5_000 + "1" + "}" * 5_000), "nests"),
    "a_number_of_a_million_digits": (with_config("9" * 1_000_000), "digits"),
    "a_number_in_a_layer": (
        with_config(json.dumps(CONFIG).replace('"use_bias": false', f'"units": {"9" * 5000}')),
        "digits",
    ),
    "no_text": (with_config(b"\xff\xfe\x00"), "not JSON"),
    "no_object": (with_config("3"), "no Sequential or Functional"),
    "nothing": (with_config(""), "not JSON"),
    "two_values": (with_config("{}{}"), "not JSON"),
    "a_model_without_layers": (with_config(json.dumps(sequential())), "."),
    "layers_that_are_no_layers": (with_config(json.dumps(sequential(1, [], None, {}))), "."),
    "ten_thousand_layers": (
        with_config(json.dumps(sequential(*(entry("Dense", f"d{i}") for i in range(10_000))))),
        ".",
    ),
}


def doubling(depth: int) -> Any:
    """Models that call the model in them twice: as many calls as two to the power of the depth."""
    model = functional([entry("ReLU", "r", ["i"]), entry("InputLayer", "i")], ["i"], ["r"])
    for level in range(depth):
        inner = {**model, "name": f"m{level}", "inbound_nodes": [[["i", 0, 0, {}]]]}
        inner["config"] = {**inner["config"], "name": f"m{level}"}
        inner["inbound_nodes"].append([[f"m{level}", 1, 0, {}]])
        model = functional([entry("InputLayer", "i"), inner], ["i"], [[f"m{level}", 2, 0]])
    return model


def in_a_model(*layers: Any) -> Build:
    config = sequential(*layers, *CONFIG["config"]["layers"])
    return with_config(json.dumps(config))


ATTACKS["models_that_double"] = in_a_model({**doubling(30), "name": "deep"}), "deep are missing"
READ |= {
    "layers_in_a_circle": with_config(
        json.dumps(
            functional(
                [
                    {**CONFIG["config"]["layers"][0], "name": "quant_d",
                     "inbound_nodes": [[["quant_d", 0, 0, {}]]]},
                ],
                [],
                ["quant_d"],
            )
        )
    ),
    "names_twice": with_config(json.dumps(CONFIG)[:-1] + ', "class_name": "Sequential"}'),
    "numbers_that_are_none": with_config(
        json.dumps(CONFIG).replace('"use_bias"', '"alpha": NaN, "beta": 1e999, "use_bias"')
    ),
    "code": in_a_model(
        entry("Lambda", "l", function={"class_name": "__lambda__", "config": {"code": "4wA="}})
    ),
    "modules": with_config(
        json.dumps(CONFIG).replace(
            '"class_name": "Dense"', '"class_name": "Dense", "module": "os", "registered_name": "x"'
        )
    ),
}  # fmt: skip
