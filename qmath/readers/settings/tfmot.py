"""What a ``QuantizeConfig`` in a file states about the tensors of its layer.

Mirrors the constructors in TFMOT's ``default_8bit_quantize_registry.py``,
``default_n_bit_quantize_registry.py``, ``default_8bit_quantize_configs.py``,
``default_n_bit_quantize_configs.py`` and ``quantize_config.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qmath.errors import FileFormatError
from qmath.layers import LAYERS
from qmath.readers.architecture.config import LayerFacts, Serialized, bare_name
from qmath.readers.records import Fact
from qmath.readers.settings.facts import KINDS, QuantizerSettings, is_width, quantizer_facts

__all__ = [
    "activation_ranges",
    "ambiguous_bits",
    "class_names",
    "config_chain",
    "config_facts",
    "expected_ranges",
    "expected_weights",
    "fixed_quantizer",
    "is_custom",
    "is_never_called",
    "layer_quantizer",
    "stores_fixed",
    "why_own",
]

# Where TFMOT's QuantizeAwareActivation quantizes each activation it knows.
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "softmax": ("pre_activation",),
    "sigmoid": ("pre_activation",),
    "tanh": ("pre_activation",),
    "gelu": ("pre_activation", "post_activation"),
    "linear": ("post_activation",),
    "relu": ("post_activation",),
    "swish": ("post_activation",),
    "NoOpActivation": (),
}

_LAYER_CONFIG = re.compile(r"Default(8|N)Bit(Conv|ConvTranspose)?QuantizeConfig(RNN)?")
_OUTPUT_CONFIG = re.compile(r"Default(8|N)Bit(Activation|Output)QuantizeConfig")
_WRAPPING_CONFIGS = {"OutputOnlyConfig": "quantize_config", "FixedQuantizeConfig": "config"}


def config_chain(layer: LayerFacts) -> tuple[Serialized, ...]:
    """Return a wrapper's ``QuantizeConfig`` and the configs that it wraps itself."""
    chain = [layer.quantize_config] if layer.quantize_config else []
    while chain and (key := _WRAPPING_CONFIGS.get(chain[-1].class_name)):
        inner = Serialized.read(chain[-1].config.get(key))
        if inner is None:
            break
        chain.append(inner)
    return tuple(chain)


def class_names(layer: LayerFacts) -> list[str]:
    """Return the names a layer's ``QuantizeConfig`` answers to, the user's own class first."""
    return [
        name
        for config in config_chain(layer)[::-1]
        for name in (bare_name(config.class_name), config.class_name)
    ]


def is_custom(config: Serialized) -> bool:
    """Tell whether a ``QuantizeConfig`` is the user's own."""
    name = config.class_name
    return not (
        name == "NoOpQuantizeConfig"
        or name in _WRAPPING_CONFIGS
        or _OUTPUT_CONFIG.fullmatch(name)
        or _LAYER_CONFIG.fullmatch(name)
    )


def config_facts(layer: LayerFacts, role: str, weight: str, weights: Sequence[str]) -> list[Fact]:
    """Return what a layer's config states about one of its tensors.

    Parameters
    ----------
    layer : LayerFacts
        The layer.
    role : str
        The tensor's, as in `QatTensor`.
    weight : str
        The variable's own name, or ``post_activation`` and the like.
    weights : sequence of str
        Names of all quantized weights of the layer.

    Raises
    ------
    FileFormatError
        One of TFMOT's own configs holds a width that does not exist.
    """
    if layer.kind == "quantize_layer":
        settings = layer_quantizer(layer)
        if settings is None or settings.kind is None:
            return []
        return quantizer_facts(settings, "config", "the file's QuantizeLayer says")
    chain = config_chain(layer)
    if not chain:
        return []
    if role != "weight" and (fixed := fixed_quantizer(layer)):
        return quantizer_facts(fixed, "config", "the file's FixedQuantizeConfig says")
    config = chain[-1]
    if (described := _described(config)) is not None:
        settings = described.get(_described_name(role, weight))
        says = f"quantizers in the file's {config.class_name} says"
        return quantizer_facts(settings, "config", says) if settings and settings.kind else []
    scheme = _scheme_quantizer(layer.path, config, role == "weight")
    if scheme is not None:
        return quantizer_facts(scheme, "config", f"the file's {config.class_name} says")
    found: list[Fact] = []
    for key, value in _entries_about(config.config, role, weight, weights):
        says = f"{key} in the file's {config.class_name} says"
        settings = _read_quantizer(value)
        if settings is not None and settings.kind is not None:
            found += quantizer_facts(settings, "config", says)
        elif is_width(value) and _subject(key)[1]:
            found.append(Fact("num_bits", value, "config", says))
    return found


