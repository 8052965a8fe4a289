"""Any path that means a TensorFlow checkpoint → the prefix of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from qmath._text import is_plain
from qmath.containers.protos import parse_text
from qmath.errors import FileFormatError

__all__ = ["checkpoint_prefix"]

_INDEX = ".index"
_STATE = "checkpoint"
_MAX_STATE_BYTES = 1 << 18


def checkpoint_prefix(path: str) -> str:
    """Return the prefix that the files of a checkpoint share.

    Parameters
    ----------
    path : str
        The prefix itself, the index, or the directory they lie in. If a directory
        holds several checkpoints, its file ``checkpoint`` names the one that is meant.

    Raises
    ------
    FileFormatError
        There is no checkpoint, or several of which none is named.
    """
    if os.path.isfile(path):
        if path.endswith(_INDEX):
            return path.removesuffix(_INDEX)
        raise FileFormatError(
            f"{path}: this is a checkpoint in the single file of TensorFlow 1 (V1), or an index "
            f"that lost its suffix .index; qmath reads what tf.train.Checkpoint saves"
        )
    if not os.path.isdir(path):
        return path
    try:
        entries = os.listdir(path)
    except OSError as error:
        raise FileFormatError(f"{path}: it cannot be read ({error.strerror})") from None
    names = sorted(entry.removesuffix(_INDEX) for entry in entries if entry.endswith(_INDEX))
    state = os.path.join(path, _STATE)
    chosen = _latest(state) if os.path.isfile(state) else None
    if chosen is None and len(names) == 1:
        chosen = names[0]
    if chosen is None or chosen not in names:
        why = "holds several checkpoints" if names else "holds no checkpoint"
        if chosen is not None:
            why = f"lacks {chosen!r}, which its file {_STATE!r} names"
        raise FileFormatError(
            f"{path}: this directory {why}; name one of those there: {_choices(path, names)}"
        )
    return os.path.join(path, chosen)


def _choices(path: str, names: Sequence[str]) -> str:
    """List the checkpoints that can be named in a shell as they are, and count the others."""
    shown = [os.path.join(path, name) if is_plain(path) else name for name in names]
    choices = [name for name in shown if is_plain(name)]
    if len(choices) < len(names):
        choices.append(f"{len(names) - len(choices)} whose names a shell could read otherwise")
    return ", ".join(choices) or "none"


def _latest(path: str) -> str | None:
    """Return the name of the checkpoint that the text file names, without its directory.

    The directory is that of the machine which trained, or an attacker's choice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_STATE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: it cannot be read ({error})") from None
    state = parse_text("CheckpointState", text, path)
    return re.split(r"[/\\]", state.model_checkpoint_path)[-1] or None
