/* Kernels of qmath's integer models. C99, also C++, no libraries, no malloc.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A tensor is an array of unsigned integers of one or two bytes in the order height, width,
 * channels; kernels see them relative to the zero point, so that real zero is 0. Outputs are made
 * in blocks of a few pixels and QM_LANES channels: each term of a sum gives a block of
 * accumulators, and qm_requantize multiplies them in 64 bits and rounds once. qmath proved that no
 * accumulator overflows. Loops over QM_LANES have a constant length, so that compilers vectorise.
 */
#ifndef QMATH_KERNELS_H
#define QMATH_KERNELS_H

#include "qmath_integers.h"

#ifdef QM_WIDE
typedef int64_t qm_int;  /* accumulators of more than 32 bits */
#else
typedef int32_t qm_int;
#endif

#ifdef QM_WIDE_VALUES
typedef qm_int qm_value;
#else
typedef int16_t qm_value;  /* inputs and weights, relative to their zero points */
#endif

#ifndef QM_PIXELS
#define QM_PIXELS 4
#endif
#define QM_LANES 16
#define QM_BLOCK (QM_PIXELS * QM_LANES)

typedef struct {
    void *data;
    int bytes;           /* of an integer: 1 or 2; those of a qm_int for accumulators */
    int32_t zero_point;
} qm_tensor;

/* Pixels are numbered through all axes but the last, which is the channels. */
typedef struct {
    size_t pixels;              /* of the output */
    int32_t channels;
    size_t first;               /* of the block */
    int32_t count, channel, lanes;
} qm_block;

/* A kernel computes a block of accumulators: that of pixel p and lane l is number
 * p * QM_LANES + l. */
typedef struct qm_term {
    void (*kernel)(qm_int *sums, const struct qm_term *t, const qm_block *b);
    qm_tensor in;
    const void *of;             /* what this kernel has to know */
} qm_term;

typedef struct {
    int32_t height, width, channels;
} qm_shape;

/* Of convolutions and pools: pairs are height and width. */
typedef struct {
    qm_shape in, out;
    int32_t kernel[2], stride[2], dilation[2];
    int32_t pad[2];  /* before the first row and column; of a transposed convolution, cropped */
} qm_window;

/* The integer at height h, width w, channels a and b is number
 * first + h * stride[0] + w * stride[1] + a * stride[2] + b * stride[3]. */
typedef struct {
    const qm_integers *integers;
    int32_t stride[4];
    int32_t depth;              /* how many a there are */
    const int32_t *zero_point;  /* one, or one for each b */
    int32_t zero_points;
    int32_t first;
} qm_weights;

/* Of convolutions of three axes: the first of them, of which a qm_window tells the others. */
typedef struct {
    int32_t in, out, kernel, stride, dilation, pad;
    int32_t weights;  /* how far apart the planes of the kernel are */
} qm_depth;

typedef struct {
    qm_window window;
    qm_weights weights;
    qm_depth depth;
} qm_convolution;

/* y = sum(accumulator * multiplier) + addend, then y >> shift. */
typedef struct {
    const int32_t *const *multiplier;  /* of each term */
    const int64_t *addend;             /* half a step, for rounding, is in it */
    const uint8_t *shift;
} qm_scaling;

/* Constants have the number pixel / pixels * pixel_step + channel * channel_step. */
typedef struct {
    qm_scaling scaling;
    const qm_scaling *negative;  /* of a leaky ReLU: what counts where y is negative */
    const int32_t *low, *high;   /* one, or as many as there are constants */
    int32_t clamps;              /* how many there are of these */
    int32_t terms;
    size_t constants, pixels, pixel_step;
    int32_t channel_step;        /* 0 or 1 */
} qm_requantization;

/* A float range as training left it. */
typedef struct {
    float min, max;     /* where the integers end */
    float factor;       /* the scale, or its inverse */
    float zero;         /* -min in steps, rounded */
    int divides;        /* whether the factor is the scale */
} qm_range;

/* An integer relative to the zero point. */
static inline qm_int qm_get(const qm_tensor *t, size_t i)
{
    if (t->bytes == 1)
        return (qm_int)((const uint8_t *)t->data)[i] - t->zero_point;
    if (t->bytes == 2)
        return (qm_int)((const uint16_t *)t->data)[i] - t->zero_point;
    return ((const qm_int *)t->data)[i];
}

