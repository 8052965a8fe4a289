"""The ``qmath`` command: one module for each verb, each of which is also one Python call."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from importlib.util import find_spec
from typing import NoReturn

__all__ = ["main"]

_YOUNGEST = 200_000  # objects made since Python last looked for garbage


def main() -> None:
    """Run the command line; without its dependencies, say in one line what to install.

    Whatever happens ends in one line, and with no exit status that means something else.
    """
    try:
        _run()
    except KeyboardInterrupt:  # while modules are imported, or standard output is written
        from qmath.cli import streams

        streams.discard(sys.stdout)
        sys.exit(streams.failed("interrupted", streams.INTERRUPTED, as_json=False))
    except Exception as error:
        _end(error)


def _run() -> None:
    from qmath.cli import streams

    streams.occupy()
    # Nearly all that is imported and read lives to the end. To look through it again and again,
    # and once more before it is freed, is a tenth of an export's time.
    gc.set_threshold(_YOUNGEST)
    atexit.register(gc.freeze)
    missing = [name for name in ("click", "rich", "h5py") if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        message = (
            f"{', '.join(missing)} {verb} not installed, which the command line needs: "
            "pip install 'qmath-tfmot[cli]'"
        )
        sys.exit(streams.failed(message, as_json="--json" in sys.argv[1:]))
    from qmath.cli.app import app

    app()


def _end(error: Exception) -> NoReturn:
    """End for an exception that no verb expects, which is a bug."""
    from qmath.cli import streams

    if os.environ.get("QMATH_DEBUG") and sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.excepthook(type(error), error, error.__traceback__)
    message = (
        f"{type(error).__name__}: {error}; this is a bug of qmath: report it with the traceback "
        "that it prints with QMATH_DEBUG=1 in the environment"
    )
    held = streams.Held(sys.stdout)
    with contextlib.redirect_stdout(held):
        status = streams.failed(message, as_json="--json" in sys.argv[1:])
    sys.exit(held.release(status))
