"""Mistakes in the exported C kernels: each is compiled, and the export's own self-check judges."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reference.mistakes.c_mistakes import SUBSTITUTIONS, Substitution
from reference.mistakes.judge import Verdict

__all__ = ["CKernels", "StaleError", "in_c", "substituted"]

HEADERS = ("qmath_kernels.h", "qmath_integers.h")
COMPILER = ("cc", "-std=c99", "-O1", "-fwrapv")
SECONDS = 120


class StaleError(ValueError):
    """A text that a mistake replaces is not there exactly once: the sources have changed."""


def substituted(
    name: str, texts: Mapping[str, str], swaps: Iterable[Substitution]
) -> dict[str, str]:
    """Return texts with a mistake's substitutions.

    Raises
    ------
    StaleError
        The old text of one is not exactly once in all of the texts.
    """
    made = dict(texts)
    for old, new in swaps:
        places = [key for key, text in made.items() for _ in range(text.count(old))]
        if len(places) != 1:
            raise StaleError(f"{name}: {old!r} is there {len(places)} times, so it is stale")
        made[places[0]] = made[places[0]].replace(old, new)
    return made


class CKernels:
    """An export in C, compiled but for its kernels.

    Parameters
    ----------
    export : Path
        The folder, of the format ``c``.
    work : Path
        An empty folder.
    """

    def __init__(self, export: Path, work: Path) -> None:
        self.export, self.work = export, work
        self.texts = {name: (export / name).read_text() for name in HEADERS}
        self.objects = []
        for name in ("model_data", "model_test"):
            self.objects.append(work / f"{name}.o")
            self._compile(export / f"{name}.c", self.objects[-1], export)
        status, output = self.run("")
        if status:
            raise ValueError(f"the export without a mistake fails:\n{output}")

    def run(self, mistake: str) -> tuple[int, str]:
        """Return the status and the output of the self-check; a crash is a status, too."""
        texts = substituted(mistake, self.texts, SUBSTITUTIONS.get(mistake, ()))
        place = Path(tempfile.mkdtemp(dir=self.work))
        program = place / "check"
        source = (self.export / "model.c").read_text()
        if "qm_bits" in texts[HEADERS[0]]:
            source = self._with_bits(source)
        for name, text in {**texts, "model.c": source}.items():
            (place / name).write_text(text)
        shutil.copy(self.export / "model.h", place)
        self._compile(place / "model.c", place / "model.o", place)
        command: list[str | Path] = ["cc", place / "model.o", *self.objects, "-lm", "-o", program]
        subprocess.run(command, check=True, capture_output=True)
        try:
            done = subprocess.run(
                [program], capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return 1, "timeout"
        finally:
            shutil.rmtree(place)
        return done.returncode, done.stdout

    def _compile(self, source: Path, target: Path, headers: Path) -> None:
        command: list[str | Path] = [*COMPILER, f"-I{headers}", "-c", source, "-o", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{source.name} does not compile:\n{done.stderr}")

    def _with_bits(self, source: str) -> str:
        """Tell each requantization how wide its accumulators are proved to be."""
        widths = re.findall(
            r"#define (\w+_ACCUMULATOR_BITS(?:_\w+)?) ", (self.export / "model.h").read_text()
        )
        parts = source.split("    qm_requantize(")
        if len(parts) != len(widths) + 1:
            raise StaleError(f"{len(parts) - 1} requantizations have {len(widths)} widths")
        calls = [
            # The widest term's; narrower ones are tried by the other kernels.
            "    qm_bits = (const int[]){" + ", ".join([width] * 8) + "};\n    qm_requantize("
            for width in widths
        ]
        made = parts[0]
        for call, part in zip(calls, parts[1:], strict=True):
            made += call + part
        return made


def in_c(
    export: Path, arithmetic: Mapping[str, Verdict], mistakes: Iterable[str] = SUBSTITUTIONS
) -> dict[str, Verdict]:
    """Judge mistakes in the C kernels.

    Parameters
    ----------
    export : Path
        A folder of the format ``c``.
    arithmetic : mapping
        What `reference.mistakes.judge.in_numpy` said of the same model: where a mistake is
        nothing, or nothing but what is proved.
    mistakes : iterable of str
        Names.
    """
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = CKernels(export, Path(work))
        found = pool.map(lambda name: _verdict(kernels, arithmetic[name]), mistakes)
        return {verdict.name: verdict for verdict in found}


def _verdict(kernels: CKernels, known: Verdict) -> Verdict:
    layers = [*known.killed, *known.survived]
    verdict = Verdict(known.name, equal=list(known.equal))
    if not layers:
        return verdict
    status, output = kernels.run(known.name)
    verdict.killed, verdict.noise = told(output)
    if status and not verdict.killed and not verdict.noise:
        verdict.killed = dict.fromkeys(layers, ("a crash",))
    verdict.equal = [layer for layer in verdict.equal if layer not in verdict.killed]
    left = (layer for layer in layers if layer not in verdict.killed)
    verdict.survived = {layer: known.survived.get(layer, "killed in NumPy") for layer in left}
    return verdict


def told(output: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return what a self-check says: purposes by layer, and the layers that whole inputs show."""
    killed: dict[str, tuple[str, ...]] = {}
    noise: dict[str, None] = {}
    layer = ""
    for line in output.splitlines():
        if found := re.fullmatch(r"(.*): \d+ of \d+ directed outputs differ", line):
            layer = found[1]
            killed[layer] = ()
        elif found := re.fullmatch(r"  (.*): \d+ of \d+ wrong, .*", line):
            killed[layer] += (found[1],)
        elif found := re.fullmatch(r"(.*): (?:the checksum|element \d+) is .*", line):
            noise[found[1]] = None
    return {name: found or ("noise between",) for name, found in killed.items()}, [*noise]