static inline void qm_set(const qm_tensor *t, size_t i, qm_int integer)
{
    if (t->bytes == 1)
        ((uint8_t *)t->data)[i] = (uint8_t)(integer + t->zero_point);
    else if (t->bytes == 2)
        ((uint16_t *)t->data)[i] = (uint16_t)(integer + t->zero_point);
    else
        ((qm_int *)t->data)[i] = integer;
}

/* n neighbours from number `at` on. */
static inline void qm_load(qm_value *to, const qm_tensor *t, size_t at, int32_t n)
{
    const uint8_t *const bytes = (const uint8_t *)t->data + at;
    int32_t l;

    if (t->bytes != 1)
        for (l = 0; l < n; ++l)
            to[l] = (qm_value)qm_get(t, at + (size_t)l);
    else if (n == QM_LANES)
        for (l = 0; l < QM_LANES; ++l)
            to[l] = (qm_value)(bytes[l] - t->zero_point);
    else
        for (l = 0; l < n; ++l)
            to[l] = (qm_value)(bytes[l] - t->zero_point);
}

static inline void qm_store(const qm_tensor *t, size_t at, const qm_int *from, int32_t n)
{
    uint8_t *const bytes = (uint8_t *)t->data + at;
    int32_t l;

    if (t->bytes == 1)
        for (l = 0; l < n; ++l)
            bytes[l] = (uint8_t)(from[l] + t->zero_point);
    else
        for (l = 0; l < n; ++l)
            qm_set(t, at + (size_t)l, from[l]);
}

static inline size_t qm_weight_at(const qm_weights *k, int32_t h, int32_t w, int32_t a, int32_t b)
{
    const int32_t *s = k->stride;

    return (size_t)k->first + (size_t)h * (size_t)s[0] + (size_t)w * (size_t)s[1]
           + (size_t)a * (size_t)s[2] + (size_t)b * (size_t)s[3];
}

static inline qm_value qm_weight(const qm_weights *k, int32_t h, int32_t w, int32_t a, int32_t b)
{
    const int32_t zero_point = k->zero_point[k->zero_points > 1 ? b : 0];

    return (qm_value)(qm_integer(k->integers, qm_weight_at(k, h, w, a, b)) - zero_point);
}

/* n neighbours of a weight, along channels a (axis 2) or b (axis 3). */
static inline void qm_line(qm_value *to, const qm_weights *k, int32_t h, int32_t w, int32_t a,
                           int32_t b, int axis, int32_t n)
{
    const size_t at = qm_weight_at(k, h, w, a, b);
    int32_t l;

    if (k->integers->packing == QM_INT8 && k->integers->is_signed && k->zero_points == 1
        && k->stride[axis] == 1) {
        const int8_t *const from = (const int8_t *)k->integers->data + at;
        const int32_t zero_point = *k->zero_point;
        if (n == QM_LANES)
            for (l = 0; l < QM_LANES; ++l)
                to[l] = (qm_value)(from[l] - zero_point);
        else
            for (l = 0; l < n; ++l)
                to[l] = (qm_value)(from[l] - zero_point);
    } else {
        for (l = 0; l < n; ++l)
            to[l] = axis == 2 ? qm_weight(k, h, w, a + l, b) : qm_weight(k, h, w, a, b + l);
    }
}

static inline size_t qm_at(const qm_shape *s, int32_t y, int32_t x, int32_t c)
{
    return ((size_t)y * (size_t)s->width + (size_t)x) * (size_t)s->channels + (size_t)c;
}

/* Whether position i of the kernel at output y reads an input; *row is which. */
static inline int qm_reads(const qm_window *p, int axis, int32_t y, int32_t i, int32_t *row)
{
    const int32_t size = axis ? p->in.width : p->in.height;

    *row = y * p->stride[axis] + i * p->dilation[axis] - p->pad[axis];
    return *row >= 0 && *row < size;
}

/* Whether input *row reaches output y by position i of the kernel. */
static inline int qm_reaches(const qm_window *p, int axis, int32_t y, int32_t i, int32_t *row)
{
    const int32_t size = axis ? p->in.width : p->in.height;
    const int32_t place = y + p->pad[axis] - i * p->dilation[axis];

    *row = place / p->stride[axis];
    return place >= 0 && place % p->stride[axis] == 0 && *row < size;
}

