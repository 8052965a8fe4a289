"""Mistakes in the exported Verilog testbenches, which compare their own model of a layer."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reference.mistakes.in_c import StaleError
from reference.mistakes.judge import Verdict

__all__ = ["SUBSTITUTIONS", "in_verilog", "substituted"]

Text = str | Callable[[re.Match[str]], str]
SECONDS = 300

_SHIFT = r"y = y >>> (\S+);"
_HALF = r"(64'sd1 <<< (\1 - 1))"
_PRODUCT = r"\* (multiplier_0\[\w+\])"
_WINDOW = r"if \((iy >= 0 [^\n]*)\)\n( *for \(ci [^\n]*\n *)a = ([^\n]*);"
_PIXEL = r"\(iy \* (\d+) \+ ix\) \* (\d+) \+ ([^\]]+)\]"


def _clamp(end: str, sign: str, off: str) -> tuple[str, Text]:
    return rf"if \(y {sign} ({end}\[\w+\])\) y = \1;", rf"if (y {sign} \1{off}) y = \1{off};"


def _narrower(bits: int) -> Callable[[re.Match[str]], str]:
    return lambda found: f"reg signed [{int(found[1]) - bits}:0] sum_0;"


def _in_index(**others: str) -> Callable[[re.Match[str]], str]:
    """Replace words of the line that computes a weight's index."""

    def replaced(found: re.Match[str]) -> str:
        return re.sub(r"[a-z]+", lambda w: others.get(w[0], w[0]), found[1])

    return lambda found: f"index = {replaced(found)};"


_INDEX = r"\bindex = ([^\n]*);"

# {channels}, {inputs}, {height}, {rows}, {columns}: numbers of the testbench.
SUBSTITUTIONS: dict[str, tuple[str, Text]] = {
    "no upper clamp": (r"if \(y > high\[\w+\]\) y = high\[\w+\];", ""),
    "no lower clamp": (r"if \(y < low\[\w+\]\) y = low\[\w+\];", ""),
    "upper clamp one too low": _clamp("high", ">", " - 1"),
    "upper clamp one too high": _clamp("high", ">", " + 1"),
    "lower clamp one too low": _clamp("low", "<", " - 1"),
    "lower clamp one too high": _clamp("low", "<", " + 1"),
    "clamped before the zero point is added": (
        r"if \(y < (\S+)\) y = \1;\n( *)if \(y > (\S+)\) y = \3;\n *y = y \+ (\d+);",
        r"if (y < \1 + \4) y = \1 + \4;\n\2if (y > \3 + \4) y = \3 + \4;\n\2y = y + \4;",
    ),
    "rounds down": (_SHIFT, rf"y = (y - {_HALF}) >>> \1;"),
    "rounds up": (_SHIFT, rf"y = (y + {_HALF} - 1) >>> \1;"),
    "rounds toward zero": (_SHIFT, rf"y = (y - {_HALF}) / (64'sd1 <<< \1);"),
    "rounds twice": (
        _SHIFT,
        rf"y = (y - {_HALF} + 64'sd1073741824) >>> 31; "
        r"y = (y + (64'sd1 <<< (\1 - 32))) >>> (\1 - 31);",
    ),
    "half down": (_SHIFT, r"y = (y - 1) >>> \1;"),
    "12-bit multiplier": (_PRODUCT, r"* (\1 / 524288 * 524288)"),
    "16-bit multiplier": (_PRODUCT, r"* (\1 / 32768 * 32768)"),
    "20-bit multiplier": (_PRODUCT, r"* (\1 / 2048 * 2048)"),
    "24-bit multiplier": (_PRODUCT, r"* (\1 / 128 * 128)"),
    "multiplier one too high": (_PRODUCT, r"* (\1 + 1)"),
    "multiplier one too low": (_PRODUCT, r"* (\1 - 1)"),
    "multiplier of the next channel": (
        r"multiplier_0\[channel\]", "multiplier_0[(channel + 1) % {channels}]"
    ),
    "multiplier of the first channel": (r"multiplier_0\[channel\]", "multiplier_0[0]"),
    "shift one too far": (_SHIFT, r"y = y >>> (\1 + 1);"),
    "shift one short": (_SHIFT, r"y = y >>> (\1 - 1);"),
    "one bit too narrow": (r"reg signed \[(\d+):0\] sum_0;", _narrower(1)),
    "two bits too narrow": (r"reg signed \[(\d+):0\] sum_0;", _narrower(2)),
    "no bias": (r"\+ addend\[(\w+)\];", r"+ (64'sd1 <<< (shift[\1] - 1));"),
    "bias of the next channel": (r"addend\[channel\]", "addend[(channel + 1) % {channels}]"),
    "bias added after rounding": (
        r"y = ([^\n]*) \+ (addend\[\w+\]);\n *y = y >>> (\S+);",
        r"y = ((\1 + (64'sd1 <<< (\3 - 1))) >>> \3) + (\2 >>> \3);",
    ),
    "no zero point of the input": (r"\(a - \d+\) \* b", "a * b"),
    "zero point of the input added": (r"\(a - (\d+)\) \* b", r"(a + \1) * b"),
    "no zero point of the output": (r"y = y \+ \d+;", ""),
    "padded with the integer 0": (_WINDOW, r"\2a = (\1) ? \3 : 0;"),
    "no zero point of the weights": (r"b = b - [^\n]*;", ""),
    "output channels reversed": (_INDEX, _in_index(channel="({channels} - 1 - channel)")),
    "output channels shifted by one": (_INDEX, _in_index(channel="((channel + 1) % {channels})")),
    "input channels reversed": (_INDEX, _in_index(ci="({inputs} - 1 - ci)")),
    "last input channel skipped": (r"ci < (\d+)", r"ci < \1 - (\1 > 1)"),
    "stride ignored": (
        r"iy = row \* \d+([^\n]*)\n( *)ix = column \* \d+", r"iy = row\1\n\2ix = column"
    ),
    "padding at the end alone": (
        r"(iy = [^\n]*) - \d+;\n( *ix = [^\n]*) - \d+;", r"\1;\n\2;"
    ),
    "last row of the window skipped": (r"ky < (\d+)", r"ky < \1 - (\1 > 1)"),
    "kernel's rows as columns": (_INDEX, _in_index(ky="kx", kx="ky")),
    "kernel flipped": (_INDEX, _in_index(ky="({rows} - 1 - ky)", kx="({columns} - 1 - kx)")),
    "weights negated": (r"b = b - ([^\n]*);", r"b = \1 - b;"),
    "weights not sign-extended": (r"reg signed (\[\d+:0\] weight_0;)", r"reg \1"),
    "input read as CHW": (_PIXEL, r"((\3) * {height} + iy) * \1 + ix]"),
}  # fmt: skip


