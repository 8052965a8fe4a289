"""Everything a reader may want the user to know: the notes of a `QatModel`, one function each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qmath._text import OPTIONS, is_plain

__all__ = [
    "ANNOTATED_ONLY",
    "GET_CONFIG",
    "NOTHING_QUANTIZED",
    "NO_ARCHITECTURE",
    "NO_CONFIG",
    "asked_eagerly",
    "assumed",
    "changes_nothing",
    "clips_only",
    "compiled",
    "compiled_functions",
    "fixed_bits",
    "fixed_unplaced",
    "forced",
    "lambda_layers",
    "leftovers",
    "no_graph",
    "no_ranges",
    "numbered",
    "overruled",
    "own_quantizer",
    "parts",
    "stored_integers",
    "unnamed",
    "unnamed_places",
    "unseen_places",
    "unused_option",
    "unused_quantizers",
    "unused_range",
    "without_a_build",
]

ANNOTATED_ONLY = (
    "The model is annotated for quantization and not quantized: quantize_apply was "
    "not called before it was trained, so annotated layers are float."
)
# What a `QuantizeConfig` has to save so that a file tells which quantizers it uses, as
# `qmath.readers.settings.tfmot` reads it: one line, as notes are. It asks with a stand-in for the
# layer, whose attributes are their own names.
GET_CONFIG = (
    "from_config = classmethod(lambda cls, config: cls()); "
    'get_config = lambda self, layer=type("Name", (str,), {"__getattr__": lambda name, part: '
    'type(name)(part)})(): {"quantizers": {str(name): {"class_name": type(quantizer).__name__, '
    '"config": quantizer.get_config()} for name, quantizer in '
    "[*self.get_weights_and_quantizers(layer), *self.get_activations_and_quantizers(layer), "
    '*(("output", quantizer) for quantizer in self.get_output_quantizers(layer))]}}'
)
_PASTES = re.compile(f"({OPTIONS}|{re.escape(GET_CONFIG)})")
NO_ARCHITECTURE = (
    "The file holds weights without the model's architecture: no layers, and none of the settings "
    "that configs hold. Name a file that has it with --architecture (architecture= in Python)."
)
NO_CONFIG = (
    "The file holds no config of the model: names are those of variables and scopes, and what runs "
    "tells the layers."
)
NOTHING_QUANTIZED = (
    "Nothing in this model is quantized: it holds no range that TFMOT's training "
    "would leave behind."
)


def no_graph(reason: str) -> str:
    """Say that the architecture is not understood, the tensors being read all the same."""
    return f"The order of the layers is not known: {reason}. The tensors are complete without it."


def lambda_layers(layers: Sequence[str]) -> str:
    """Say that code in the file was left alone."""
    return (
        f"Lambda layers carry Python code, which qmath neither runs nor copies: "
        f"{', '.join(layers)}."
    )


def leftovers(layers: Sequence[str]) -> str:
    """Say that the variables of cluster- and prune-preserving training are left out."""
    return (
        f"Left out as training leftovers (cluster centroids, original weights, indices): those "
        f"of {', '.join(layers)}. The kernels hold the result."
    )


def no_ranges(layers: Sequence[str], config: str) -> str:
    """Say that a wrapper around custom settings shows nothing that is quantized."""
    return (
        f"{config} left no range in {', '.join(layers)}: nothing there is quantized, or by "
        f"something that keeps no variables (FixedQuantizer), which the file cannot show."
    )


def assumed(tensors: Sequence[str], configs: Sequence[str]) -> str:
    """Say what is assumed of the user's own configs, and how to make sure."""
    owner = ", ".join([*filter(is_plain, configs)][:3]) or "your QuantizeConfig"
    return (
        f"Assumed: that TFMOT's own quantizers use the ranges of {_some(tensors)}; this file does "
        "not show it. To make sure, save a SavedModel, whose graph shows it; ask the live model "
        "with qmath.from_keras; or compare with a dump of the forward pass by verify --against. To "
        f"let the next file tell, put this line into the class {owner} of the training script "
        f"(cls() with its arguments, if it takes any) and save again: {GET_CONFIG}"
    )


def changes_nothing(tensor: str, quantizer: str) -> str:
    """Say that a live quantizer returned what it was given."""
    return f"{tensor}: {quantizer} changes nothing at inference; the tensor is float."


def clips_only(tensor: str, quantizer: str) -> str:
    """Say that a live quantizer clips without rounding."""
    return (
        f"{tensor}: {quantizer} clips and does not round; the tensor is float, with the values as "
        f"clipped."
    )


def compiled(what: str, build: str) -> list[str]:
    """Say that XLA compiles something, if the user takes TensorFlow's own kernels for what runs."""
    if build.startswith("xla"):
        return []
    return [
        f"{what} (jit_compile=True). XLA's kernels differ near ties from what is assumed here "
        f"(build {build!r}); for theirs pass --build xla-cpu (build='xla-cpu' in Python)."
    ]


