"""Change what a file says, so that it is still a file of its kind: JSON, protobuf, HDF5.

Fields are left out, swapped, repeated, typed wrongly, nested, or given numbers that are huge,
negative or none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, ItemsView, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reference.damage import EXTREMES, mutate

__all__ = ["alter_hdf5", "alter_json", "alter_message", "alter_values", "pick"]

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 17, 255, 2**15, 2**31, 2**63, 2**64, 10**30, 10**300, 1e308, 1e-45, -0.5,
    0.5, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
TEXTS = (
    "", "x", "a/b", "../x", "\x1b[2J", "'$(touch x)'", "kernel", "bias", "linear", "relu",
    "softmax", "same", "causal", "channels_first", "Dense", "Conv2D", "Reshape", "LSTM",
    "Functional", "Sequential", "QuantizeWrapperV2", "QuantizeLayer", "LastValueQuantizer",
    "Lambda", "\ud800", "x" * 5000,
)  # fmt: skip
ODDITIES: tuple[Any, ...] = (
    None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [None], [0, 0], [-1, 2**40],
    {"class_name": "Dense", "config": {}}, {"config": None}, {"class_name": 3, "config": []},
)  # fmt: skip
DEEPEST = 300


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """Return one of a sequence."""
    return choices[rng.integers(len(choices))]


# ---- JSON


class _Twice(dict[str, Any]):
    """An object one key of which is written twice, with two values."""

    def items(self) -> ItemsView[str, Any]:
        """Return the pairs, and one more."""
        pairs = [*dict.items(self)]
        return [*pairs, (pairs[0][0], pairs[-1][1])]  # type: ignore[return-value]


def alter_json(rng: np.random.Generator, data: bytes) -> bytes:
    """Change values of a JSON text; seldom damage the text itself."""
    if rng.random() < 0.1:
        return mutate(rng, data)
    value = [json.loads(data)]
    for _ in range(1 + (rng.random() < 0.4) + (rng.random() < 0.2)):
        holders = list(_holders(value))
        holder = pick(rng, holders)
        key = pick(rng, list(holder) if isinstance(holder, dict) else range(len(holder)))
        pick(rng, JSON_KINDS)(rng, holder, key, holders)
        if not value:
            break
    return json.dumps(value[0] if value else None).encode()


def _holders(value: Any) -> Iterator[Any]:
    """Yield the objects and arrays in a value that are not empty."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for item in dict.values(value) if isinstance(value, dict) else value:
            yield from _holders(item)


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _leave_out(_: np.random.Generator, holder: Any, key: Any, __: list[Any]) -> None:
    del holder[key]


def _odd(rng: np.random.Generator, holder: Any, key: Any, _: list[Any]) -> None:
    old, choices = holder[key], ODDITIES
    if isinstance(old, (int, float)) and rng.random() < 0.7:
        choices = (*NUMBERS, -old, old + 1, old * 2)
    elif isinstance(old, str) and rng.random() < 0.7:
        choices = (*TEXTS, old + "x", old[1:])
    holder[key] = _copy(pick(rng, choices))


def _mistype(rng: np.random.Generator, holder: Any, key: Any, _: list[Any]) -> None:
    old = holder[key]
    if isinstance(old, dict):
        holder[key] = pick(rng, [list(old), list(old.values()), str(list(old))])
    elif isinstance(old, list):
        holder[key] = pick(rng, [{str(i): x for i, x in enumerate(old)}, old[:1], old * 3, "[]"])
    else:
        holder[key] = pick(rng, [[old], {"value": old}, str(old), not old])


def _nest(rng: np.random.Generator, holder: Any, key: Any, _: list[Any]) -> None:
    wrap: Callable[[Any], Any] = pick(
        rng,
        [lambda x: [x], lambda x: {"config": x}, lambda x: {"class_name": "Dense", "config": x}],
    )
    for _level in range(int(rng.choice([1, 2, 20, DEEPEST]))):
        holder[key] = wrap(holder[key])


def _repeat(rng: np.random.Generator, holder: Any, key: Any, holders: list[Any]) -> None:
    if isinstance(holder, list):
        for _ in range(int(rng.choice([1, 1, 1, 50]))):
            holder.insert(int(rng.integers(len(holder) + 1)), _copy(holder[key]))
        return
    twice = _Twice(holder)
    for other in holders:
        for place in list(other) if isinstance(other, dict) else range(len(other)):
            if other[place] is holder:
                other[place] = twice


