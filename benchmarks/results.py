"""What becomes of measurements: one JSON file, with what the numbers depend on, and back."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "about", "read", "write"]

FORMAT = 1
LIBRARIES = (
    "qmath-tfmot", "numpy", "tensorflow", "tensorflow-model-optimization", "tf_keras", "torch",
    "onnxruntime", "ai-edge-quantizer",
)  # fmt: skip


def about(**settings: object) -> dict[str, Any]:
    """Return what numbers depend on: versions, the machine, the date, and the settings given."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "versions": versions,
        **settings,
    }


def _processor() -> str:
    """Return the processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def write(results: dict[str, Any], path: Path) -> None:
    """Write results: ``{"about": …, "parts": {name: {"skipped": […], "rows": […]}}}``."""
    path.write_text(_text({"format": FORMAT, **results}, 4) + "\n", "utf-8")


def _text(value: object, depth: int) -> str:
    """Return JSON in lines down to a depth, which is that of a row."""
    if depth and value and isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_text(item, depth - 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if depth and value and isinstance(value, list):
        return "[\n" + ",\n".join(_text(item, depth - 1) for item in value) + "\n]"
    return json.dumps(value)


def read(path: Path) -> dict[str, Any]:
    """Return what `write` wrote.

    Raises
    ------
    ValueError
        The file is none of these, or of another format.
    """
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: no results of benchmarks in format {FORMAT}; measure again")
    return found
