"""Keras's model config → the calls of its layers in topological order."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from qmath.model import Graph, Node
from qmath.readers.architecture.config import (
    bare_name,
    is_model,
    known_lambda,
    layer_entries,
    layer_facts,
    layer_name,
)
from qmath.readers.architecture.fields import is_shape

__all__ = ["NotAGraphError", "read_graph"]

# Submodels that call submodels twice could ask for 2**depth calls.
_MAX_CALLS = 100_000

Call = tuple[str, int]  # a layer's name and which of its calls
Reference = tuple[str, int, int]  # the same, and which of the call's outputs


class NotAGraphError(Exception):
    """The config describes no static graph of layers; the message says why."""


def read_graph(model_config: Any) -> Graph:
    """Return the graph of a Sequential or Functional model, nested ones flattened into it.

    Parameters
    ----------
    model_config : JSON value
        ``{"class_name": …, "config": …}``.

    Raises
    ------
    NotAGraphError
        The model is subclassed, or its config is not understood.
    """
    if not is_model(model_config):
        raise NotAGraphError("this is no Sequential or Functional model")
    builder = _Builder()
    outputs = builder.add_model(model_config, "", 0, None)
    nodes = (replace(n, outputs=builder.outputs.get(n.name, 1)) for n in builder.nodes)
    return Graph(tuple(nodes), tuple(builder.inputs), tuple(outputs))


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.names: set[str] = set()
        self.calls = 0
        self.inputs: list[str] = []
        self.outputs: dict[str, int] = {}  # of the nodes of which others read several

    def add_model(
        self,
        model: Mapping[str, Any],
        prefix: str,
        call: int,
        feeds: Sequence[str] | None,
        given: tuple[str, ...] = (),
    ) -> list[str]:
        """Add the nodes of a model's `call`-th call; return the nodes of its outputs.

        `feeds` are the nodes of its inputs, or ``None`` for the outermost model, whose input
        layers are nodes themselves. What else it is called with, `given`, Keras hands on.
        """
        self._count_call()
        entries = layer_entries(model)
        if not entries:
            raise NotAGraphError(f"{prefix or 'the model'} has no layers")
        config = model["config"]
        if isinstance(config, list) or "output_layers" not in config:
            if bare_name(model["class_name"]) != "Sequential":
                raise NotAGraphError(
                    f"a {model['class_name']} model does not say how its layers are connected"
                )
            return self._add_chain(entries, prefix, call, feeds, given)
        return self._add_functional(config, entries, prefix, call, feeds, given)

    def _add_chain(
        self,
        entries: list[dict[str, Any]],
        prefix: str,
        call: int,
        feeds: Sequence[str] | None,
        given: tuple[str, ...],
    ) -> list[str]:
        current = list(feeds or ())
        if feeds is None and bare_name(entries[0]["class_name"]) != "InputLayer":
            first = layer_facts(entries[0], prefix)
            shape = first.config.get("batch_input_shape")
            if shape is not None and not is_shape(shape):
                raise NotAGraphError(f"{first.path} has an input shape that is none")
            current = [
                self._add(
                    Node(
                        f"{first.path}_input",
                        f"{first.path}_input",
                        "InputLayer",
                        (),
                        {"batch_input_shape": shape},
                    )
                )
            ]
            self.inputs.append(current[0])
        for entry in entries:
            if bare_name(entry["class_name"]) == "InputLayer":
                if feeds is None:
                    current = [self._add_layer(entry, prefix, 0, [])]
                    self.inputs += current
            elif is_model(entry):
                inner = f"{prefix}{layer_name(entry)}/"
                current = self.add_model(entry, inner, call, current, given)
            else:
                current = [self._add_layer(entry, prefix, call, current, given)]
        return current

    def _add_functional(
        self,
        config: Mapping[str, Any],
        entries: list[dict[str, Any]],
        prefix: str,
        call: int,
        feeds: Sequence[str] | None,
        given: tuple[str, ...],
    ) -> list[str]:
        by_name = {layer_name(entry): entry for entry in entries}
        if len(by_name) != len(entries):
            raise NotAGraphError("two layers have the same name")
        outputs = _references(config["output_layers"], by_name)
        feeding = {
            name: [_references(node, by_name) for node in _inbound(entry)]
            for name, entry in by_name.items()
        }
        first = _first_calls(by_name, [outputs, *chain.from_iterable(feeding.values())])
        calls: dict[Call, list[Reference]] = {}
        arguments: dict[Call, tuple[str, ...]] = {}
        for name, nodes in feeding.items():
            calls.update(((name, first[name] + i), refs) for i, refs in enumerate(nodes))
            for i, node in enumerate(_inbound(by_name[name])):
                named = tuple(dict.fromkeys([*given, *_arguments(node)]))
                arguments[name, first[name] + i] = named
            if not nodes and bare_name(by_name[name]["class_name"]) == "InputLayer":
                calls[name, 0] = []
        made: dict[Call, list[str]] = {}
        input_calls = [ref[:2] for ref in _references(config.get("input_layers"), by_name)]
        if feeds is not None:
            if len(feeds) != len(input_calls):
                raise NotAGraphError(
                    f"{prefix.rstrip('/')} is called with {len(feeds)} inputs and "
                    f"has {len(input_calls)}"
                )
            made.update((key, [feed]) for key, feed in zip(input_calls, feeds, strict=True))
        for name, index in _topological(calls):
            if (name, index) in made:
                continue
            inputs = [self._output(made, ref) for ref in calls[name, index]]
            number = call * len(feeding[name]) + index - first[name]
            entry, named = by_name[name], arguments.get((name, index), ())
            if is_model(entry):
                inner = f"{prefix}{name}/"
                made[name, index] = self.add_model(entry, inner, number, inputs, named)
            else:
                made[name, index] = [self._add_layer(entry, prefix, number, inputs, named)]
        if feeds is None:
            self.inputs += [self._output(made, (*key, 0)) for key in input_calls]
        return [self._output(made, ref) for ref in outputs]

    def _add_layer(
        self,
        entry: Mapping[str, Any],
        prefix: str,
        number: int,
        inputs: Sequence[str],
        arguments: tuple[str, ...] = (),
    ) -> str:
        facts = layer_facts(entry, prefix)
        wrapper = facts.quantize_config
        class_name, config = _of_each_step(facts.class_name, facts.config)
        return self._add(
            Node(
                name=facts.path + (f"#{number}" if number else ""),
                layer=facts.path,
                class_name=known_lambda(facts) or class_name,
                inputs=tuple(inputs),
                config=_plain_config(config),
                quantize_config=None if wrapper is None else wrapper.class_name,
                # A shared layer is built by its first call.
                built_for=() if number else facts.built_for,
                arguments=arguments,
            )
        )

    def _output(self, made: Mapping[Call, list[str]], reference: Reference) -> str:
        """Return the node a reference means; of a layer with several outputs, its one node."""
        name, index, tensor = reference
        outputs = made.get((name, index), [])
        if len(outputs) == 1:
            if tensor > 0:
                self.outputs[outputs[0]] = max(tensor + 1, self.outputs.get(outputs[0], 1))
            return outputs[0]
        if not 0 <= tensor < len(outputs):
            raise NotAGraphError(f"an output of {name!r} is used that it does not have")
        return outputs[tensor]

    def _add(self, node: Node) -> str:
        self._count_call()
        if node.name in self.names:
            raise NotAGraphError(f"two of its calls would be named {node.name!r}")
        self.names.add(node.name)
        self.nodes.append(node)
        return node.name

    def _count_call(self) -> None:
        self.calls += 1
        if self.calls > _MAX_CALLS:
            raise NotAGraphError(f"it has more than {_MAX_CALLS} calls of layers")


def _inbound(entry: Mapping[str, Any]) -> list[Any]:
    nodes = entry.get("inbound_nodes")
    return nodes if isinstance(nodes, list) else []


def _arguments(call: Any) -> Iterator[str]:
    """Yield the names of the keyword arguments of a call that are neither ``None`` nor false."""
    if isinstance(call, dict):  # Keras 3
        given = [call.get("kwargs")]
    elif isinstance(call, list):  # Keras 2, which repeats them for each tensor
        given = [tensor[3] for tensor in call if isinstance(tensor, list) and len(tensor) > 3]
    else:  # a damaged config
        given = []
    for keywords in given:
        if isinstance(keywords, dict):
            yield from (name for name, value in keywords.items() if value not in (None, False))


def _of_each_step(class_name: str, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return class and config of a layer: of a Dense for each step, those of the Dense.

    Its weights have the wrapper's name, and it computes what it does of the last axis anyway.
    """
    inner = config.get("layer") if class_name == "TimeDistributed" else None
    if isinstance(inner, dict) and inner.get("class_name") == "Dense":
        own = inner.get("config")
        if isinstance(own, dict):
            return "Dense", own | {"name": config.get("name")}
    return class_name, config