/* Where output pixel number n reads under position (i, j) of the kernel: its first channel, or
 * SIZE_MAX. */
static inline size_t qm_under(const qm_window *p, size_t n, int32_t i, int32_t j,
                              int (*reads)(const qm_window *, int, int32_t, int32_t, int32_t *))
{
    const size_t width = (size_t)p->out.width;
    int32_t row, column;

    if (reads(p, 0, (int32_t)(n / width), i, &row) && reads(p, 1, (int32_t)(n % width), j, &column))
        return qm_at(&p->in, row, column, 0);
    return SIZE_MAX;
}

static inline void qm_clear(qm_int *sums)
{
    int32_t i;

    for (i = 0; i < QM_BLOCK; ++i)
        sums[i] = 0;
}

/* Add the products of one position of the kernel: pixel p has its inputs at[p] and further. Lanes
 * from `lane` on, `n` of them, are the output channels o and further, along an axis of weights. */
static inline void qm_add_products(qm_int *sums, const qm_tensor *in, const size_t *at,
                                   const qm_weights *k, int32_t depth, int32_t i, int32_t j,
                                   int32_t o, int axis, int32_t lane, int32_t n)
{
    qm_value x[QM_PIXELS][QM_LANES], w[QM_LANES] = {0};
    int32_t c, p, l, first, count;

    for (first = 0; first < depth; first += QM_LANES) {
        count = depth - first < QM_LANES ? depth - first : QM_LANES;
        for (p = 0; p < QM_PIXELS; ++p) {
            if (at[p] != SIZE_MAX)
                qm_load(x[p], in, at[p] + (size_t)first, count);
            else
                for (l = 0; l < QM_LANES; ++l)
                    x[p][l] = 0;
        }
        for (c = 0; c < count; ++c) {
            const int32_t a = axis == 3 ? first + c : o, b = axis == 3 ? o : first + c;
            qm_line(w + lane, k, i, j, a, b, axis, n);
            for (p = 0; p < QM_PIXELS; ++p)
                for (l = 0; l < QM_LANES; ++l)
                    sums[p * QM_LANES + l] += (qm_int)x[p][c] * w[l];
        }
    }
}

/* Channels of groups, if the kernel has fewer inputs than there are. */
static inline void qm_conv(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_convolution *const f = (const qm_convolution *)t->of;
    const qm_window *const p = &f->window;
    const size_t in_plane = qm_at(&p->in, p->in.height, 0, 0);
    const size_t out_plane = (size_t)p->out.height * (size_t)p->out.width;
    const int32_t of_group = p->out.channels / (p->in.channels / f->weights.depth);
    qm_weights k = f->weights;
    size_t at[QM_PIXELS];
    int32_t z, i, j, n, lane, count;

    qm_clear(sums);
    for (lane = 0; lane < b->lanes; lane += count) {
        const int32_t o = b->channel + lane, first = o / of_group * k.depth;
        count = of_group - o % of_group;
        count = count < b->lanes - lane ? count : b->lanes - lane;
        for (z = 0; z < f->depth.kernel; ++z) {
            k.first = f->weights.first + z * f->depth.weights;
            for (i = 0; i < p->kernel[0]; ++i)
                for (j = 0; j < p->kernel[1]; ++j) {
                    int any = 0;
                    for (n = 0; n < QM_PIXELS; ++n) {
                        const size_t pixel = b->first + (size_t)n;
                        const int32_t plane = (int32_t)(pixel / out_plane) * f->depth.stride
                                              + z * f->depth.dilation - f->depth.pad;
                        at[n] = SIZE_MAX;
                        if (n < b->count && plane >= 0 && plane < f->depth.in)
                            at[n] = qm_under(p, pixel % out_plane, i, j, qm_reads);
                        if (at[n] != SIZE_MAX) {
                            at[n] += (size_t)plane * in_plane + (size_t)first;
                            any = 1;
                        }
                    }
                    if (any)
                        qm_add_products(sums, &t->in, at, &k, k.depth, i, j, o, 3, lane, count);
                }
        }
    }
}

