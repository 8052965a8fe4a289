"""How signals end the command line: unwound, so that nothing unfinished is left behind.

A library must not take its caller's handlers, so only the command line has these.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from qmath.exports.output.temporary import remove_unfinished

__all__ = ["unwinding"]

_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGINT raise `KeyboardInterrupt` in the block, SIGTERM and SIGHUP `SystemExit`.

    The status of the latter is 128 + the signal's number.

    What is ignored, as under ``nohup``, stays so. However often the block is interrupted, its
    cleanup included, temporaries of outputs are removed before the handlers of before are back.
    """
    if threading.current_thread() is not threading.main_thread():  # which no signal reaches
        yield
        return
    before = {
        number: handler
        for number in _ENDING
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    try:
        for number in before:
            signal.signal(number, _end)
        yield
    finally:
        try:
            for number in before:  # the removal of a folder takes many calls
                signal.signal(number, signal.SIG_IGN)
        finally:
            remove_unfinished()
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
