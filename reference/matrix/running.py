"""Build one cell or network by its name, and judge it: what a process of the pool does."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from reference.matrix import building, cases, networks
from reference.matrix.judging import READ, Verdict, judge

__all__ = ["class_of_cell", "judged", "names"]

EXAMPLES = 8


def names(of_networks: bool) -> list[str]:
    """Return the names of all cells, or of all networks."""
    return list(networks.NETWORKS) if of_networks else [cell.name for cell in cases.cells()]


def class_of_cell(name: str) -> str:
    """Return the class of a cell's layer; of a network, its name."""
    if name in networks.NETWORKS:
        return name
    scheme, label = name.rpartition("/w")[0].split("/", 1)
    return cases.class_of(scheme, label)


def judged(name: str) -> Verdict:
    """Build a cell or a network, and judge it."""
    verdict, start = Verdict(name), time.process_time()
    told, containers = None, READ
    try:
        if name in networks.NETWORKS:
            model = networks.build(name)
            data = networks.data(name, EXAMPLES)
        else:
            cell = next(cell for cell in cases.cells() if cell.name == name)
            model, told = building.build(cell), building.answers(cell)
            data = building.data(cell, model, EXAMPLES)
            if cell.scheme == "nbit" or cell.bits != (8, 8):  # TensorFlow writes slowly
                containers = READ[:2]
    except Exception as error:  # Keras and TFMOT have their own reasons
        verdict.kind = "not built"
        verdict.refusals["build"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            judge(verdict, model, Path(folder), data, told, containers)
    verdict.seconds = round(time.process_time() - start, 1)
    return verdict