/* Channels a of the weights are out, b are in. */
static inline void qm_conv_transpose(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_convolution *const f = (const qm_convolution *)t->of;
    const qm_window *const p = &f->window;
    size_t at[QM_PIXELS];
    int32_t i, j, n;

    qm_clear(sums);
    for (i = 0; i < p->kernel[0]; ++i)
        for (j = 0; j < p->kernel[1]; ++j) {
            for (n = 0; n < QM_PIXELS; ++n)
                at[n] = n < b->count ? qm_under(p, b->first + (size_t)n, i, j, qm_reaches)
                                     : SIZE_MAX;
            qm_add_products(sums, &t->in, at, &f->weights, p->in.channels, i, j, b->channel, 2, 0,
                            b->lanes);
        }
}

/* Input channel c makes the output channels c * m to c * m + m - 1. */
static inline void qm_depthwise(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_convolution *const f = (const qm_convolution *)t->of;
    const qm_window *const p = &f->window;
    const int32_t m = p->out.channels / p->in.channels;
    qm_value x[QM_LANES] = {0}, w[QM_LANES] = {0};
    int32_t i, j, n, l;

    qm_clear(sums);
    for (i = 0; i < p->kernel[0]; ++i)
        for (j = 0; j < p->kernel[1]; ++j) {
            if (m == 1)
                qm_line(w, &f->weights, i, j, b->channel, 0, 2, b->lanes);
            for (l = 0; m > 1 && l < b->lanes; ++l)
                w[l] = qm_weight(&f->weights, i, j, (b->channel + l) / m, (b->channel + l) % m);
            for (n = 0; n < b->count; ++n) {
                const size_t at = qm_under(p, b->first + (size_t)n, i, j, qm_reads);
                if (at == SIZE_MAX)
                    continue;
                if (m == 1)
                    qm_load(x, &t->in, at + (size_t)b->channel, b->lanes);
                for (l = 0; m > 1 && l < b->lanes; ++l)
                    x[l] = (qm_value)qm_get(&t->in, at + (size_t)((b->channel + l) / m));
                for (l = 0; l < QM_LANES; ++l)
                    sums[n * QM_LANES + l] += (qm_int)x[l] * w[l];
            }
        }
}

/* Sums of windows: of an average, the division is in the multipliers. */
static inline void qm_pool_sum(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_window *const p = (const qm_window *)t->of;
    int32_t i, j, n, l;

    qm_clear(sums);
    for (n = 0; n < b->count; ++n)
        for (i = 0; i < p->kernel[0]; ++i)
            for (j = 0; j < p->kernel[1]; ++j) {
                const size_t at = qm_under(p, b->first + (size_t)n, i, j, qm_reads);
                for (l = 0; at != SIZE_MAX && l < b->lanes; ++l)
                    sums[n * QM_LANES + l] += qm_get(&t->in, at + (size_t)(b->channel + l));
            }
}

/* The greatest of each window, or with a sign of -1 the least; nothing is beyond `end`. */
typedef struct {
    qm_window window;
    int32_t end, sign;
} qm_extreme;

static inline void qm_pool_extreme(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_extreme *const f = (const qm_extreme *)t->of;
    const qm_window *const p = &f->window;
    const qm_int sign = f->sign;
    int32_t i, j, n, l;

    for (i = 0; i < QM_BLOCK; ++i)
        sums[i] = sign * f->end;
    for (n = 0; n < b->count; ++n)
        for (i = 0; i < p->kernel[0]; ++i)
            for (j = 0; j < p->kernel[1]; ++j) {
                const size_t at = qm_under(p, b->first + (size_t)n, i, j, qm_reads);
                for (l = 0; at != SIZE_MAX && l < b->lanes; ++l) {
                    const qm_int x = sign * qm_get(&t->in, at + (size_t)(b->channel + l));
                    qm_int *const most = sums + n * QM_LANES + l;
                    *most = x > *most ? x : *most;
                }
            }
    for (i = 0; i < QM_BLOCK; ++i)
        sums[i] *= sign;
}

/* Output i of an axis of n inputs lies between inputs at[0] and at[1]; weight[1] of the sum of both
 * weights belongs to the latter. */
