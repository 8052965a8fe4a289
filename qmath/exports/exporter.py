"""What a format of `qmath.export` is: a name, options, files, and perhaps a reader.

`qmath.exports` lists what a format of another package may import; ``docs/plugins.md`` shows one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol, TypeVar, cast

from numpy.typing import NDArray

from qmath.errors import OutputError

if TYPE_CHECKING:
    import numpy as np

    from qmath.exports.bundle import Bundle
    from qmath.exports.weights import Rows

__all__ = ["ArrayWriter", "Content", "Exporter", "Option", "Reading", "option"]

# A file's bytes, or, for one that is too large to be held, what writes it to an open binary file.
Content = bytes | Callable[[BinaryIO], object]
# A manifest, and the arrays by key, each read when it is asked for.
Reading = tuple[dict[str, Any], Mapping[str, NDArray[Any]]]
Value = str | int | bool
_T = TypeVar("_T", str, int, bool)
_MOST_LISTED = 8
_OF_THE_COMMAND = {"layout": "layouts"}  # options whose names in Python differ
_OF_LOAD = ("quantizers", "force", "architecture", "isolate")


class ArrayWriter(Protocol):
    """Writes the arrays of a bundle to a file as they are made, and at last its manifest."""

    def add(self, key: str, array: NDArray[Any]) -> None:
        """Write an array."""

    def rows(self, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
        """Return what takes an array by rows; other arrays wait until it is closed."""

    def read(self, key: str) -> NDArray[Any]:
        """Return an array that was written."""

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write what else the file holds."""


@dataclass(frozen=True)
class Option:
    """An option of a format.

    Attributes
    ----------
    default : str, int or bool
        Its type is the option's.
    help : str
        One line for whoever exports.
    choices : collection, optional
        The values that are allowed; default: all of the type.
    name : str
        That of the `Exporter`'s attribute.
    """

    default: Value
    help: str
    choices: Collection[Value] | None = None
    name: str = ""

    def parsed(self, text: str) -> Value:
        """Return the value that a text means, ``"true"``, ``"7"``; the text where it means none."""
        if isinstance(self.default, bool):
            return {"true": True, "false": False}.get(text, text)
        if isinstance(self.default, int) and text.lstrip("-").isdecimal():
            return int(text)
        return text

    def takes(self, value: object) -> bool:
        """Whether `value` is allowed."""
        if type(value) is not type(self.default):
            return False
        return self.choices is None or value in self.choices

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.choices is None:
            return {bool: "true or false", int: "a whole number", str: "a text"}[type(self.default)]
        if isinstance(self.choices, range):
            return f"{self.choices[0]} to {self.choices[-1]}"
        few = [str(choice) for choice in self.choices]
        dots = ["…", few[-1]] if len(few) > _MOST_LISTED else []
        return "one of " + ", ".join([*few[: _MOST_LISTED - len(dots)], *dots])


def option(default: _T, help: str, choices: Collection[_T] | None = None) -> _T:
    """Declare an option of an `Exporter`, as `dataclasses.field` does a field: see there."""
    return cast(_T, Option(default, help, choices))


