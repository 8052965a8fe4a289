"""Quantizer settings as a user writes them: ``--quantizer`` options and a TOML file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qmath.errors import QmathError

if TYPE_CHECKING:
    from qmath.quantizers import Quantizer

__all__ = ["CUT", "PROFILE", "PROFILES_HELP", "given", "profile_options", "read_settings"]

PROFILE = click.Choice(["exact", "integer", "tflite", "xnnpack", "litert", "tflm"])
PROFILES_HELP = (
    "exact: float64, the definition. integer: multiply, add, shift. tflite, xnnpack, litert: as "
    "TFLite's reference kernels, its delegate, and its optimized kernels. tflm: as "
    "microcontrollers, and CMSIS-NN."
)
CUT = (
    "The recorded outputs of a layer that qmath cannot compute: an .npy, or an .npz with an array "
    "of that name. Repeatable."
)
_FLAGS = ("per_axis", "symmetric", "narrow_range")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def profile_options(function: _Function) -> _Function:
    """Add the options of the arithmetic profiles."""
    options = (
        click.option("--multiplier-bits", type=int, metavar="8…31", help="Of the profile integer."),
        click.option(
            "--rounding", type=click.Choice(["double", "single"]), help="Of tflite and tflm."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given: a profile refuses those that it does not have."""
    return {name: value for name, value in options.items() if value is not None}


def read_settings(options: Iterable[str], settings: Path | None) -> dict[str, Quantizer]:
    """Return quantizers by key, as `qmath.load` takes them.

    Parameters
    ----------
    options : iterable of str
        ``'KEY=Class(argument=value, …)'``.
    settings : Path, optional
        A TOML file.

    Raises
    ------
    QmathError
        An option or the file is not understood.
    """
    found = _from_toml(settings) if settings is not None else {}
    by_option: dict[str, Quantizer] = {}
    for option in options:
        key, quantizer = _from_option(option)
        if by_option.get(key, quantizer) != quantizer:
            raise QmathError(f"--quantizer is given twice for {key}, with different settings")
        by_option[key] = quantizer
    return found | by_option


def _from_option(option: str) -> tuple[str, Quantizer]:
    """Parse one option, without evaluating anything: literals and a known class name only."""
    key, equals, text = (part.strip() for part in option.partition("="))
    where = f"--quantizer {option!r}"
    if not key or not equals:
        raise QmathError(
            f"{where}: expected KEY=QUANTIZER, such as "
            '"MyConfig.weights=LastValueQuantizer(num_bits=4, per_axis=False, symmetric=True, '
            'narrow_range=True)"'
        )
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise QmathError(f"{where}: {text!r} is not written like a Python call") from error
    if not isinstance(call, ast.Call):
        raise QmathError(f"{where}: expected a call, such as {text or 'NoQuantizer'}()")
    # tfmot.quantization.keras.quantizers.LastValueQuantizer counts by its last word.
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return key, _build(
        name,
        [_literal(argument, where) for argument in call.args],
        {item.arg or "**": _literal(item.value, where) for item in call.keywords},
        where,
    )


def _literal(node: ast.expr, where: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id  # no setting is a string: _build says what is wrong
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise QmathError(f"{where}: {ast.unparse(node)} is not a plain value") from error


def _from_toml(path: Path) -> dict[str, Quantizer]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QmathError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise QmathError(f"{path} is not TOML: {error}") from error
    found = {}
    for key, table in tables.items():
        where = f"{path}: [{key!r}]"
        if not isinstance(table, Mapping) or any(isinstance(v, Mapping) for v in table.values()):
            raise QmathError(
                f'{where}: expected a table with a quoted name, such as ["MyConfig.weights"], '
                'that holds quantizer = "LastValueQuantizer" and its arguments'
            )
        arguments = dict(table)
        found[key] = _build(str(arguments.pop("quantizer", "")), [], arguments, where)
    return found


def _build(name: str, positional: list[Any], arguments: Mapping[str, Any], where: str) -> Quantizer:
    """Return the quantizer; an error names the word of its description that is wrong."""
    from qmath import quantizers

    known = [name for name in quantizers.__all__ if name != "Quantizer"]
    if name not in known:
        raise QmathError(f"{where}: {name!r} is not one of TFMOT's quantizers: {', '.join(known)}")
    for value in (*positional, *arguments.values()):
        if value == "N":
            raise QmathError(f"{where}: replace N by the width (num_bits) in your training script")
    try:
        quantizer: Quantizer = getattr(quantizers, name)(*positional, **arguments)
    except TypeError as error:
        reason = str(error).rpartition("__init__() ")[2]  # the class may be one above it
        raise QmathError(f"{where}: {name}() {reason}") from error
    config = quantizer.get_config()
    bits = config.get("num_bits", 8)
    if type(bits) is not int or not 2 <= bits <= 16:
        raise QmathError(f"{where}: num_bits must be a whole number from 2 to 16, got {bits!r}")
    for flag in _FLAGS:
        if not isinstance(config.get(flag, False), bool):
            raise QmathError(f"{where}: {flag} must be true or false, got {config[flag]!r}")
    return quantizer