static inline void qm_between(int32_t i, int32_t n, int32_t factor, int32_t at[2],
                              int32_t weight[2])
{
    const int32_t steps = factor % 2 ? factor : 2 * factor;
    const int32_t place = (2 * i + 1 + factor) * steps / (2 * factor);

    at[0] = place / steps - 1;
    at[1] = at[0] + 1 < n ? at[0] + 1 : n - 1;
    at[0] = at[0] < 0 ? 0 : at[0];
    weight[1] = place % steps;
    weight[0] = steps - weight[1];
}

/* Bilinear upsampling of height, width, channels: the division by the weights is in the
 * multipliers. */
typedef struct {
    int32_t shape[3], factor[2];
} qm_bilinear_of;

static inline void qm_bilinear(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_bilinear_of *const f = (const qm_bilinear_of *)t->of;
    const size_t width = (size_t)f->shape[1] * (size_t)f->factor[1];
    int32_t n, l, i, j, row[2], column[2], v[2], w[2];

    qm_clear(sums);
    for (n = 0; n < b->count; ++n) {
        const size_t pixel = b->first + (size_t)n;
        qm_between((int32_t)(pixel / width), f->shape[0], f->factor[0], row, v);
        qm_between((int32_t)(pixel % width), f->shape[1], f->factor[1], column, w);
        for (i = 0; i < 2; ++i)
            for (j = 0; j < 2; ++j) {
                const size_t at = ((size_t)row[i] * (size_t)f->shape[1] + (size_t)column[j])
                                  * (size_t)f->shape[2] + (size_t)b->channel;
                for (l = 0; l < b->lanes; ++l)
                    sums[n * QM_LANES + l] += qm_get(&t->in, at + (size_t)l) * (v[i] * w[j]);
            }
    }
}

/* The four indices of an element, whose last axis are the channels. */
static inline void qm_indices(int32_t at[4], const int32_t shape[4], size_t pixel, int32_t channel)
{
    at[3] = channel;
    at[2] = (int32_t)(pixel % (size_t)shape[2]);
    pixel /= (size_t)shape[2];
    at[1] = (int32_t)(pixel % (size_t)shape[1]);
    at[0] = (int32_t)(pixel / (size_t)shape[1]);
}

/* A step along output axis i is a step of a[i] in the input and, of a product, of b[i] in the
 * factor: 0 where it repeats. */
typedef struct {
    int32_t shape[4], a[4], b[4];
} qm_strides;

static inline size_t qm_strided(const int32_t at[4], const int32_t s[4])
{
    return (size_t)at[0] * (size_t)s[0] + (size_t)at[1] * (size_t)s[1]
           + (size_t)at[2] * (size_t)s[2] + (size_t)at[3] * (size_t)s[3];
}

static inline void qm_permute(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_strides *const f = (const qm_strides *)t->of;
    int32_t at[4], n, l;

    for (n = 0; n < b->count; ++n)
        for (l = 0; l < b->lanes; ++l) {
            qm_indices(at, f->shape, b->first + (size_t)n, b->channel + l);
            sums[n * QM_LANES + l] = qm_get(&t->in, qm_strided(at, f->a));
        }
}

typedef struct {
    qm_strides strides;
    qm_tensor factor;
} qm_product;

static inline void qm_multiply(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_product *const f = (const qm_product *)t->of;
    int32_t at[4], n, l;

    for (n = 0; n < b->count; ++n)
        for (l = 0; l < b->lanes; ++l) {
            qm_indices(at, f->strides.shape, b->first + (size_t)n, b->channel + l);
            sums[n * QM_LANES + l] = qm_get(&t->in, qm_strided(at, f->strides.a))
                                     * qm_get(&f->factor, qm_strided(at, f->strides.b));
        }
}

/* Output (a, b, c, d) is input (a / factor[0] - before[0], …), or 0 outside: zero padding, cropping
 * and nearest-neighbour upsampling. */
typedef struct {
    int32_t out[4], in[4], before[4], factor[4];
} qm_placement;

static inline void qm_place(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_placement *const f = (const qm_placement *)t->of;
    int32_t at[4], n, l, axis;

    for (n = 0; n < b->count; ++n) {
        size_t source = 0;
        int inside = 1;
        int32_t c = b->channel / f->factor[3] - f->before[3], rest = b->channel % f->factor[3];
        qm_indices(at, f->out, b->first + (size_t)n, 0);
        for (axis = 0; axis < 3; ++axis) {
            const int32_t i = at[axis] / f->factor[axis] - f->before[axis];
            inside = inside && i >= 0 && i < f->in[axis];
            source = source * (size_t)f->in[axis] + (size_t)(inside ? i : 0);
        }
        source *= (size_t)f->in[3];
        for (l = 0; l < b->lanes; ++l) {
            sums[n * QM_LANES + l] = inside && c >= 0 && c < f->in[3]
                                         ? qm_get(&t->in, source + (size_t)c)
                                         : 0;
            if (++rest == f->factor[3]) {
                rest = 0;
                ++c;
            }
        }
    }
}