def _first_calls(by_name: Mapping[str, Any], used: list[list[Reference]]) -> dict[str, int]:
    """Return the number of each layer's first call.

    A Functional model was called once when it was made, so that inside another model its calls
    count from 1. Every call is used somewhere, so the least number used is the first one.
    """
    first: dict[str, int] = {}
    for name, index, _ in chain.from_iterable(used):
        first[name] = min(first.get(name, index), index)
    return {name: first.get(name, 0) if is_model(entry) else 0 for name, entry in by_name.items()}


def _references(value: Any, known: Mapping[str, Any]) -> list[Reference]:
    """Return the tensors that a call names: Keras 2's nested lists, or Keras 3's dicts."""
    later: list[Any] = []
    found = list(_walk_references(value, known, later))
    # Each tensor of a Keras-2 call repeats the call's keyword arguments: the first copy counts.
    return found + (list(_walk_references(later[0], known, [])) if later else [])


def _walk_references(value: Any, known: Mapping[str, Any], later: list[Any]) -> Iterator[Reference]:
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            value = config.get("keras_history") if isinstance(config, dict) else None
            if not _is_reference(value, known):
                raise NotAGraphError("a call's input names no layer")
        else:
            value = list(value.values())
    if _is_reference(value, known):
        yield value[0], value[1], value[2]
        later += value[3:4]
    elif isinstance(value, list):
        if value[:2] == ["_CONSTANT_VALUE", -1]:
            later += value[3:4]
            return
        for item in value:
            yield from _walk_references(item, known, later)


