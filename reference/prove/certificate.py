"""The certificate: what was compared, with what, on what, and how many bits differ."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from reference.builds.twins import TWINS

__all__ = [
    "CERTIFICATE",
    "KINDS",
    "CertificateError",
    "build",
    "commit",
    "count_differing",
    "environment",
    "path",
    "read",
    "table",
    "write",
]

ROOT = Path(__file__).parents[2]
CERTIFICATE = ROOT / "reference" / "certificate.json"
KINDS = ("sweeps", "thresholds", "round_trips")
PACKAGES = ("qmath-tfmot", "numpy", "tensorflow")


class CertificateError(Exception):
    """A certificate that cannot be completed here."""


def environment(against: str = "tf") -> dict[str, Any]:
    """Return versions and processor, and with what qmath is compared if that is not the default."""
    twin = TWINS[against]
    versions = {name: metadata.version(name) for name in PACKAGES}
    if twin.release:
        versions["tensorflow"] = twin.release.version
    versions = {"python": platform.python_version(), **versions}
    return {**twin.about, "versions": versions, "cpu": _processor()}


def path(against: str) -> Path:
    """Return where the repository has the certificate."""
    if against == "tf":
        return CERTIFICATE
    return ROOT / "reference" / "certificates" / f"{against.replace(' ', '-')}.json"


def commit() -> str:
    """Return the last commit that changed qmath, with a ``+`` if files have changed since."""
    if not (ROOT / ".git").exists():
        return "unknown"
    last, changes = (
        subprocess.run(
            ["git", "-C", str(ROOT), *command, "--", "qmath"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for command in (["log", "-1", "--format=%H"], ["status", "--porcelain"])
    )  # fmt: skip
    return last + ("+" if changes else "")


def _processor() -> str:
    """Return the processor's name, and the vector extensions that decide which kernels run."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    entries = {key.strip(): value.strip() for key, value in found.items()}
    flags = [flag for flag in entries.get("flags", "").split() if flag.startswith(("avx", "fma"))]
    return f"{entries.get('model name', platform.machine())} ({', '.join(flags)})"


def build(
    environment: Mapping[str, Any],
    kinds: Mapping[str, str],
    finished: Iterable[dict[str, Any]],
    cpu_minutes: float = 0.0,
) -> dict[str, Any]:
    """Return the certificate.

    Parameters
    ----------
    environment : dict
        As `environment` returned it.
    kinds : mapping of str to str
        From the name of a task to its part of the certificate.
    finished : iterable of dict
        The journal's entries, in the order in which the certificate has them.
    cpu_minutes : float
        What earlier runs took.
    """
    parts: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    seconds = 60 * cpu_minutes
    for entry in finished:
        parts[kinds[entry["task"]]] += entry["records"]
        seconds += entry["seconds"]
    certificate = {
        "format": "qmath-certificate",
        "format_version": 1,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu_minutes": round(seconds / 60, 1),
        **environment,
        **parts,
    }
    return {**certificate, "differing": sum(map(count_differing, parts.values()))}


def count_differing(records: Iterable[Mapping[str, Any]]) -> int:
    """Return how many bits, or integers of round trips, differ in these records."""
    return sum(record.get("differing_bits", record.get("differing")) for record in records)


def read(path: Path, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the certificate in a file, if records of this environment may join its own."""
    try:
        certificate = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path} cannot be read: {error}") from None
    if not isinstance(certificate, dict) or certificate.get("format") != "qmath-certificate":
        raise CertificateError(f"{path} is no certificate")
    keys = dict.fromkeys([*environment, "against", "build"])  # these two are not always there
    changed = [key for key in keys if certificate.get(key) != environment.get(key)]
    if changed:
        raise CertificateError(
            f"{path} was made with other {', '.join(changed)}; run without --complete"
        )
    return certificate


def write(certificate: Mapping[str, Any], path: Path) -> None:
    """Write the certificate, a record a line."""
    lines = []
    for key, value in certificate.items():
        if key in KINDS:
            rows = ",\n".join(f"  {json.dumps(record)}" for record in value)
            lines.append(f' "{key}": [\n{rows}\n ]' if rows else f' "{key}": []')
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def table(certificate: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the README's Markdown table.

    A row for each kind of proof and op: configurations, widths, what was compared, what differs.
    """
    yield "| proof | function | widths | configurations | compared | differing bits |"
    yield "|---|---|---:|---:|---:|---:|"
    for kind, title, count in (
        ("sweeps", "every float32", lambda record: len(record["min"])),
        ("thresholds", "every step ± 64 ulp", lambda record: record["configurations"]),
        ("round_trips", "every integer, there and back", lambda record: record["range_widths"]),
    ):
        for op, records in _by_op(certificate[kind]).items():
            total = sum(map(count, records))
            outputs = sum(record["compared"] + record.get("integers", 0) for record in records)
            differs = count_differing(records)
            widths = ", ".join(map(str, _runs({record["num_bits"] for record in records})))
            yield f"| {title} | `{op}` | {widths} | {total:,} | {outputs:,} | {differs:,} |"


def _by_op(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["op"].removeprefix("fake_quant_with_min_max_"), []).append(record)
    return dict(sorted(found.items()))


def _runs(numbers: set[int]) -> Iterator[str]:
    """Yield 2, 3, 4, 7 as ``2…4`` and ``7``; two neighbours stay apart."""
    rest = sorted(numbers)
    while rest:
        run = [rest.pop(0)]
        while rest and rest[0] == run[-1] + 1:
            run.append(rest.pop(0))
        yield from [f"{run[0]}…{run[-1]}"] if len(run) > 2 else map(str, run)