/* The integers as they are. */
static inline void qm_same(qm_int *sums, const qm_term *t, const qm_block *b)
{
    int32_t n, l;

    for (n = 0; n < b->count; ++n) {
        const size_t pixel = b->first + (size_t)n;
        const size_t at = pixel * (size_t)b->channels + (size_t)b->channel;
        for (l = 0; l < b->lanes; ++l)
            sums[n * QM_LANES + l] = qm_get(&t->in, at + (size_t)l);
    }
}

/* Go on to the next block; 0 after the last. */
static inline int qm_next(qm_block *b)
{
    b->channel += b->lanes;
    if (b->count && b->channel >= b->channels) {
        b->channel = 0;
        b->first += (size_t)b->count;
    }
    b->count = b->pixels - b->first < QM_PIXELS ? (int32_t)(b->pixels - b->first) : QM_PIXELS;
    b->lanes = b->channels - b->channel < QM_LANES ? b->channels - b->channel : QM_LANES;
    return b->count > 0 && b->lanes > 0;
}

static inline void qm_store_block(const qm_tensor *out, const qm_int *sums, const qm_block *b)
{
    int32_t n;

    for (n = 0; n < b->count; ++n) {
        const size_t pixel = b->first + (size_t)n;
        const size_t at = pixel * (size_t)b->channels + (size_t)b->channel;
        qm_store(out, at, sums + n * QM_LANES, b->lanes);
    }
}

/* Keep what a kernel gives: integers of the same scale, or accumulators. */
static inline void qm_move(const qm_tensor *out, const qm_term *t, size_t pixels, int32_t channels)
{
    qm_block b = {pixels, channels, 0, 0, 0, 0};
    qm_int sums[QM_BLOCK];

    while (qm_next(&b)) {
        t->kernel(sums, t, &b);
        qm_store_block(out, sums, &b);
    }
}

/* The number of the constants of pixel n of a block and its first channel. */
static inline size_t qm_constant(const qm_requantization *r, const qm_block *b, int32_t n)
{
    const size_t of_pixel
        = r->pixel_step ? (b->first + (size_t)n) / r->pixels * r->pixel_step : 0;

    return of_pixel + (size_t)b->channel * (size_t)r->channel_step;
}

static inline void qm_begin(int64_t *y, const qm_scaling *s, const qm_requantization *r,
                            const qm_block *b)
{
    int32_t n, l;

    for (n = 0; n < b->count; ++n) {
        const size_t first = qm_constant(r, b, n);
        for (l = 0; l < b->lanes; ++l) {
            const size_t c = first + (size_t)(l * r->channel_step);
            y[n * QM_LANES + l] = s->addend[c];
        }
    }
}

/* Add the accumulators of term t times their multipliers. */
static inline void qm_scale(int64_t *y, const qm_int *sums, const qm_scaling *s, int32_t t,
                            const qm_requantization *r, const qm_block *b)
{
    int32_t n, l;

    for (n = 0; n < b->count; ++n) {
        const size_t first = qm_constant(r, b, n);
        for (l = 0; l < b->lanes; ++l) {
            const size_t c = first + (size_t)(l * r->channel_step);
            const int32_t i = n * QM_LANES + l;
            y[i] += (int64_t)sums[i] * s->multiplier[t][c];
        }
    }
}

/* y / 2^shift, rounded down, also where >> of a negative number does something else. */
static inline int64_t qm_shifted(int64_t y, uint8_t shift)
{
    return y >= 0 ? y >> shift : ~(~y >> shift);
}