def _is_reference(value: Any, known: Mapping[str, Any]) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and value[0] in known
        and type(value[1]) is int
        and type(value[2]) is int
    )


def _topological(calls: Mapping[Call, list[Reference]]) -> Iterator[Call]:
    """Yield calls after those that feed them, otherwise in the file's order."""
    order = list(calls)
    position = {call: i for i, call in enumerate(order)}
    waiting = [0] * len(order)
    followers: list[list[int]] = [[] for _ in order]
    for i, call in enumerate(order):
        for reference in calls[call]:
            if reference[:2] not in position:
                raise NotAGraphError(
                    f"{call[0]!r} is fed by a call of {reference[0]!r} that the "
                    f"file does not describe"
                )
            followers[position[reference[:2]]].append(i)
            waiting[i] += 1
    ready = [i for i, count in enumerate(waiting) if not count]
    done = 0
    while ready:
        i = heapq.heappop(ready)
        done += 1
        yield order[i]
        for follower in followers[i]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, follower)
    if done < len(order):
        raise NotAGraphError("its layers feed each other in a circle")


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an inner layer's config as it was before TFMOT wrapped it, without code."""
    plain = {}
    for key, value in config.items():
        if isinstance(value, dict) and value.get("class_name") == "QuantizeAwareActivation":
            inner = value.get("config")
            value = inner.get("activation") if isinstance(inner, dict) else None
        if isinstance(value, dict) and value.get("class_name") == "NoOpActivation":
            value = "linear"
        if key == "function" and not isinstance(value, str):  # a Lambda layer's code
            continue
        plain[key] = value
    return plain
