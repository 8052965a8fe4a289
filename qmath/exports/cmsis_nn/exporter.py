"""The ``cmsis-nn`` format: what CMSIS-NN's functions take, and calls of them.

``docs/code.md`` says what the files are for.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmath.errors import OutputError
from qmath.exports.bundle import Bundle
from qmath.exports.c import source
from qmath.exports.c.tensors import Code, Names, check_prefix
from qmath.exports.cmsis_nn.calls import Writer
from qmath.exports.cmsis_nn.layers import layers
from qmath.exports.cmsis_nn.vectors import check_source
from qmath.exports.exporter import Content, Exporter, option

__all__ = ["CmsisNn"]

_HEAD = (
    "/* Integers as TFLite stores them: signed, weights without a zero point. Dense layers are",
    " * rounded twice, as CMSIS-NN does, where TFLite rounds once, from double. */",
)


class CmsisNn(Exporter):
    """The ``cmsis-nn`` format, of a bundle with an integer model.

    Raises
    ------
    OutputError
        The prefix is not an identifier; there is no integer model, or nothing in it is a layer of
        CMSIS-NN.
    """

    name = "cmsis-nn"
    is_folder = True
    vectors = 1
    prefix: str = option("model", "what all names begin with: an identifier")
    rounding: str = option(
        "double",
        "what the test vectors expect; single: of a CMSIS-NN built with "
        "CMSIS_NN_USE_SINGLE_ROUNDING",
        ("double", "single"),
    )

    def files(self, bundle: Bundle) -> Iterator[tuple[str, Content]]:
        """Yield the name and the text of each source file."""
        prefix = self.prefix
        check_prefix(prefix)
        if bundle.program is None:
            raise OutputError(
                f"CMSIS-NN needs an integer model, and there is none; notes: {bundle.obstacles}"
            )
        found, others = layers(bundle.program)
        if not found:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in others.items())
            raise OutputError(f"nothing in this model is a layer of CMSIS-NN: {reasons}")
        code, names = Code(), Names(prefix, bundle)
        writer = Writer(code, names)
        for layer in found:
            writer.add(layer)
        title = source.title(bundle.manifest)
        head = [
            f"/* The layers that CMSIS-NN computes of {title}",
            *_HEAD,
            *(source.comment(f"Not in here: {name}: {reason}") for name, reason in others.items()),
            "",
            '#include "qmath_integers.h"',
        ]
        yield "qmath_integers.h", source.template("qmath_integers.h")
        yield "qmath_check.h", source.template("qmath_check.h")
        yield f"{prefix}.h", source.header(f"{prefix}.h", head, code.header)
        own = f'#include "{prefix}.h"'
        yield f"{prefix}_data.c", source.text([f"/* The integers of {title}", own, "", *code.data])
        includes = ["arm_nnfunctions.h"]
        if any(layer.kind == "avgpool" for layer in found):
            includes.append("arm_nnsupportfunctions.h")  # for arm_nn_requantize
        calls = [f"/* Calls of CMSIS-NN for {title}"]
        calls += [*(f'#include "{name}"' for name in includes), "", own]
        yield f"{prefix}_layers.h", source.header(f"{prefix}_layers.h", calls, writer.functions)
        test = check_source(bundle, code, found, writer, prefix, self.rounding)
        yield f"{prefix}_test.c", source.text([f"/* A check of {title}", own, *test])
