"""Every path that means a checkpoint, and the text file that names the latest."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmath.containers.checkpoint_paths import checkpoint_prefix
from qmath.errors import FileFormatError

pytest.importorskip("google.protobuf")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def state(folder: Path, text: str) -> None:
    (folder / "checkpoint").write_text(text, encoding="utf-8")


def test_prefix_index_and_directory(tmp_path: Path) -> None:
    touch(tmp_path, "ckpt-1.index", "ckpt-1.data-00000-of-00001")
    prefix = str(tmp_path / "ckpt-1")
    assert checkpoint_prefix(prefix) == prefix
    assert checkpoint_prefix(f"{prefix}.index") == prefix
    assert checkpoint_prefix(str(tmp_path)) == prefix


@pytest.mark.parametrize(
    "path",
    [
        "ckpt-2", "./ckpt-2", "/home/someone/else/ckpt-2", "../../etc/ckpt-2",
        "C:\\\\models\\\\ckpt-2", "gs://bucket/run/ckpt-2",
    ],
)  # fmt: skip
def test_only_the_name_of_the_latest_counts(tmp_path: Path, path: str) -> None:
    touch(tmp_path, "ckpt-1.index", "ckpt-2.index")
    state(
        tmp_path,
        f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "ckpt-1"\n'
        "all_model_checkpoint_timestamps: 1.5\nlast_preserved_timestamp: 1.0\n",
    )
    assert checkpoint_prefix(str(tmp_path)) == str(tmp_path / "ckpt-2")


def test_names_are_unescaped(tmp_path: Path) -> None:
    touch(tmp_path, "größe.index", "other.index")
    state(tmp_path, r'model_checkpoint_path: "gr\303\266\303\237e"')
    assert checkpoint_prefix(str(tmp_path)) == str(tmp_path / "größe")


@pytest.mark.parametrize("text", ["", 'model_checkpoint_path: ""', 'model_checkpoint_path: "a/"'])
def test_without_a_name_the_only_one_is_meant(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "ckpt.index")
    state(tmp_path, text)
    assert checkpoint_prefix(str(tmp_path)) == str(tmp_path / "ckpt")


def test_choices_are_listed(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds no checkpoint; name one of those there: none"):
        checkpoint_prefix(str(tmp_path))
    touch(tmp_path, "a.index", "b.index")
    with pytest.raises(FileFormatError, match=r"holds several checkpoints; .*a, .*b$"):
        checkpoint_prefix(str(tmp_path))
    state(tmp_path, 'model_checkpoint_path: "../../c"')
    with pytest.raises(FileFormatError, match=r"lacks 'c', which its file .* names; .*a, "):
        checkpoint_prefix(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "model_checkpoint_path: ckpt",
        'model_checkpoint_path: "ckpt',
        'model_checkpoint_path: "ckpt" model_checkpoint_path: "other"',
        'no_such_field: "\x1b[2J"',
        "import os",
        'model_checkpoint_path: "\\377"',
        "a { " * 10_000,
        "all_model_checkpoint_timestamps: 1\n" * 100_000,
    ],
)
def test_texts_that_tensorflow_did_not_write(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "ckpt.index")
    state(tmp_path, text)
    with pytest.raises(FileFormatError, match="CheckpointState") as caught:
        checkpoint_prefix(str(tmp_path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    touch(tmp_path, "ckpt.index")
    (tmp_path / "checkpoint").write_bytes(b'model_checkpoint_path: "\xff"')
    with pytest.raises(FileFormatError, match="it cannot be read"):
        checkpoint_prefix(str(tmp_path))


def test_a_file_of_another_name(tmp_path: Path) -> None:
    touch(tmp_path, "model.ckpt")
    with pytest.raises(FileFormatError, match=r"single file of TensorFlow 1 \(V1\), or an index"):
        checkpoint_prefix(str(tmp_path / "model.ckpt"))


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(FileFormatError, match=r"it cannot be read \(Permission denied\)"):
        checkpoint_prefix(str(tmp_path))
