"""The table of TFLite's schema against every generated schema that is installed here."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from qmath.containers.tflite import schema

# Packages that carry flatc's Python modules, which are read as text: nothing is imported.
_PLACES = {
    "ai_edge_litert": "schema_py_generated.py",
    "tensorflow": "lite/python/schema_py_generated.py",
    "tflite": "*.py",
}
_SLOT = (
    r"def {table}Add(\w+)\(builder, ?\w+\):\s+"
    r"(?:return )?builder\.Prepend(\w+)Slot\((\d+), .*?, ([-\w.]+)\)\n"
)
_WORDS = {
    "Bool": "bool",
    "Int8": "byte",
    "Uint8": "ubyte",
    "Int32": "int",
    "Uint32": "uint",
    "Int64": "long",
    "Uint64": "ulong",
    "Float32": "float",
}


def generated(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    return "\n".join(path.read_text() for path in sorted(root.glob(_PLACES[package])))


def members(text: str, name: str) -> Mapping[str, int]:
    body = re.search(rf"class {name}\(object\):\n((?:    \w+ = -?\d+\n)+)", text)
    assert body, name
    return {word: int(number) for word, number in re.findall(r"(\w+) = (-?\d+)", body[1])}


@pytest.mark.parametrize("package", _PLACES)
def test_the_fields(package: str) -> None:
    text = generated(package)
    seen = 0
    for table, fields in schema.TABLES.items():
        slots = {
            int(slot): (name.lower(), kind, default)
            for name, kind, slot, default in re.findall(_SLOT.format(table=table), text)
        }
        for field in fields:
            if field.slot not in slots:  # younger than this copy
                assert field.slot >= len(slots), (table, field)
                continue
            name, kind, default = slots[field.slot]
            assert field.name.replace("_", "") == name, (table, field)
            if kind == "UOffsetTRelative":
                assert field.is_vector or field.element not in schema.SCALARS, (table, field)
                assert field.element in (*schema.SCALARS, *schema.TABLES, "string", "union")
            else:
                numbers = {"True": 1, "False": 0}
                stated = numbers[default] if default in numbers else float(default)
                assert field.kind == _WORDS[kind], (table, field)
                assert field.default == stated, (table, field)
            seen += 1
    assert seen > 110


@pytest.mark.parametrize("package", _PLACES)
def test_the_vectors_hold_what_is_said(package: str) -> None:
    text = generated(package)
    for table, fields in schema.TABLES.items():
        for field in fields:
            camel = "".join(word.capitalize() for word in field.name.split("_"))
            size = re.search(
                rf"def {table}Start{camel}Vector\(builder, ?\w+\):\s+"
                r"return builder\.StartVector\((\d+),",
                text,
            )
            if size is None:
                continue
            assert field.is_vector, (table, field)
            item = schema.SCALARS.get(field.element)
            assert int(size[1]) == (np.dtype(item).itemsize if item else 4), (table, field)


@pytest.mark.parametrize("package", _PLACES)
def test_the_enumerations(package: str) -> None:
    text = generated(package)
    for name, numbers in {
        "BuiltinOperator": schema.OPERATORS,
        "TensorType": schema.TENSOR_TYPES,
        "Padding": schema.PADDINGS,
        "ActivationFunctionType": schema.ACTIVATIONS,
        "BuiltinOptions": schema.OPTION_NUMBERS,
        "FullyConnectedOptionsWeightsFormat": schema.WEIGHTS_FORMATS,
    }.items():
        stated = members(text, name)
        known = {word: number for word, number in numbers.items() if word in stated}
        assert known == {word: stated[word] for word in known}, name
        assert all(
            number > max(stated.values()) for word, number in numbers.items() if word not in stated
        )


def test_the_table_is_whole() -> None:
    assert set(schema.OPTIONS.values()) == set(schema.OPTION_NUMBERS)
    assert set(schema.OPTION_NUMBERS) <= set(schema.TABLES)
    assert set(schema.OPTIONS) <= set(schema.OPERATORS)
    for table, fields in schema.TABLES.items():
        assert len({field.slot for field in fields}) == len(fields), table
