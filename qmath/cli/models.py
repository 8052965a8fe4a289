"""The argument MODEL of a verb: one model or several, how they are read, and their outputs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from qmath.cli.completion import builds, keys
from qmath.cli.results import each
from qmath.cli.settings import read_settings
from qmath.errors import QmathError

if TYPE_CHECKING:
    from qmath.exports.exporter import Exporter
    from qmath.kernels.builds import Build
    from qmath.model import QatModel

__all__ = ["ModelArgument", "model_argument", "suffix_of"]

_LOADING = ("quantizers", "settings", "force", "architecture", "isolate", "shapes", "build")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelArgument:
    """A model's file, with the options of `qmath.load` as they were given."""

    path: Path
    quantizers: tuple[str, ...]
    settings: Path | None
    force: bool
    architecture: Path | None
    isolate: bool
    shapes: tuple[str, ...] = ()
    build: str | None = None
    others: tuple[Path, ...] = ()  # the models beside which it was given

    @property
    def inputs(self) -> tuple[Path | None, ...]:
        """Every file that is read, which no output may replace."""
        return self.path, self.settings, self.architecture, *self.others

    def within(self, path: Path, suffix: str) -> Path:
        """Return `path`, or, for one of several models, the file of its name in that folder.

        Raises
        ------
        QmathError
            Another of these models would have the same.
        """
        if not self.others:
            return path
        found = path / f"{_name(self.path)}{suffix}"
        for other in self.others:
            if _name(other).casefold() == _name(self.path).casefold():  # as file systems may do
                raise QmathError(
                    f"{self.path}: {found} is as much that of {other}; give models of one name to "
                    "separate commands"
                )
        return found

    def placed(self, path: Path, suffix: str) -> Path:
        """Return where an output goes, see `within`; the folder is made if it is not there.

        It is removed again if nothing comes to be in it.
        """
        found = self.within(path, suffix)
        if not self.others or path.is_dir():
            return found
        failing = f"cannot make the folder {path}, for the outputs of several models"
        if suffix and path.suffix == suffix:
            raise QmathError(f"{failing}: it has the name of one output; give that of a folder")
        try:
            path.mkdir()
        except OSError as error:
            raise QmathError(f"{failing}: {error.strerror or error}") from error
        click.get_current_context().call_on_close(functools.partial(_remove_empty, path))
        return found

    def load(self) -> QatModel:
        """Return the model."""
        quantizers = read_settings(self.quantizers, self.settings)
        from qmath.readers.loading import load

        return load(
            self.path,
            quantizers,
            force=self.force,
            architecture=self.architecture,
            isolate=self.isolate,
            shapes=dict(map(_shape, self.shapes)),
            build=cast("Build | None", self.build),
        )


def model_argument(function: _Function) -> _Function:
    """Add MODEL and the options of reading it; `function` gets one `ModelArgument`, as `model`.

    Given several models, it is called for each.
    """
    options = (
        click.argument(
            "paths", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path)
        ),
        click.option(
            "--quantizer",
            "quantizers",
            multiple=True,
            metavar="'KEY=QUANTIZER'",
            shell_complete=keys,
            help="Settings that are in no file, as in the training script. KEY is a QuantizeConfig "
            "class with .weights, .activation or .output, or a tensor name with wildcards. "
            "Repeatable.",
        ),
        click.option(
            "--settings",
            type=click.Path(path_type=Path),
            metavar="FILE.toml",
            help="The same from a file: a table for each KEY, with quantizer = the class's name "
            "and its arguments. --quantizer wins over it.",
        ),
        click.option(
            "--force",
            is_flag=True,
            help="Let --quantizer and --settings win where the model says something else.",
        ),
        click.option(
            "--architecture",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A .keras or .h5 model, or a config.json, that holds the layers' names and "
            "configs, for a MODEL of weights alone.",
        ),
        click.option(
            "--isolate",
            is_flag=True,
            help="Let another process read .h5 and .keras files, under limits of time and memory: "
            "for files from strangers.",
        ),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            metavar="NAME=N,N",
            help="The shape, without the batch, of an input or of the output of a layer that qmath "
            "cannot compute, where the model leaves it open. Repeatable.",
        ),
        click.option(
            "--build",
            metavar="BUILD",
            shell_complete=builds,
            help="Whose kernels trained the model: tf (TensorFlow from 2.6 on, eager; the "
            "default), tf<2.6, xla-cpu (jit_compile) or xla-cpu-nofma.",
        ),
    )

    @functools.wraps(function)
    def with_models(paths: tuple[Path, ...], **given: Any) -> Any:
        loading = {name: given.pop(name) for name in _LOADING}
        models = [
            ModelArgument(path, **loading, others=(*paths[:i], *paths[i + 1 :]))
            for i, path in enumerate(paths)
        ]
        calls = [(m.path, functools.partial(function, model=m, **given)) for m in models]
        return each(calls) if len(calls) > 1 else calls[0][1]()

    for option in reversed(options):
        with_models = option(with_models)
    return cast(_Function, with_models)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return name and lengths of ``NAME=N,N``."""
    name, equals, lengths = text.rpartition("=")
    try:
        if equals:
            return name, tuple(map(int, lengths.split(",")))
    except ValueError:
        pass
    raise click.UsageError(f"--shape {text!r}: expected NAME=N,N")


def suffix_of(kind: type[Exporter]) -> str:
    """Return how the names of a format's outputs end, where several models have one each."""
    return "" if kind.is_folder else f".{(kind.suffixes or (kind.name,))[0]}"


def _name(path: Path) -> str:
    """Return the name that a model's outputs have."""
    return path.resolve().name if path.is_dir() else path.stem


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
