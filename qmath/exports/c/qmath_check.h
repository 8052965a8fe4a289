/* The self-check of an export: checksums and samples. C99 and stdio.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef QMATH_CHECK_H
#define QMATH_CHECK_H

#include <stdio.h>
#include <string.h>

#include "qmath_integers.h"

typedef struct {
    size_t index;
    int32_t integer;
} qm_sample;

/* CRC-32 as in zlib and PNG, of the bytes of 32-bit words, the lowest first; start with 0. */
static inline uint32_t qm_crc32(uint32_t crc, uint32_t word)
{
    int bit;

    crc = ~crc ^ word;
    for (bit = 0; bit < 32; ++bit)
        crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    return ~crc;
}

/* Print what differs, if it does; return how much does: 0 or 1. */
static inline int qm_report(const char *name, const char *what, uint32_t found, uint32_t expected)
{
    if (found == expected)
        return 0;
    printf("%s: %s is %lu, expected %lu\n", name, what, (unsigned long)found,
           (unsigned long)expected);
    return 1;
}

static inline uint32_t qm_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Unpack every integer. */
static inline int qm_check_integers(const char *name, const qm_integers *a, uint32_t crc,
                                    const qm_sample *samples, size_t count)
{
    uint32_t found = 0;
    size_t i;
    int failures = 0;

    for (i = 0; i < count; ++i)
        failures += qm_report(name, "an integer", (uint32_t)qm_integer(a, samples[i].index),
                              (uint32_t)samples[i].integer);
    for (i = 0; i < a->size; ++i)
        found = qm_crc32(found, (uint32_t)qm_integer(a, i));
    return failures + qm_report(name, "the checksum of the integers", found, crc);
}

/* The bits of values of 1, 2, 4 or 8 bytes, narrow ones widened: those of 8 bytes low word first. */
static inline int qm_check_values(const char *name, const void *values, size_t size, size_t count,
                                  uint32_t crc)
{
    const unsigned char *bytes = (const unsigned char *)values;
    uint32_t found = 0;
    size_t i;

    for (i = 0; i < count; ++i, bytes += size) {
        if (size == 1) {
            found = qm_crc32(found, *bytes);
        } else if (size == 2) {
            uint16_t word;
            memcpy(&word, bytes, 2);
            found = qm_crc32(found, word);
        } else if (size == 4) {
            uint32_t word;
            memcpy(&word, bytes, 4);
            found = qm_crc32(found, word);
        } else {
            uint64_t word;
            memcpy(&word, bytes, 8);
            found = qm_crc32(found, (uint32_t)word);
            found = qm_crc32(found, (uint32_t)(word >> 32));
        }
    }
    return qm_report(name, "the checksum of the values", found, crc);
}

/* Integer i of an array of one or two bytes each, unsigned, or of four. */
static inline int32_t qm_found(const void *found, int bytes, size_t i)
{
    if (bytes == 1)
        return ((const uint8_t *)found)[i];
    if (bytes == 2)
        return ((const uint16_t *)found)[i];
    return ((const int32_t *)found)[i];
}

/* What an element of directed vectors is there for: bit i of a tag is the purpose i. */
#define QM_PURPOSES 20
static const char *const qm_purposes[QM_PURPOSES] = {
    "greatest accumulator", "least accumulator", "upper clamp", "past the upper clamp",
    "lower clamp", "past the lower clamp", "below a tie", "above a tie", "half to even",
    "half away from zero", "double rounding", "16-bit multiplier", "12-bit multiplier",
    "narrow accumulator", "no rounding", "constant input", "border", "position",
    "every integer", "end of the range"};

typedef struct {
    uint32_t element, purposes;
    int32_t expected;
} qm_tag;

/* How a layer does on its directed vectors. */
typedef struct {
    size_t wrong[QM_PURPOSES], all[QM_PURPOSES];
    size_t first[QM_PURPOSES];  /* the first wrong element */
    int32_t found[QM_PURPOSES], expected[QM_PURPOSES];
    size_t outputs, differing, next;
} qm_tally;

/* Count one output, against its checksum and the tags of its elements. */
static inline void qm_count(qm_tally *t, const void *found, int bytes, size_t size, uint32_t crc,
                            const qm_tag *tags, size_t count)
{
    const size_t before = t->outputs * size;
    uint32_t sum = 0;
    size_t i;
    int p;

    for (i = 0; i < size; ++i)
        sum = qm_crc32(sum, (uint32_t)qm_found(found, bytes, i));
    t->differing += sum != crc;
    t->outputs += 1;
    for (; t->next < count && tags[t->next].element < before + size; ++t->next) {
        const qm_tag *tag = &tags[t->next];
        const int32_t value = qm_found(found, bytes, tag->element - before);
        for (p = 0; p < QM_PURPOSES; ++p)
            if (tag->purposes >> p & 1) {
                t->all[p] += 1;
                if (value != tag->expected && !t->wrong[p]++) {
                    t->first[p] = tag->element;
                    t->found[p] = value;
                    t->expected[p] = tag->expected;
                }
            }
    }
}

/* Print of a layer that differs which purposes fail, and which never do; return 1 if it differs. */
static inline int qm_report_tally(const char *name, const qm_tally *t, size_t channels)
{
    int p;

    if (!t->differing)
        return 0;
    printf("%s: %lu of %lu directed outputs differ\n", name, (unsigned long)t->differing,
           (unsigned long)t->outputs);
    for (p = 0; p < QM_PURPOSES; ++p)
        if (t->wrong[p])
            printf("  %s: %lu of %lu wrong, the first in channel %lu: %ld, expected %ld\n",
                   qm_purposes[p], (unsigned long)t->wrong[p], (unsigned long)t->all[p],
                   (unsigned long)(t->first[p] % channels), (long)t->found[p],
                   (long)t->expected[p]);
    printf("  never wrong:");
    for (p = 0; p < QM_PURPOSES; ++p)
        if (t->all[p] && !t->wrong[p])
            printf(" %s;", qm_purposes[p]);
    printf("\n");
    return 1;
}

#ifdef QMATH_KERNELS_H

/* A tensor of the integer model against the checksum of its integers. */
static inline int qm_check_tensor(const char *name, const void *found, int bytes, size_t size,
                                  uint32_t crc)
{
    uint32_t sum = 0;
    size_t i;

    for (i = 0; i < size; ++i)
        sum = qm_crc32(sum, (uint32_t)qm_found(found, bytes, i));
    return qm_report(name, "the checksum", sum, crc);
}

/* The same against the integers themselves. */
static inline int qm_check_output(const char *name, const void *found, int bytes, size_t size,
                                  const void *expected)
{
    size_t i;

    for (i = 0; i < size; ++i)
        if (qm_found(found, bytes, i) != qm_found(expected, bytes, i)) {
            printf("%s: element %lu is %ld, expected %ld\n", name, (unsigned long)i,
                   (long)qm_found(found, bytes, i), (long)qm_found(expected, bytes, i));
            return 1;
        }
    return 0;
}

#endif

#endif