def _swap(rng: np.random.Generator, holder: Any, key: Any, holders: list[Any]) -> None:
    """Take what stands at this place in another object or array."""
    same = [h for h in holders if type(h) is type(holder) and h is not holder]
    if isinstance(holder, dict):
        same = [h for h in same if key in h] or same
    if same:
        other = pick(rng, same)
        there = key if isinstance(other, dict) and key in other else None
        if there is None:
            there = pick(rng, list(other) if isinstance(other, dict) else range(len(other)))
        holder[key], other[there] = _copy(other[there]), _copy(holder[key])


def _rename(rng: np.random.Generator, holder: Any, key: Any, holders: list[Any]) -> None:
    if isinstance(holder, dict):
        holder[
            str(pick(rng, [*TEXTS, *(k for h in holders if isinstance(h, dict) for k in h)]))
        ] = holder.pop(key)
    else:
        holder.reverse()


JSON_KINDS = (_leave_out, _odd, _odd, _odd, _mistype, _nest, _repeat, _swap, _swap, _rename)


# ---- protobuf


def alter_message(rng: np.random.Generator, message: Any) -> None:
    """Change fields of a message, somewhere in it."""
    for _ in range(1 + (rng.random() < 0.4) + (rng.random() < 0.2)):
        _alter_field(rng, message)


def _alter_field(rng: np.random.Generator, message: Any) -> None:
    """Go down to a field, and change it."""
    while True:
        present = message.ListFields()
        if not present or rng.random() < 0.05:
            return _set(rng, message, pick(rng, message.DESCRIPTOR.fields).name)
        field, value = pick(rng, present)
        stays = rng.random() < 0.15
        if hasattr(value, "keys"):
            items = list(value.values())
            if stays or not hasattr(items[0], "ListFields"):
                return _alter_map(rng, value)
            message = pick(rng, items)
        elif hasattr(value, "extend"):
            if stays or not hasattr(value[0], "ListFields"):
                return _alter_repeated(rng, value)
            message = pick(rng, value)
        elif not hasattr(value, "ListFields"):
            return _set(rng, message, field.name)
        elif stays:
            return message.ClearField(field.name)
        else:
            message = value


def _set(rng: np.random.Generator, message: Any, name: str) -> None:
    """Change a scalar; leave other fields out."""
    old = getattr(message, name)
    if not isinstance(old, (bool, int, float, str, bytes)):
        message.ClearField(name)
        return
    for _ in range(10):  # a number may not fit
        with suppress(ValueError, TypeError, UnicodeEncodeError):
            setattr(message, name, _other(rng, old))
            return


