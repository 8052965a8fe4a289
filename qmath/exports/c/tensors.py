"""The tensors of a bundle in C: macros and declarations, definitions, and checks of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle, FloatTensor, QuantizedRange, Record
from qmath.exports.c import source
from qmath.exports.output.identifiers import Identifiers
from qmath.kernels.packing import LAYOUTS, pack
from qmath.kernels.quantized_tensor import QuantizedTensor

__all__ = ["PACKINGS", "CArray", "Code", "Names", "add_integers", "add_tensors", "check_prefix"]

BYTES = "bytes"
PACKINGS = (BYTES, *LAYOUTS)
_C_PACKING = {"lsb": "QM_LSB", "msb": "QM_MSB", "nibbles": "QM_LSB", "keras_int4": "QM_LSB",
              "words": "QM_WORDS"}  # fmt: skip
_SAMPLES = 8


@dataclass
class Code:
    """What is written to the files, piece by piece.

    Attributes
    ----------
    header, data : list of str
        Declarations and macros; definitions.
    tables, checks : list of str
        Of the self-check: what it expects, and its calls.
    sizes : dict of str to int
        The bytes of each array, by its key.
    """

    header: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def values(self, name: str, key: str, array: NDArray[Any], note: str = "") -> None:
        """Add an array of plain values, checked by its checksum."""
        stored = source.storable(array, key)
        self.header.append(f"extern {source.declaration(name, stored)};{note}")
        self.data.append(source.array(name, stored))
        self.sizes[key] = stored.nbytes
        self.checks.append(
            f"qm_check_values({source.string(key)}, {name}, sizeof *{name}, {stored.size}, "
            f"{source.checksum(stored)})"
        )


class CArray(NamedTuple):
    """Values, their width and sign; `as_int8` is for packed bytes that a function takes so."""

    values: NDArray[Any]
    num_bits: int
    signed: bool
    as_int8: bool = False


class Names:
    """Names in C, all with one prefix, each unlike all others.

    The arrays of a bundle have the identifiers that the manifest leads back to their keys.
    """

    def __init__(self, prefix: str, bundle: Bundle) -> None:
        self._prefix = prefix
        self._identifiers = Identifiers(bundle.keys())

    def __getitem__(self, key: str) -> str:
        """Return the name of an array."""
        return f"{self._prefix}_{self._identifiers[key]}"

    def __contains__(self, key: object) -> bool:
        return key in self._identifiers

    def new(self, wanted: str) -> str:
        """Return a further name."""
        return f"{self._prefix}_{self._identifiers.new(wanted)}"

    def of(self, key: str, what: str) -> str:
        """Return a further name that goes with that of an array, or with what else is called so."""
        return self.new(f"{self._identifiers.get(key, key)}_{what}")

    def macro(self, key: str, what: str) -> str:
        """Return the name of a macro, as `of`."""
        return self.of(key, what).upper()


def check_prefix(prefix: object) -> None:
    """Raise unless all names can begin so."""
    is_name = isinstance(prefix, str) and Identifiers([prefix])[prefix] == prefix
    if not is_name or str(prefix).lower().startswith("qm"):
        raise OutputError(
            f"prefix={prefix!r}: use letters, digits and single underscores, beginning with a "
            "letter, but not with qm; no reserved word"
        )


def add_tensors(code: Code, bundle: Bundle, names: Names, packing: str) -> dict[str, str]:
    """Add every tensor of a bundle.

    Returns
    -------
    dict of str to str
        By weight, the name of its ``qm_integers``.

    Raises
    ------
    OutputError
        There are weights, and none has a width that `packing` knows.
    """
    entries = bundle.manifest["tensors"]
    widths = {entry["num_bits"] for entry in entries.values() if entry["role"] == "weight"}
    if packing != BYTES and widths and not widths & {*LAYOUTS[packing].widths}:
        raise OutputError(
            f"the layout {packing!r} is for {LAYOUTS[packing].widths[0]} bits, and the weights "
            f"have {', '.join(map(str, sorted(widths)))}; use packing=lsb, or bytes"
        )
    views = {}
    for key, record in bundle.tensors.items():
        entry = entries[key]
        code.header.append(f"\n/* {source.plain(_title(key, record, entry))}. */")
        if isinstance(record, FloatTensor):
            code.values(names[key], key, np.asarray(record))
            continue
        macros: dict[str, object] = {"NUM_BITS": record.num_bits, "SIGNED": int(record.signed)}
        if isinstance(record, QuantizedTensor):
            integers = CArray(record.values, record.num_bits, record.signed)
            views[key] = add_integers(code, names, key, names[key], integers, packing)
            macros |= {
                "SIZE": record.values.size,
                "SHAPE": source.braces(record.values.shape),
                "CHANNELS": record.scale.size,
            }
        for what, value in macros.items():
            code.header.append(f"#define {names.macro(key, what)} {value}")
        _add_scale(code, key, record, names)
    return views


def _title(key: str, record: Record, entry: dict[str, Any]) -> str:
    if isinstance(record, FloatTensor):
        shape = "x".join(map(str, entry["shape"])) or "a scalar"
        return f"{key}: {shape}, left float"
    sign = "signed" if record.signed else "unsigned"
    words = [f"{entry['role']}, {record.num_bits} bits, {sign}"]
    if isinstance(record, QuantizedTensor):
        words.append("x".join(map(str, record.values.shape)) or "a scalar")
        words += [entry["layout"]] if entry["layout"] else []
        words += ["a scale for each index of axis " + str(record.axis)] * (record.axis is not None)
    return f"{key}: {', '.join(words)}"


def add_integers(
    code: Code, names: Names, key: str, name: str, record: CArray, packing: str
) -> str:
    """Add integers as the array `name`, and how they are packed; return the name of that."""
    values, bits = record.values, record.num_bits
    view = names.of(key, "integers")
    line = values.size
    if packing == BYTES or bits not in LAYOUTS[packing].widths:
        stored, kind, note = values, f"QM_INT{8 * values.itemsize}", "one to an element"
    else:
        stored, kind, note = pack(values, bits, packing), _C_PACKING[packing], f"packed: {packing}"
        line = values.shape[-1] if LAYOUTS[packing].axis is not None and values.ndim else line
        if record.as_int8:
            stored = stored.view(np.int8)
    code.header.append(f"extern {source.declaration(name, stored)}; /* {note} */")
    code.header.append(f"extern const qm_integers {view};")
    code.data.append(source.array(name, stored))
    code.sizes[key] = stored.nbytes
    code.data.append(
        f"const qm_integers {view} = {{\n"
        f"    {name}, {values.size}, {max(line, 1)}, {kind}, {bits}, {int(record.signed)}\n}};\n"
    )
    samples, count = names.of(key, "samples"), min(_SAMPLES, values.size)
    places = np.linspace(0, values.size - 1, count).astype(np.int64)
    pairs = [source.braces((int(i), int(values.reshape(-1)[i]))) for i in places] or ["{0, 0}"]
    code.tables.append(f"static const qm_sample {samples}[] = {source.braces(pairs)};")
    code.checks.append(
        f"qm_check_integers({source.string(key)}, &{view}, "
        f"{source.checksum(values.astype(np.int32))}, {samples}, {count})"
    )
    return view


def _add_scale(
    code: Code, key: str, record: QuantizedTensor | QuantizedRange, names: Names
) -> None:
    """Add scale and zero point: macros where there is one of each, else arrays."""
    for part, array in (("scale", record.scale), ("zero_point", record.zero_point)):
        name = names[f"{key}.{part}"]
        if array.ndim:
            code.values(name, f"{key}.{part}", array)
            continue
        code.header.append(f"#define {name.upper()} {source.literals(array)[0]}")
        value = f"qm_bits({name.upper()})" if part == "scale" else f"(uint32_t){name.upper()}"
        code.checks.append(
            f'qm_report({source.string(f"{key}.{part}")}, "the value", {value}, '
            f"0x{array.view(np.uint32).item():08x}u)"
        )
