"""The table of a checkpoint's index: nothing it claims is believed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from qmath.containers.sorted_table import MAGIC, read_table
from qmath.errors import FileFormatError, MissingExtraError

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")

from tests.containers.bundles import GOLDEN, block, record, stored, table, varint

INDEXES = sorted(GOLDEN.glob("*/*.index"))


def test_keys_share_what_they_have_in_common() -> None:
    raw = record(b"abc", b"1") + record(b"d", b"2", shared=2) + record(b"", b"", shared=3, own=0)
    raw = raw[: -len(record(b"", b"", shared=3, own=0))] + record(b"e", b"", shared=1)
    data = table([stored(block(raw=raw)), stored(block([(b"b", b"4")]))])
    assert read_table(data, "") == {b"abc": b"1", b"abd": b"2", b"ae": b"", b"b": b"4"}


def test_an_empty_table() -> None:
    assert read_table(table([]), "") == {}


@pytest.mark.parametrize("path", INDEXES, ids=lambda path: path.parent.name)
def test_tensorflows_tables_cut_anywhere(path: object) -> None:
    data = path.read_bytes()
    assert read_table(data, "")
    for end in range(len(data)):
        with pytest.raises(FileFormatError):
            read_table(data[:end], "file.index")


@pytest.mark.parametrize("path", INDEXES, ids=lambda path: path.parent.name)
def test_tensorflows_tables_with_any_byte_changed(path: object) -> None:
    data = path.read_bytes()
    whole, unnoticed = read_table(data, ""), 0
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            try:
                assert read_table(damaged, "") == whole
                unnoticed += 1
            except FileFormatError:
                pass
    # The metaindex, which is not read, and the footer's padding.
    assert unnoticed <= 3 * (13 + 40)


def _same_block_twice() -> bytes:
    data = stored(block([(b"a", b"1")]))
    return table([data], [(0, len(data) - 5)] * 2)


def _empty_block_many_times() -> bytes:
    data = stored(block(raw=b"", restarts=bytes(1 << 20) + (1 << 18).to_bytes(4, "little")))
    return table([data], [(0, len(data) - 5)] * 3_000)


def _keys_from_nothing() -> bytes:
    raw = record(b"k" * 50_000, b"")
    raw += b"".join(record(bytes([i]), b"", shared=49_999) for i in range(ord("l"), 255))
    return table([stored(block(raw=raw))])


def _raw(*records: bytes, restarts: bytes | None = None) -> bytes:
    return table([stored(block(raw=b"".join(records), restarts=restarts))])


def _flipped() -> bytes:
    data = table([stored(block([(b"a", b"1")]))])
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: b"", "no table"),
        (lambda: bytes(47), "no table"),
        (lambda: bytes(100), "no table"),
        (lambda: b"\xff" * 40 + MAGIC, "no end"),
        (lambda: bytes(40) + MAGIC, "checksum"),
        (lambda: b"\0\0" + varint(1 << 62) * 2 + bytes(20) + MAGIC, "outside"),
        (lambda: table([], [(0, 1 << 40)]), "outside"),
        (lambda: table([], [(1 << 63, 0)]), "outside"),
        (_same_block_twice, "not in order"),
        (_empty_block_many_times, "over another"),
        (_keys_from_nothing, "far longer"),
        (_flipped, "checksum of the block at byte 0"),
        (lambda: table([stored(block(), kind=1)]), r"compressed \(Snappy\)"),
        (lambda: table([stored(block(), kind=7)]), r"compressed \(method 7\)"),
        (lambda: table([stored(b"\0\0")]), "too short"),
        (lambda: _raw(restarts=b"\xff\xff\xff\xff"), "restarts"),
        (lambda: _raw(record(b"a", b""), record(b"a", b"")), "not in order"),
        (lambda: _raw(record(b"b", b""), record(b"a", b"")), "not in order"),
        (lambda: _raw(record(b"a", b"", shared=1)), "longer than its block"),
        (lambda: _raw(record(b"a", b"", own=1 << 60)), "longer than its block"),
        (lambda: _raw(b"\0\x01\xff\xff\xff\xff\x0f" + b"a"), "longer than its block"),
        (lambda: _raw(b"\xff" * 11), "no end"),
        (lambda: _raw(b"\x80"), "longer than its block"),
        (lambda: table([], index=stored(block([(b"a", b"\x80")]))), "no end"),
        (lambda: table([], index=stored(block([(b"a", b"")]))), "no end"),
    ],
)
def test_hostile_tables_are_refused(build: Callable[[], bytes], message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        read_table(build(), "file.index")
    assert str(caught.value).startswith("file.index: ")


def test_without_google_crc32c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(MissingExtraError, match=r"qmath-tfmot\[checkpoints\]"):
        read_table(table([]), "file.index")
