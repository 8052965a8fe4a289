"""The group of verbs, and how errors, warnings and interruptions end."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from qmath import QmathError, QmathWarning
from qmath._version import __version__
from qmath.cli.text import printable

__all__ = ["app"]

_VERBS = ("inspect", "run", "diff", "export", "verify", "recover")  # each in a module of its name
_BROKEN_PIPE = 128 + 13  # as a shell reports a program that SIGPIPE ended
_INTERRUPTED = 128 + 2


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
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name may not fit the stream's encoding
                stream.reconfigure(errors="backslashreplace")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", QmathWarning)
                warnings.showwarning = _show_warning
                status = super().main(args, **extra)
        except click.UsageError as error:
            verb = error.ctx.command_path if error.ctx else "qmath"
            _fail(f"{error.format_message().rstrip('.')}; see {verb} --help")
        except click.ClickException as error:
            _fail(error.format_message())
        except click.Abort:
            sys.exit(_INTERRUPTED)
        except QmathError as error:
            _fail(str(error))
        except MemoryError:
            _fail("out of memory; a tensor of the model does not fit")
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader, such as `head`, has gone: let the flush at exit go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_BROKEN_PIPE)
        return result


def _fail(message: str) -> NoReturn:
    click.echo(f"qmath: error: {printable(message)}", err=True)
    sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"qmath: warning: {printable(str(message))}", err=True)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="qmath VERB --help shows the options of a verb, and an example.",
)
@click.version_option(__version__, prog_name="qmath")
def app() -> None:
    """Exact integers from TensorFlow quantization-aware training, without TensorFlow."""