def why_own(layer: LayerFacts, weight: str, quantized: bool | None, is_likely: bool) -> str:
    """Return why a weight without a range may be quantized all the same, ``""`` if it is not.

    Parameters
    ----------
    layer : LayerFacts
    weight : str
        The variable's own name.
    quantized : bool or None
        Whether the file shows that the layer's config quantizes it.
    is_likely : bool
        Whether to suspect it where no source says.
    """
    chain = config_chain(layer)
    if layer.kind != "wrapper" or quantized is False or (chain and not is_custom(chain[-1])):
        return ""
    config = bare_name(chain[-1].class_name) if chain else "its QuantizeConfig"
    if any(outer.class_name == "OutputOnlyConfig" for outer in chain):
        return ""
    if chain and (described := _described(chain[-1])) is not None:
        settings = described.get(weight)
        if settings is None or settings.kind == "NoQuantizer":
            return ""
        return f"{config} gives it a quantizer of the class {settings.class_name}"
    entries = _entries_about(chain[-1].config, "weight", weight, ()) if chain else ()
    told = [settings for _, value in entries if (settings := _read_quantizer(value))]
    if told:
        is_float = all(settings.kind == "NoQuantizer" for settings in told)
        return "" if is_float else f"{config} stores the class {told[0].class_name} for it"
    if quantized:
        return f"{config} gives it a quantizer that left no range"
    if not is_likely:
        return ""
    return (
        f"{config} left no range for it, so something that keeps no variables quantizes it, or "
        f"nothing does, which quantizers={{...: NoQuantizer()}} states (--quantizer); a SavedModel "
        f"or qmath.from_keras shows it"
    )


def _described(config: Serialized) -> Mapping[str, QuantizerSettings] | None:
    """Return all quantizers of a config by attribute, if its `notes.GET_CONFIG` saved them."""
    stored = config.config.get("quantizers")
    if not isinstance(stored, Mapping):
        return None
    read = {key: _read_quantizer(value) for key, value in stored.items()}
    return {key: settings for key, settings in read.items() if settings is not None}


def _described_name(role: str, weight: str) -> str:
    return {"activation": "activation", "output": "output"}.get(role, weight)


def ambiguous_bits(config: Serialized) -> int | None:
    """Return a width that a custom config holds without saying for which tensors."""
    found = {
        value
        for key, value in config.config.items()
        if is_width(value) and _subject(key) == ("", True)
    }
    return found.pop() if len(found) == 1 else None


def expected_weights(layer: LayerFacts) -> tuple[str, ...]:
    """Return the weights that one of TFMOT's own configs must have quantized."""
    config = _layer_config(layer)
    weights = config.config.get("weight_attrs") if config else None
    if any(outer.class_name == "OutputOnlyConfig" for outer in config_chain(layer)):
        return ()
    return tuple(map(str, weights)) if isinstance(weights, list) else ()


def expected_ranges(layer: LayerFacts) -> tuple[str, ...]:
    """Return the other ranges that it must have left: of activations and of the output."""
    config = _layer_config(layer)
    if config is None:
        return ()
    names: list[str] = []
    attributes = config.config.get("activation_attrs")
    for attribute in attributes if isinstance(attributes, list) else ():
        names += _ACTIVATIONS.get(_activation_name(layer.config.get(str(attribute))), ())
    if config.config.get("quantize_output") is True:
        names.append("output")
    return tuple(names)


def activation_ranges(layer: LayerFacts) -> tuple[str, ...]:
    """Return which ranges the quantized activations that a layer's config shows have."""
    found: list[str] = []
    for value in layer.config.values():
        read = Serialized.read(value)
        if read is not None and bare_name(read.class_name) == "QuantizeAwareActivation":
            found += _ACTIVATIONS.get(_activation_name(value), ())
    return tuple(found)


def is_never_called(layer: LayerFacts, name: str) -> bool:
    """Tell whether a layer's config shows that an activation's quantizer was put nowhere.

    TFMOT makes one for each activation that a ``QuantizeConfig`` names; its
    ``set_quantize_activations`` puts it into the layer, whose config then holds it. Asked of
    Keras's own layers under the user's own configs only: what others write is not known.
    """
    chain = config_chain(layer)
    return (
        name in ("pre_activation", "post_activation")
        and bool(chain)
        and is_custom(chain[-1])
        and layer.class_name in LAYERS
        and isinstance(layer.config.get("activation"), str)
        and not _holds_quantized_activation(layer.config)
    )


def _holds_quantized_activation(value: Any) -> bool:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        read = Serialized.read(value)
        if read is not None and bare_name(read.class_name) == "QuantizeAwareActivation":
            return True
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def layer_quantizer(layer: LayerFacts) -> QuantizerSettings | None:
    """Return the quantizer of a ``QuantizeLayer``."""
    return _settings(layer.quantizer)


