"""What every verb shares: a result for each model, as text or JSON, and an exit status."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from qmath.cli.streams import DIFFERS, ERROR, Held, complain, document, dumps
from qmath.cli.text import QUIET, count, is_quiet, printable
from qmath.errors import QmathError, QmathWarning

__all__ = ["Result", "Verb", "each", "reason"]

_WORDS = {0: "ok", DIFFERS: "differs", ERROR: "error"}


class Result(NamedTuple):
    """What a verb found of one model.

    Attributes
    ----------
    document : dict
        JSON values: the fields that results.schema.json has for the verb.
    summary : str
        A few words, for a line among those of other models.
    differs : bool
        Whether what was compared differs.
    """

    document: dict[str, Any]
    summary: str
    differs: bool = False

    @property
    def status(self) -> int:
        """The exit status that it means."""
        return ERROR if "error" in self.document else DIFFERS * self.differs


class Verb(click.Command):
    """A command whose function returns a `Result`, or a list of those of several models.

    What the function prints is for a person: ``--json`` prints the results in its place, and
    ``--quiet`` nothing.
    """

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params += [
            click.Option(
                ["--json", "as_json"], is_flag=True, help="Print the result as one JSON document."
            ),
            click.Option(
                ["-q", "--quiet"],
                is_flag=True,
                help="Print errors alone, and what --json asks for.",
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an error names this verb, and of two arguments the one that is missing.

        Where MODEL... is followed by another, click takes one alone for the latter.
        """
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            last = next((p for p in reversed(self.params) if p.param_type_name == "argument"), None)
            if last is not None and error.param is not last:
                values, *_ = self.make_parser(ctx).parse_args(given)
                if isinstance(values.get(last.name or ""), str):
                    error.param = last
            raise
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: click.Context) -> int:
        """Call the function and print its results; return the exit status."""
        as_json, quiet = ctx.params.pop("as_json"), ctx.params.pop("quiet")
        ctx.meta[QUIET] = quiet
        call = super().invoke
        if as_json or quiet:
            with contextlib.redirect_stdout(Held()):
                found = _heard(lambda: call(ctx))
        else:
            found = _heard(lambda: call(ctx))
        results = found if isinstance(found, list) else [found]
        status: int = max(result.status for result in results)
        if as_json:
            documents = [self._document(result) for result in results]
            whole = document("models", status, {"models": documents})
            click.echo(dumps(whole if isinstance(found, list) else documents[0]))
        elif isinstance(found, list) and not quiet:
            _summarize(found)
        return status

    def _document(self, result: Result) -> dict[str, Any]:
        """Return the document of one result, whose notes a person gets on standard error."""
        for note in () if is_quiet() else result.document.get("notes", ()):
            complain(f"note: {note}")
        if result.status == ERROR:
            return document("error", ERROR, result.document)
        return document(str(self.name), result.status, {"notes": [], **result.document})


def each(calls: Iterable[tuple[Path, Callable[[], Result]]]) -> list[Result]:
    """Return the result of each model, of which an error does not stop the others."""
    results: list[Result] = []
    for path, call in calls:
        click.echo(f"{'' if not results else chr(10)}==> {printable(str(path))} <==")
        try:
            result = _heard(call)
        except (QmathError, MemoryError) as error:
            complain(f"error: {reason(error)}")
            result = Result({"source": str(path), "error": reason(error)}, "error")
        results.append(result._replace(summary=f"{path}: {result.summary}"))
    return results


def reason(error: Exception) -> str:
    """Return the words of an error that is no bug."""
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller model, fewer examples or fewer cases"
    return str(error)


def _summarize(results: Sequence[Result]) -> None:
    """Print how many models there are of each status, and a line for each."""
    numbers = Counter(result.status for result in results)
    words = ", ".join(
        f"{numbers[status]} {word}" for status, word in _WORDS.items() if numbers[status]
    )
    click.echo(f"\n{count(len(results), 'model')}: {words}")
    for result in results:
        click.echo(printable(result.summary))


def _heard(call: Callable[[], Any]) -> Any:
    """Call, with Python's warnings as lines, and as notes of the result if it is one."""
    heard: list[str] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        heard.append(str(message))
        if not is_quiet():
            complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", QmathWarning)
        warnings.showwarning = show
        found = call()
    if heard and isinstance(found, Result):
        notes = [*found.document.get("notes", ()), *heard]
        return found._replace(document=found.document | {"notes": notes})
    return found