def _other(rng: np.random.Generator, old: Any) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, bytes):
        return mutate(rng, old) if old and rng.random() < 0.8 else pick(rng, [b"", b"valid", b"x"])
    if isinstance(old, str):
        if old.startswith("{") and rng.random() < 0.9:
            return alter_json(rng, old.encode()).decode("utf-8", "replace")
        return pick(rng, [*TEXTS, old + "x", old[1:], old[: len(old) // 2], old + ":1", "^" + old])
    if isinstance(old, int):
        return pick(rng, [*EXTREMES, -1, old + 1, old - 1, *range(3, 26)])
    return float(pick(rng, NUMBERS[-6:]))


def _alter_repeated(rng: np.random.Generator, values: Any) -> None:
    kind, at, other = rng.integers(4), *(int(rng.integers(len(values))) for _ in range(2))
    is_message = hasattr(values[0], "ListFields")
    if kind == 0:
        del values[at]
    elif kind == 1:
        values.append(values[at])
    elif is_message:
        values[at].CopyFrom(values[other])
    elif kind == 2:
        values[at] = values[other]
    else:
        with suppress(ValueError, TypeError):
            values[at] = _other(rng, values[at])


def _alter_map(rng: np.random.Generator, values: Any) -> None:
    kind, (key, other) = rng.integers(3), (pick(rng, list(values)) for _ in range(2))
    name = pick(rng, [other, *TEXTS[:-2], "T", "shape", "axis", "value"])
    if hasattr(values[key], "ListFields"):
        held = type(values[key])()
        held.CopyFrom(values[key])
        if kind == 0:
            del values[key]
        elif kind == 1:
            values[name].CopyFrom(held)
        else:
            held.CopyFrom(values[other])
            values[key].CopyFrom(held)
    elif kind == 0:
        del values[key]
    else:
        with suppress(ValueError, TypeError):  # what is no text of a message, say
            values[name if kind == 1 else key] = _other(rng, values[key])


# ---- HDF5


def alter_hdf5(rng: np.random.Generator, path: Path) -> None:
    """Change attributes, datasets and links of a file."""
    with h5py.File(path, "r+") as file:
        for _ in range(1 + (rng.random() < 0.3)):
            groups: list[Any] = [file]
            datasets: list[str] = []

            def note(
                name: str, item: Any, groups: list[Any] = groups, datasets: list[str] = datasets
            ) -> None:
                groups.append(item) if isinstance(item, h5py.Group) else datasets.append(name)

            file.visititems(note)
            config = [g for g in groups if any(k.endswith("_config") for k in g.attrs)]
            draw = rng.random()
            with suppress(ValueError, KeyError, TypeError, OSError, RuntimeError):
                if config and draw < 0.5:
                    group = pick(rng, config)
                    _alter_text(rng, group, pick(rng, [k for k in group.attrs if "_config" in k]))
                elif draw < 0.7 and (named := [g for g in groups if len(g.attrs)]):
                    group = pick(rng, named)
                    _alter_attribute(rng, group, pick(rng, list(group.attrs)), named)
                elif draw < 0.93 and datasets:
                    _alter_dataset(rng, file, pick(rng, datasets), datasets)
                else:
                    _alter_link(rng, file, pick(rng, [*datasets, *(g.name for g in groups[1:])]))


def _alter_text(rng: np.random.Generator, group: Any, key: str) -> None:
    text = group.attrs[key]
    text = text if isinstance(text, bytes) else str(text).encode()
    group.attrs[key] = alter_json(rng, text).decode("latin-1")


def _alter_attribute(rng: np.random.Generator, group: Any, key: str, others: list[Any]) -> None:
    values, kind = group.attrs[key], rng.integers(7)
    if kind == 0:
        del group.attrs[key]
    elif kind == 1:
        group.attrs[key] = pick(rng, [3, 0.5, np.zeros((2, 0)), "text", np.arange(5), b"\xff"])
    elif kind == 2:
        donor = pick(rng, others)
        group.attrs[key] = donor.attrs[pick(rng, list(donor.attrs))]
    elif kind == 3:
        group.attrs[pick(rng, [f"{key}0", f"{key}1", "layer_names", "weight_names"])] = values
    elif not np.size(values) or not np.shape(values):
        group.attrs[key] = pick(rng, TEXTS)
    else:
        names = [n if isinstance(n, bytes) else str(n).encode() for n in np.ravel(values)]
        at = int(rng.integers(len(names)))
        if kind == 4:
            names[at:] = names[at + 1 :]
        elif kind == 5:
            names.insert(0, pick(rng, names))
        else:
            names[at] = pick(
                rng, [b"x", b"a/b", names[at] + b"x", names[at].replace(b"quant_", b"")]
            )
        group.attrs[key] = names


@np.errstate(all="ignore")
def alter_values(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Return other numbers, perhaps of another dtype or shape."""
    kind = rng.integers(6)
    if kind == 0:
        return values.astype(pick(rng, ["f2", "f8", ">f4", "i4", "u1", "i8", "?", "S3", "c8"]))
    if kind == 1:
        shape = pick(rng, [values.shape[::-1], (), (0,), (1, *values.shape), values.shape[1:]])
        return np.resize(values, shape)
    if kind == 2:
        return np.concatenate([np.atleast_1d(values)] * 2)
    flat = np.array(values, "f4").ravel()
    some = flat[int(rng.integers(flat.size)) :] if flat.size else flat
    if kind == 3 and some.size:
        some[0] = pick(rng, NUMBERS[-6:])
    elif kind == 4:
        some[:] = pick(rng, [0.0, -0.0, 1e-45, 1e38, -6.0])
    else:
        some *= -1
    return flat.reshape(values.shape)


def _alter_dataset(rng: np.random.Generator, file: Any, name: str, names: list[str]) -> None:
    kind, values = rng.integers(6), file[name][()]
    if kind == 0:
        del file[name]
    elif kind == 1:
        other = pick(rng, names)
        taken = file[other][()]
        del file[name]
        file[name] = taken
    elif kind == 2:
        file[pick(rng, [f"{name}x", f"{name.rpartition('/')[0]}/vars/7", "x"])] = file[name]
    else:
        new = alter_values(rng, np.asarray(values))
        options: dict[str, Any] = {}
        if new.ndim and new.size and rng.random() < 0.3:
            options = pick(
                rng,
                [
                    {"chunks": True},
                    {"compression": "gzip", "shuffle": True},
                    {"compression": "lzf"},
                ],
            )
        del file[name]
        file.create_dataset(name, data=new, **options)


def _alter_link(rng: np.random.Generator, file: Any, name: str) -> None:
    kind = rng.integers(4)
    parent, _, leaf = name.rpartition("/")
    if kind == 0:
        file.move(name, f"{parent}/{pick(rng, ['x', leaf + '_1', leaf.replace('quant_', '')])}")
        return
    del file[name]
    if kind == 1:
        file[name] = h5py.SoftLink(pick(rng, ["/", "/x", parent or "/"]))
    elif kind == 2:
        file[name] = h5py.ExternalLink("other.h5", "/")
    else:
        file.create_group(name)
