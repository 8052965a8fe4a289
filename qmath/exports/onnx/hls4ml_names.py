"""What hls4ml calls the layers of a graph, so that each gets the types of its own numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["layer_names"]


def layer_names(
    nodes: Sequence[Any], inputs: Sequence[str], precisions: Mapping[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """Return the types of each layer's numbers, by hls4ml's name of the layer.

    hls4ml reads a graph that QONNX's tools have cleaned up, and whose channels they have moved to
    the end. They sort the nodes by their distance from the inputs, take out transposes, and name
    each node by its operation and a number.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In order.
    inputs : sequence of str
        Of the graph.
    precisions : mapping of str to dict
        By node or input.
    """
    depth: dict[str, int] = {}
    for node in nodes:
        before = [depth[name] for name in node.input if name in depth]
        own = 0 if node.op_type == "Transpose" else 1
        depth[node.name] = max(before, default=0) + own
    counts: Counter[str] = Counter()
    endings = ["", *(f"_{i}" for i in range(1, len(inputs)))]
    found = {
        f"global_in{ending}": precisions[name] for name, ending in zip(inputs, endings, strict=True)
    }
    for node in sorted(nodes, key=lambda node: depth[node.name]):
        if node.op_type != "Transpose":
            if node.name in precisions:
                found[f"{node.op_type}_{counts[node.op_type]}"] = precisions[node.name]
            counts[node.op_type] += 1
    return found
