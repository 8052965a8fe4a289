"""Print what public functions return in one floating-point environment: digests, or the errors.

``python -m tests.kernels.float_results ENVIRONMENT LIBRARY``. The environment is ``plain``,
``seterr``, a function of the library, which is `SOURCE` compiled, or ``after`` one of them: as it
was before, but after calls in it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Callable

import numpy as np

SOURCE = """
#include <fenv.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
static void flush(int on) { _mm_setcsr(on ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040); }
#else
static void flush(int on) {
    unsigned long fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    fpcr = on ? fpcr | 1ul << 24 : fpcr & ~(1ul << 24);
    __asm__ volatile("msr fpcr, %0" : : "r"(fpcr));
}
#endif
void flush_to_zero(void) { flush(1); }
void keep_subnormals(void) { flush(0); }
void down(void) { fesetround(FE_DOWNWARD); }
void up(void) { fesetround(FE_UPWARD); }
void toward_zero(void) { fesetround(FE_TOWARDZERO); }
void to_nearest(void) { fesetround(FE_TONEAREST); }
"""
Results = dict[str, Callable[[], object]]


def digest(found: object) -> str:
    """Return a digest of arrays, bytes, and tuples and mappings of them."""
    sha = hashlib.sha256()

    def add(part: object) -> None:
        if dataclasses.is_dataclass(part):
            part = vars(part)
        if isinstance(part, dict):
            part = tuple(part.values())
        if isinstance(part, (tuple, list)):
            for one in part:
                add(one)
        elif part is None or isinstance(part, (str, bytes, int)):
            sha.update(repr(part).encode())
        else:
            array = np.asarray(part)
            if array.dtype.kind == "f":  # which NaN it is depends on NumPy's version
                array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
            sha.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())

    add(found)
    return sha.hexdigest()


def kernels() -> Results:
    """Return calls of every public kernel, on floats of every kind."""
    import qmath
    from qmath.kernels import exact

    rng = np.random.default_rng(0)
    magnitudes = rng.integers(0, 1 << 23, 20_000, np.uint32)
    signs = rng.integers(0, 2, magnitudes.size, np.uint32) << 31
    any_bits = rng.integers(0, 1 << 32, 50_000, np.uint32).view(np.float32)
    inputs = {
        "any": any_bits[~np.isnan(any_bits)],
        "nan": any_bits,  # signalling ones too
        "subnormal": (magnitudes | signs).view(np.float32),
        "normal": rng.standard_normal(1 << 20).astype(np.float32),  # on several threads
    }
    ranges = ((-1.0, 1.0), (-0.37, 2.11), (-3e-39, 5e-39), (0.0, 1e-37), (1.0, -1.0), (0.0, 0.0))
    calls: Results = {}

    def add(name: str, call: Callable[..., object], *args: object, **options: object) -> None:
        calls[name] = lambda: call(*args, **options)

    for kind, x in inputs.items():
        g = x[::-1]
        for low, high in ranges:
            where = f"{kind} {low} {high}"
            add(f"vars {where}", qmath.fake_quant_with_min_max_vars, x, low, high, 4)
            add(f"args {where}", qmath.fake_quant_with_min_max_args, x, low, high, 4)
            for op in ("args", "vars"):
                gradient = getattr(qmath, f"fake_quant_with_min_max_{op}_gradient")
                add(f"{op} gradient {where}", gradient, g, x, low, high)
            add(f"quantize {where}", qmath.quantize, x, low, high, 8)
            add(f"v2 {where}", qmath.quantize_and_dequantize_v2, x, low, high, range_given=True)
            add(f"v2 gradient {where}", qmath.quantize_and_dequantize_v2_gradient, g, x, low, high)
        add(f"v2 of data {kind}", qmath.quantize_and_dequantize_v2, x, 0, 0)
        add(f"recover {kind}", qmath.recover, x[:50])
        add(f"doubles {kind}", qmath.fake_quant_with_min_max_vars, doubles(x), -1, 1)
        columns = x[: x.size // 8 * 8].reshape(-1, 8)
        ends = np.float32([-1, -3e-39, 0, -2, -1e-30, -7, 1, 0]), np.float32([1] * 7 + [0])
        channels = "fake_quant_with_min_max_vars_per_channel"
        add(f"channels {kind}", getattr(qmath, channels), columns, *ends, 3)
        add(f"channels' gradient {kind}", getattr(qmath, f"{channels}_gradient"),
            columns, columns, *ends)  # fmt: skip
        for name in ("LastValue", "MovingAverage", "AllValues"):
            add(f"{name} {kind}", trained, getattr(qmath, f"{name}Quantizer"), x)
        if kind not in ("any", "nan"):
            wide = {"narrow_range": False, "zero_point": 128}
            add(f"exact {kind}", exact.relative_integers, x[:999], -1.0, 1.0, 8, **wide)
            add(f"near {kind}", exact.near_ties, x[:999], -1.0, 1.0, 8, **wide)
    add("zero points", exact.zero_points, -1.0, 3e-39, 8, narrow_range=False)
    lattice = np.arange(-7, 8, dtype=np.float32)
    for scale in (0.1, 3e-38, 1e-39):
        add(f"recover {scale}", qmath.recover, lattice * np.float32(scale), max_bits=4)
    add("dequantize", lambda: qmath.quantize([0.3, -1.0], -1.0, 0.75, 3).dequantize())
    return calls


def doubles(x: np.ndarray) -> np.ndarray:
    """Return float64 that are no float32."""
    with np.errstate(all="ignore"):
        return x * np.float64(1 + 2**-30)


def trained(kind: type, x: np.ndarray) -> tuple[object, ...]:
    quantizer = kind(5, per_axis=False, symmetric=True, narrow_range=False)
    state = quantizer.build(x.shape)
    return quantizer(x, training=True, weights=state), state["min_var"], state["max_var"]


def models() -> Results:
    """Return runs and exports of small models."""
    import qmath
    from qmath.exports.arrays.npz import Npz
    from qmath.exports.onnx.qdq import Onnx
    from qmath.integer.lowering.activations import softmax
    from tests.exports import networks

    calls: Results = {}

    def export(model: qmath.QatModel, exporter: type) -> bytes:
        file = io.BytesIO()
        exporter().write(qmath.quantize_model(model), file)
        return file.getvalue()

    def run(model: qmath.QatModel, profile: str) -> object:
        shape = model.graph.nodes[0].config["batch_input_shape"][1:]
        data = np.random.default_rng(1).uniform(-1, 1, (3, *shape))
        return qmath.run(model, data, profile=profile).integers

    calls["softmax"] = lambda: softmax(np.float32([[0, -90]]))
    with np.errstate(all="ignore"):
        calls |= float_layers()
    for make in (networks.images, networks.branches, networks.float_layers):
        for profile in ("exact", "integer", "tflite", "xnnpack"):
            calls[f"{make.__name__} {profile}"] = lambda m=make, p=profile: run(m(), p)
        calls[f"{make.__name__} npz"] = lambda m=make: export(m(), Npz)
        calls[f"{make.__name__} onnx"] = lambda m=make: export(m(), Onnx)
    return calls


def float_layers() -> Results:
    """Return runs of one layer in float32, on data and with weights of several magnitudes."""
    from qmath.integer.executor import Executor
    from qmath.integer.lowering.lower import lower
    from tests.exports import networks

    kinds = {
        "Dense": {"kernel": (3, 2)},
        "Conv2D": {"kernel": (2, 2, 3, 2)},
        "BatchNormalization": {},
        "LeakyReLU": {"alpha": 0.3},
        "Subtract": {},
        "GlobalAveragePooling2D": {},
        "MaxPooling2D": {},
        "Flatten": {},
        **{name: {"activation": name} for name in ("sigmoid", "tanh", "swish", "softmax", "relu")},
    }
    x = np.random.default_rng(2).standard_normal((5, 4, 4, 3)).astype(np.float32)
    calls: Results = {}
    for kind, options in kinds.items():
        class_name = "Activation" if "activation" in options else kind
        has_weights = class_name in ("Dense", "Conv2D", "BatchNormalization")
        for weight in (1.0, 1e-20, 1e-40) if has_weights else (1.0,):
            model = networks.one_float_layer(class_name, weight, **options)
            for size in (1.0, 100.0, 1e-10, 1e-25, 1e-37, 1e-42):
                data = x * np.float32(size)
                calls[f"float {size} {weight} {kind}"] = lambda m=model, d=data: Executor(
                    lower(m)
                ).run({m.graph.nodes[0].name: d})
    return calls


def outcomes(calls: Results) -> dict[str, str]:
    """Return the digest of each result, or what was raised."""
    found = {}
    for name, call in calls.items():
        try:
            found[name] = digest(call())
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main(environment: str, library: str) -> None:
    warnings.simplefilter("error")
    if environment == "seterr":
        np.seterr(all="raise")
        calls = kernels() | models()
    elif environment.startswith("after "):  # what is kept for later calls must be right
        functions, calls = ctypes.CDLL(library), kernels() | models()
        getattr(functions, environment.removeprefix("after "))()
        outcomes(calls)
        functions.to_nearest(), functions.keep_subnormals()
    else:
        calls = kernels() | models()
        if environment != "plain":
            getattr(ctypes.CDLL(library), environment)()
    print(json.dumps(outcomes(calls)))


if __name__ == "__main__":
    main(*sys.argv[1:])
