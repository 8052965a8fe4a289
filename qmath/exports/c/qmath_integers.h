/* Integers of 2 to 16 bits as qmath packs them: how to read one. C99, no libraries.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Lines of `line` integers begin with a whole byte or word; mostly, the whole array is one line.
 */
#ifndef QMATH_INTEGERS_H
#define QMATH_INTEGERS_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    QM_INT8,   /* one to a byte */
    QM_INT16,  /* one to two bytes, in the machine's order */
    QM_LSB,    /* a stream of bits, each byte filled from its lowest bit on */
    QM_MSB,    /* a stream of bits, each byte filled from its highest bit on */
    QM_WORDS   /* uint32_t of whole integers, the first in the lowest bits */
} qm_packing;

typedef struct {
    const void *data;
    size_t size;         /* integers */
    size_t line;         /* integers of a line */
    qm_packing packing;
    int num_bits;
    int is_signed;       /* two's complement, or counted from 0 */
} qm_integers;

/* Bits of one integer in a stream; no byte is read that holds none of them. */
static inline uint32_t qm_stream_bits(const qm_integers *a, size_t line, size_t place)
{
    const size_t n = (size_t)a->num_bits;
    const uint8_t *bytes = (const uint8_t *)a->data + line * ((a->line * n + 7) / 8);
    const size_t first = place * n / 8, last = (place * n + n - 1) / 8;
    const unsigned skipped = (unsigned)(place * n % 8);
    uint32_t bits = 0;
    size_t i;

    for (i = first; i <= last; ++i) {
        if (a->packing == QM_LSB)
            bits |= (uint32_t)bytes[i] << 8 * (i - first);
        else
            bits = bits << 8 | bytes[i];
    }
    if (a->packing == QM_LSB)
        return bits >> skipped;
    return bits >> (8 * (last - first + 1) - skipped - n);
}

/* The integer at `index` of the array in C order. */
static inline int32_t qm_integer(const qm_integers *a, size_t index)
{
    const size_t n = (size_t)a->num_bits, line = index / a->line, place = index % a->line;
    const uint32_t mask = ((uint32_t)1 << n) - 1, sign = (uint32_t)1 << (n - 1);
    uint32_t bits;

    if (a->packing == QM_INT8) {
        bits = ((const uint8_t *)a->data)[index];
    } else if (a->packing == QM_INT16) {
        bits = ((const uint16_t *)a->data)[index];
    } else if (a->packing == QM_WORDS) {
        const size_t whole = 32 / n, words = (a->line + whole - 1) / whole;
        bits = ((const uint32_t *)a->data)[line * words + place / whole] >> place % whole * n;
    } else {
        bits = qm_stream_bits(a, line, place);
    }
    bits &= mask;
    return a->is_signed ? (int32_t)(bits ^ sign) - (int32_t)sign : (int32_t)bits;
}

#endif