class Exporter:
    """A format. Subclass it, name it, and yield its files.

    An instance is one export's: its options are attributes.

    Attributes
    ----------
    name : str
        Of the format, as `qmath.export` takes it.
    suffixes : tuple of str
        Of outputs, without the dot, that mean this format; default: its name.
    is_folder : bool
        Whether the output is a folder, in which qmath writes ``manifest.json`` beside the files.
    vectors : int
        How many golden test vectors the format wants where the user says nothing.
    layouts : tuple of str
        Axis orders that the format wants where the user says none: those that match a tensor.
    takes_stored_integers : bool
        Whether it states what integers mean that Keras itself quantized.
    is_recorded : bool
        Whether qmath writes ``<output>.manifest.json`` beside a file that `read` cannot read, so
        that `qmath.verify` knows the options. Only for a file that no option changes, False.
    options : tuple of Option
        Those that the class declares by `option`.
    remarks : tuple of str
        Notes of what `files` has written otherwise than the bundle says, for whoever exports.

    Raises
    ------
    OutputError
        An option does not exist, or has a value that is not allowed.

    Examples
    --------
    >>> class Names(Exporter):
    ...     name = "names"
    ...     separator: str = option(",", "what stands between two names", choices=(",", ";"))
    ...     def files(self, bundle):
    ...         yield "names.txt", self.separator.join(bundle.tensors).encode()
    >>> Names(separator=";").separator
    ';'
    >>> Names(separator=".")
    Traceback (most recent call last):
        ...
    qmath.errors.OutputError: the format 'names': separator='.' is not one of ,, ;
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    is_folder: ClassVar[bool] = False
    vectors: ClassVar[int] = 0
    layouts: ClassVar[tuple[str, ...]] = ()
    takes_stored_integers: ClassVar[bool] = False
    is_recorded: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = ()
    remarks: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = [replace(value, name=key) for key, value in vars(cls).items()
               if isinstance(value, Option)]  # fmt: skip
        cls.options = (*cls.options, *own)

    def __init__(self, **options: object) -> None:
        known = {item.name: item for item in self.options}
        for name, value in options.items():
            if name not in known:
                has = f"its options are: {', '.join(known)}" if known else "it has none"
                if name in _OF_LOAD:
                    has = f"{name} is an option of qmath.load: export what it returns"
                elif name in _OF_THE_COMMAND:
                    has = f"in qmath.export it is called {_OF_THE_COMMAND[name]}"
                raise OutputError(f"the format {self.name!r} has no option {name!r}; {has}")
            if not known[name].takes(value):
                raise OutputError(
                    f"the format {self.name!r}: {name}={value!r} is not {known[name].allowed}"
                )
        for name, item in known.items():
            setattr(self, name, options.get(name, item.default))

    @property
    def given(self) -> dict[str, Value]:
        """Every option with its value."""
        return {item.name: getattr(self, item.name) for item in self.options}

    @property
    def is_written_as_made(self) -> bool:
        """Whether the class that says what is in the file has a writer of it, too."""
        says = next(kind for kind in type(self).__mro__ if "files" in vars(kind))
        return "writer" in vars(says) and says is not Exporter and not self.is_folder

    @property
    def can_read(self) -> bool:
        """Whether the format has a reader."""
        return type(self).read is not Exporter.read

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the name and the content of each file; of one that is no folder, one.

        Equal bundles have to give equal bytes.
        """
        raise NotImplementedError

    def writer(self, file: BinaryIO) -> ArrayWriter:
        """Return what writes to a file what `files` yields, before all of it is made.

        For formats that can. The file can be read, too, and `read` reads the result.
        """
        raise NotImplementedError

    def read(self, file: BinaryIO) -> Reading:
        """Return the manifest that a file holds, and its arrays; not every format can.

        Raises
        ------
        FileFormatError
            The file is damaged, or of another kind. Nothing in it is trusted.
        """
        raise NotImplementedError

    def differences(
        self, file: BinaryIO, bundle: Bundle, manifest: Mapping[str, Any]
    ) -> Iterable[str]:
        """Yield in words where what `read` does not return differs from what `files` yields.

        A format whose `read` returns all that the file holds does not define it.
        """
        raise NotImplementedError

    def manifest(self, bundle: Bundle) -> dict[str, Any]:
        """Return the bundle's manifest with the format and its options."""
        return bundle.manifest | {"export": {"format": self.name, "options": self.given}}

    def write(self, bundle: Bundle, file: BinaryIO) -> None:
        """Write the one file of a format that is no folder to an open binary file."""
        ((_, content),) = self.files(bundle)
        write_content(content, file)


def write_content(content: Content, file: BinaryIO) -> None:
    """Write a file's content to an open binary file."""
    if callable(content):
        content(file)
    else:
        file.write(content)


def content_bytes(content: Content) -> bytes:
    """Return a file's content as bytes."""
    if not callable(content):
        return content
    file = io.BytesIO()
    content(file)
    return file.getvalue()