def substituted(name: str, text: str) -> str:
    """Return a testbench of one term with a mistake.

    Raises
    ------
    StaleError
        What the mistake replaces is not there exactly once.
    """
    old, new = SUBSTITUTIONS[name]
    made, count = re.subn(old, new, text)
    if count != 1:
        raise StaleError(f"{name}: {old!r} is there {count} times, so it is stale")
    numbers = {
        "channels": r"channel < (\d+)", "inputs": r"ci < (\d+)", "height": r"iy < (\d+)",
        "rows": r"ky < (\d+)", "columns": r"kx < (\d+)",
    }  # fmt: skip
    for word, pattern in numbers.items():
        found = re.search(pattern, text)
        made = made.replace(f"{{{word}}}", found[1] if found else "1")
    return made


def in_verilog(
    export: Path, arithmetic: Mapping[str, Verdict], mistakes: Iterable[str] = SUBSTITUTIONS
) -> dict[str, Verdict]:
    """Judge mistakes in the testbenches of a folder of the format ``mem``.

    Parameters
    ----------
    export : Path
    arithmetic : mapping
        What `reference.mistakes.judge.in_numpy` said of the same model.
    mistakes : iterable of str
        Names.
    """
    benches = {}
    for path in sorted(export.glob("*_tb.v")):
        text = path.read_text(encoding="ascii")
        layer, output = simulated(export, text)
        if not output.startswith("PASS"):
            raise ValueError(f"{path.name} fails without a mistake:\n{output}")
        benches[layer] = text
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: _verdict(export, benches, arithmetic[name]), mistakes)
        return {verdict.name: verdict for verdict in found}


def _verdict(export: Path, benches: Mapping[str, str], known: Verdict) -> Verdict:
    verdict = Verdict(known.name)
    for layer, text in benches.items():
        if layer in known.equal:
            verdict.equal.append(layer)
        if layer not in known.killed and layer not in known.survived:
            continue
        _, output = simulated(export, substituted(known.name, text))
        purposes = re.findall(r"^ +(.*): \d+ of \d+ wrong", output, re.M)
        if output.startswith("PASS"):
            verdict.survived[layer] = known.survived.get(layer, "killed in NumPy")
        else:
            verdict.killed[layer] = tuple(purposes) or ("noise between",)
    return verdict


def simulated(folder: Path, text: str) -> tuple[str, str]:
    """Return the layer's name, and what the testbench prints from its verdict on."""
    with tempfile.TemporaryDirectory() as work:
        source, program = Path(work) / "mistake.v", Path(work) / "mistake.vvp"
        source.write_text(text, encoding="ascii")
        command: list[str | Path] = ["iverilog", "-o", program, source]
        subprocess.run(command, check=True, capture_output=True, text=True)
        done = subprocess.run(
            ["vvp", program], cwd=folder, capture_output=True, text=True, check=True,
            timeout=SECONDS,
        )  # fmt: skip
    found = re.search(r"^(?:PASS|FAIL) (.*): \d+ integers.*", done.stdout, re.M | re.S)
    assert found, done.stdout
    return found[1], found[0]