def fixed_quantizer(layer: LayerFacts) -> QuantizerSettings | None:
    """Return the `FixedQuantizer` that TFMOT's ``fix_input_output_range`` put into a layer."""
    if layer.kind == "quantize_layer":
        settings = layer_quantizer(layer)
        return settings if settings and settings.kind == "FixedQuantizer" else None
    return next(
        (
            QuantizerSettings("FixedQuantizer", "FixedQuantizer", config.config)
            for config in config_chain(layer)
            if config.class_name == "FixedQuantizeConfig"
        ),
        None,
    )


def stores_fixed(config: Serialized) -> bool:
    """Tell whether a custom config holds a `FixedQuantizer` for something."""
    settings = map(_read_quantizer, config.config.values())
    return any(item is not None and item.kind == "FixedQuantizer" for item in settings)


def _layer_config(layer: LayerFacts) -> Serialized | None:
    """Return a layer's config, if it is one of TFMOT's that names what it quantizes."""
    chain = config_chain(layer)
    match = _LAYER_CONFIG.fullmatch(chain[-1].class_name) if chain else None
    return chain[-1] if match and not match[3] else None  # of RNNs, a list for each cell


def _scheme_quantizer(path: str, config: Serialized, is_weight: bool) -> QuantizerSettings | None:
    """Return the quantizer that a config of the 8-bit or n-bit scheme makes."""
    match = _LAYER_CONFIG.fullmatch(config.class_name) or _OUTPUT_CONFIG.fullmatch(
        config.class_name
    )
    if match is None:
        return None
    num_bits: Any = 8
    if match[1] == "N":
        key = "num_bits_weight" if is_weight else "num_bits_activation"
        num_bits = config.config.get(key, 8)
        if not is_width(num_bits):
            raise FileFormatError(
                f"{path}: {config.class_name} holds {key} = {num_bits!r}, not a "
                f"width from 2 to 16; the file is damaged"
            )
    kind = "LastValueQuantizer" if is_weight else "MovingAverageQuantizer"
    return QuantizerSettings(
        kind,
        kind,
        {
            "num_bits": num_bits,
            "symmetric": is_weight,
            "narrow_range": is_weight,
            "per_axis": is_weight and match[2] == "Conv",
        },
    )


def _read_quantizer(value: Any) -> QuantizerSettings | None:
    """Return a quantizer from its JSON, alone or in a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _settings(Serialized.read(value))


def _settings(read: Serialized | None) -> QuantizerSettings | None:
    if read is None:
        return None
    kind = KINDS.get(read.class_name)  # a class the user registered has a package in its name
    return QuantizerSettings(read.class_name, kind, read.config)


def _activation_name(value: Any) -> str:
    """Return the name of an activation, from within ``QuantizeAwareActivation``."""
    read = Serialized.read(value)
    if read is not None and read.class_name == "QuantizeAwareActivation":
        value = read.config.get("activation")
        read = Serialized.read(value)
    if read is not None:
        return read.class_name
    return value if isinstance(value, str) else ""


_BIT_WORDS = frozenset({"bits", "bit", "nbits", "bitwidth"})
_FILLERS = _BIT_WORDS | {"num", "number", "of", "n", "width", "quantizer", "quantizers", "quant"}
_SUBJECTS: Mapping[str, frozenset[str]] = {
    "weight": frozenset({"weight", "weights"}),
    "activation": frozenset({"activation", "activations", "act"}),
    "output": frozenset({"output", "outputs"}),
}


def _subject(key: str) -> tuple[str, bool]:
    """Split a config's key into what it is about, and whether it is about a width.

    ``weight_num_bits`` → ``("weight", True)``, ``kernelQuantizer`` → ``("kernel", False)``.
    """
    words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    return "_".join(w for w in words if w not in _FILLERS), not _BIT_WORDS.isdisjoint(words)


def _entries_about(
    config: Mapping[str, Any], role: str, weight: str, weights: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a custom config that are surely about one tensor.

    A key that names the variable counts most; ``weight`` and ``kernel`` are not about a bias, nor
    is ``kernel`` about one of several kernels.
    """
    subjects = {key: _subject(key)[0] for key in config}
    named = [key for key, words in subjects.items() if words in (weight, f"{weight}s")]
    if not named:
        general = _SUBJECTS.get(role, frozenset())
        if role == "weight" and "bias" in weight:
            general = frozenset()
        elif (
            role == "weight"
            and weight.endswith("kernel")
            and (sum(other.endswith("kernel") for other in weights) == 1)
        ):
            general |= {"kernel", "kernels"}
        named = [key for key, words in subjects.items() if words in general]
    for key in named:
        yield key, config[key]
