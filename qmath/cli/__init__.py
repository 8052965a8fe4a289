"""The ``qmath`` command: one module for each verb, each of which is also one Python call."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command line; without its dependencies, say in one line what to install."""
    missing = [name for name in ("click", "rich", "h5py") if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        print(
            f"qmath: error: {', '.join(missing)} {verb} not installed, which the command line "
            "needs: pip install 'qmath-tfmot[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from qmath.cli.app import app

    app()