/* Round and clamp what the terms sum up to. */
static inline void qm_round(qm_int *out, const int64_t *totals, const int64_t *negative,
                            const qm_requantization *r, const qm_block *b)
{
    int32_t n, l;

    for (n = 0; n < b->count; ++n) {
        const size_t first = qm_constant(r, b, n);
        for (l = 0; l < b->lanes; ++l) {
            const size_t c = first + (size_t)(l * r->channel_step);
            const int32_t i = n * QM_LANES + l;
            const uint8_t shift = r->scaling.shift[c];
            const size_t end = r->clamps > 1 ? c : 0;
            int64_t y = totals[i];
            if (r->negative && y < (int64_t)1 << (shift - 1))
                y = qm_shifted(negative[i], r->negative->shift[c]);
            else
                y = qm_shifted(y, shift);
            y = y < r->low[end] ? r->low[end] : y;
            out[i] = (qm_int)(y > r->high[end] ? r->high[end] : y);
        }
    }
}

static inline void qm_requantize(const qm_tensor *out, const qm_term *terms, size_t pixels,
                                 int32_t channels, const qm_requantization *r)
{
    qm_block b = {pixels, channels, 0, 0, 0, 0};
    qm_int sums[QM_BLOCK];
    int64_t y[QM_BLOCK], negative[QM_BLOCK];
    int32_t t;

    while (qm_next(&b)) {
        qm_begin(y, &r->scaling, r, &b);
        if (r->negative)
            qm_begin(negative, r->negative, r, &b);
        for (t = 0; t < r->terms; ++t) {
            terms[t].kernel(sums, &terms[t], &b);
            qm_scale(y, sums, &r->scaling, t, r, &b);
            if (r->negative)
                qm_scale(negative, sums, r->negative, t, r, &b);
        }
        qm_round(sums, y, negative, r, &b);
        qm_store_block(out, sums, &b);
    }
}

/* One entry for each unsigned integer of the input. */
static inline void qm_lookup(const qm_tensor *out, const qm_tensor *in, size_t size,
                             const int32_t *table)
{
    size_t i;

    for (i = 0; i < size; ++i)
        qm_set(out, i, (qm_int)table[qm_get(in, i) + in->zero_point]);
}

/* A softmax along one axis: `distance` apart lie its `length` values. */
typedef struct {
    size_t rows, length, distance;
    const int32_t *exponentials; /* by the distance to the greatest integer, times 2^30 */
    int64_t multiplier;          /* of a share times 2^31 */
    int shift;
    int32_t low, high;
} qm_softmax_of;

static inline void qm_softmax(const qm_tensor *out, const qm_tensor *in,
                              const qm_softmax_of *s)
{
    size_t i, j, k;

    for (i = 0; i < s->rows; ++i) {
        for (j = 0; j < s->distance; ++j) {
            const size_t start = i * s->length * s->distance + j;
            qm_int most = qm_get(in, start);
            int64_t total = 0;

            for (k = 1; k < s->length; ++k)
                if (qm_get(in, start + k * s->distance) > most)
                    most = qm_get(in, start + k * s->distance);
            for (k = 0; k < s->length; ++k)
                total += s->exponentials[most - qm_get(in, start + k * s->distance)];
            for (k = 0; k < s->length; ++k) {
                const size_t at = start + k * s->distance;
                const int64_t e = s->exponentials[most - qm_get(in, at)];
                const int64_t share = (e * ((int64_t)1 << 31) + total / 2) / total;
                const int64_t half = (int64_t)1 << (s->shift - 1);
                const int64_t y = (share * s->multiplier + half) >> s->shift;

                qm_set(out, at, (qm_int)(y < s->low ? s->low : y > s->high ? s->high : y));
            }
        }
    }
}

/* Floats to integers as TensorFlow's fake quantization computes, float operation by operation:
 * volatile keeps a compiler from fusing or widening them. NaN becomes the lowest integer. */
static inline void qm_quantize(const qm_tensor *out, const float *in, size_t size,
                               const qm_range *r)
{
    size_t i;

    for (i = 0; i < size; ++i) {
        float clamped = in[i] > r->max ? r->max : in[i];
        volatile float y;
        qm_int whole;
        clamped = clamped >= r->min ? clamped : r->min;
        y = clamped - r->min;
        if (r->divides)
            y = y / r->factor;
        else
            y = y * r->factor;
        y = y - r->zero;
        y = y + 0.5f;
        whole = (qm_int)y;
        qm_set(out, i, (float)whole > y ? whole - 1 : whole);
    }
}

#endif
