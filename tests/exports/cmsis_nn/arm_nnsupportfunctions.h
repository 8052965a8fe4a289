/* A stand-in for the one inline function that is called of CMSIS-NN's header of this name. */
#ifndef ARM_NNSUPPORTFUNCTIONS_H
#define ARM_NNSUPPORTFUNCTIONS_H

#include "arm_nnfunctions.h"

static inline int32_t arm_nn_requantize(
    const int32_t value, const int32_t multiplier, const int32_t shift)
{
    return nn_requantize(value, multiplier, shift);
}

#endif