def compiled_functions(names: Sequence[str], build: str) -> list[str]:
    """Say which functions of a file XLA compiles, if there are any."""
    what = f"The file marks functions for XLA to compile: {_some(names)}"
    return compiled(what, build) if names else []


def asked_eagerly(tensors: Sequence[str], build: str) -> list[str]:
    """Say which integers do not depend on the build, as a quantizer of the user's returned them."""
    if not tensors or build == "tf":
        return []
    return [
        f"{_some(tensors)}: recovered from what a quantizer of your own returned here, eagerly; "
        f"what it returns under the build {build!r} was not asked."
    ]


def without_a_build(build: str) -> list[str]:
    """Say that a build which the user named has no part in a TFLite file."""
    note = f"The build {build!r} changes nothing: a TFLite file holds integers, not what made them."
    return [] if build == "tf" else [note]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fixed_bits(tensor: str, num_bits: object) -> str:
    """Say that TFMOT drops the width of a fixed quantizer."""
    return (
        f"{tensor}: FixedQuantizer(num_bits={num_bits}) computes with 8 bits, as TFMOT does "
        f"not pass num_bits on."
    )


def fixed_unplaced(config: str) -> str:
    """Say that a custom config stores a fixed quantizer without saying where it applies."""
    return (
        f"{config} stores a FixedQuantizer; it keeps no variables, so the file does not show "
        f"which tensors it applies to, and none is treated as quantized by it."
    )


def forced(tensor: str, field: str, winner: str, others: str) -> str:
    """Say that a contradiction was overridden."""
    return f"{tensor}: {field} is forced: {winner}, but {others}."


def numbered(layers: Sequence[str]) -> str:
    """Say that a file holds numbers in place of some names."""
    return (
        f"The file does not hold the names of {', '.join(layers)}, only their places among the "
        f"model's layers."
    )


def overruled(
    tensor: str, field: str, winner: str, value: object, loser: str, other: object
) -> str:
    """Say that a config says something else than what the graph runs."""
    return (
        f"{tensor}: {winner} {field} is {value}, {loser} {other}; the graph is what runs, so it "
        f"counts."
    )


def own_quantizer(name: str, reason: str) -> str:
    """Say that something is quantized in a way that is not understood, so that it is float here."""
    return (
        f"{name}: quantized by its own config, and its integers are not known: {reason}. It is "
        f"given as float; qmath recover finds integers in an .npz of the values that a model uses."
    )


def parts(text: str) -> list[str]:
    """Split a text of qmath's at what is to be pasted: into prose, a paste, prose and so on.

    Examples
    --------
    >>> parts('Pass --quantizer "MyConfig.weights=NoQuantizer()" (if it has none)')
    ['Pass ', '--quantizer "MyConfig.weights=NoQuantizer()"', ' (if it has none)']
    """
    return _PASTES.split(text)


def stored_integers(tensors: Sequence[str]) -> str:
    """Say that Keras quantized a model itself, in its own convention."""
    return (
        f"Keras itself quantized {', '.join(tensors)}: the integers and scales are given as they "
        f"are, and the real values are integers / scale."
    )


def unnamed(layers: Sequence[str]) -> str:
    """Say that no file holds the names of some float variables."""
    return (
        f"This format holds no names of variables, and Keras does not define those of "
        f"{', '.join(layers)}: they are numbered."
    )


def unnamed_places(names: Sequence[str]) -> str:
    """Say that it is a choice whether a range is called that of an activation or of an output."""
    outputs = [f"{name.rpartition('/')[0]}/output" for name in names]
    return (
        f"No variable names the ranges of {', '.join(names)}: where a config is kept, they may be "
        f"{', '.join(outputs)}."
    )


def unseen_places(places: Sequence[str]) -> str:
    """Say where a quantizer may act of which the file shows nothing."""
    shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
    return (
        f"Assumed: that nothing quantizes {shown}, where no range is stored. A quantizer that "
        f"keeps no variables, such as FixedQuantizer, leaves no trace in this file."
    )


def unused_option(key: str) -> str:
    """Say that an option is about nothing in this file."""
    return f"quantizers[{key!r}] is not used: no tensor here that it is about has a range."


def unused_quantizers(tensors: Sequence[str]) -> str:
    """Say that an activation's quantizer was made and never put into its layer."""
    return (
        f"Never called: the quantizers of {', '.join(tensors)}; set_quantize_activations did not "
        f"put them into the layers, so nothing is quantized there."
    )


def unused_range(tensor: str) -> str:
    """Say that the graph shows a stored range to be of no use."""
    return (
        f"{tensor}: a range is stored, and no op of the graph that serves reads it, so nothing is "
        f"quantized by it."
    )
