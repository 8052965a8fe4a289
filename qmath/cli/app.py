"""The group of verbs, and how errors and interruptions end."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from qmath import QmathError
from qmath._version import __version__
from qmath.cli.results import reason
from qmath.cli.signals import unwinding
from qmath.cli.streams import INTERRUPTED, Held, failed

__all__ = ["app"]

# Each in a module of its name.
_VERBS = ("inspect", "run", "diff", "export", "verify", "recover", "vectors")


class _Verbs(click.Group):
    """A group whose errors are one line on stderr and exit status 2.

    A verb's module is imported when the verb is used, because each takes time to import.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # For an unknown verb, load them all so that click can suggest one.
        for verb in [cmd_name] if cmd_name in _VERBS else _VERBS:
            self.add_command(getattr(import_module(f"qmath.cli.{verb}"), verb))
        return super().get_command(ctx, cmd_name)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, **extra: Any
    ) -> NoReturn:
        extra |= {"standalone_mode": False, "prog_name": "qmath"}
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        if isinstance(sys.stderr, io.TextIOWrapper):  # whose encoding a name may not fit
            sys.stderr.reconfigure(errors="backslashreplace")
        held = Held(sys.stdout)
        with contextlib.redirect_stdout(held):
            status = self._status(args, extra)
        sys.exit(held.release(status))

    def _status(self, args: list[str], extra: dict[str, Any]) -> int:
        """Do as `args` say; return the exit status, after one line if it is an error's."""
        fail = functools.partial(failed, as_json="--json" in args)
        try:
            with unwinding():
                status = super().main(args, **extra)
        except SystemExit as done:  # a signal's, or click's completion in shells
            status = done.code
        except click.UsageError as error:
            verb = error.ctx.command_path if error.ctx else "qmath"
            return fail(f"{error.format_message().rstrip('.')}; see {verb} --help")
        except click.ClickException as error:
            return fail(error.format_message())
        except click.Abort:
            return fail("interrupted", INTERRUPTED)
        except (QmathError, MemoryError) as error:
            return fail(reason(error))
        return status if isinstance(status, int) else 0

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # for which click would print an empty line, too
            raise click.Abort from None


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="qmath VERB --help shows the options of a verb, and an example. Exit status: 0 done or "
    "equal, 1 something differs, 2 an error, 130 interrupted, 141 nobody reads the output.",
)
@click.version_option(__version__, prog_name="qmath")
def app() -> None:
    """Exact integers from TensorFlow quantization-aware training, without TensorFlow."""
