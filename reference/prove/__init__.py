"""The prover: every float32 through qmath and TensorFlow, ``python -m reference.prove``.

Three kinds of tasks, each of which ends in a record of the certificate:

sweeps
    All 2**32 bit patterns through one configuration of an op, and of `qmath.quantize` where it has
    the op's integers.
thresholds
    Some thousands of ranges, and for each every float within 64 ulp of every place where the
    output steps. The places are found by bisection on the function itself, so they are exact. As
    every operation of the kernels is monotone, equal outputs on both sides of every step (and at
    the infinities) leave no room for a difference in between.
round trips
    ``quantize(dequantize(q)) == q`` for every integer and every zero point.
"""
