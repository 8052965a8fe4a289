/* Reference kernels of qmath's integer models, written to be read. C99, no libraries, no malloc.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A tensor is an array of qm_int in the order height, width, channels. Its integers are relative
 * to the zero point, so that real zero is 0: padding with zeros is just that. An accumulator is
 * a qm_int, too; qmath proved that none overflows. Between two quantized tensors lies one
 * qm_requantize, which multiplies in 64 bits and rounds once.
 */
#ifndef QMATH_KERNELS_H
#define QMATH_KERNELS_H

#include "qmath_integers.h"

#ifdef QM_WIDE
typedef int64_t qm_int;  /* accumulators of more than 32 bits */
#else
typedef int32_t qm_int;
#endif

typedef struct {
    int32_t height, width, channels;
} qm_shape;

/* Of convolutions and pools: pairs are height and width. */
typedef struct {
    qm_shape in, out;
    int32_t kernel[2], stride[2], dilation[2];
    int32_t pad[2];  /* before the first row and column; of a transposed convolution, cropped */
} qm_window;

/* Of convolutions of three axes: the first of them, of which a qm_window tells the others. */
typedef struct {
    int32_t in, out, kernel, stride, dilation, pad;
    int32_t weights;  /* how far apart the planes of the kernel are */
} qm_depth;

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

/* y = sum(accumulator * multiplier) + addend, then y >> shift: each has `period` values. */
typedef struct {
    const int32_t *const *multiplier;  /* of each term */
    const int64_t *addend;             /* half a step, for rounding, is in it */
    const uint8_t *shift;
} qm_scaling;

typedef struct {
    qm_scaling scaling;
    const qm_scaling *negative;  /* of a leaky ReLU: what counts where y is negative */
    const int32_t *low, *high;   /* one, or as many as the period */
    int32_t clamps;              /* how many there are of these */
    int32_t terms;
    int32_t period;              /* 1, the channels, or all elements */
} qm_requantization;

/* A float range as training left it. */
typedef struct {
    float min, max;     /* where the integers end */
    float factor;       /* the scale, or its inverse */
    float zero;         /* -min in steps, rounded */
    int divides;        /* whether the factor is the scale */
} qm_range;

static inline int32_t qm_weight(const qm_weights *k, int32_t h, int32_t w, int32_t a, int32_t b)
{
    const int32_t *s = k->stride;
    const size_t index = (size_t)k->first + (size_t)h * (size_t)s[0] + (size_t)w * (size_t)s[1]
                         + (size_t)a * (size_t)s[2] + (size_t)b * (size_t)s[3];

    return qm_integer(k->integers, index) - k->zero_point[k->zero_points > 1 ? b : 0];
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

static inline void qm_clear(qm_int *out, const qm_shape *s)
{
    const size_t size = qm_at(s, s->height, 0, 0);
    size_t n;

    for (n = 0; n < size; ++n)
        out[n] = 0;
}

/* Adds to the outputs. Channels of groups, if the kernel has fewer inputs than there are. */
static inline void qm_add_conv2d(qm_int *out, const qm_int *in, const qm_window *p,
                                 const qm_weights *k)
{
    const int32_t groups = p->in.channels / k->depth, of_group = p->out.channels / groups;
    int32_t y, x, o, i, j, c, row, column;

    for (y = 0; y < p->out.height; ++y)
        for (x = 0; x < p->out.width; ++x)
            for (o = 0; o < p->out.channels; ++o) {
                const int32_t first = o / of_group * k->depth;
                qm_int sum = 0;
                for (i = 0; i < p->kernel[0]; ++i)
                    for (j = 0; j < p->kernel[1]; ++j)
                        if (qm_reads(p, 0, y, i, &row) && qm_reads(p, 1, x, j, &column))
                            for (c = 0; c < k->depth; ++c)
                                sum += in[qm_at(&p->in, row, column, first + c)]
                                       * qm_weight(k, i, j, c, o);
                out[qm_at(&p->out, y, x, o)] += sum;
            }
}

static inline void qm_conv2d(qm_int *out, const qm_int *in, const qm_window *p, const qm_weights *k)
{
    qm_clear(out, &p->out);
    qm_add_conv2d(out, in, p, k);
}

/* Planes of the input under planes of the kernel. */
static inline void qm_conv3d(qm_int *out, const qm_int *in, const qm_depth *d, const qm_window *p,
                             const qm_weights *k)
{
    const size_t in_size = qm_at(&p->in, p->in.height, 0, 0);
    const size_t out_size = qm_at(&p->out, p->out.height, 0, 0);
    qm_weights of_plane = *k;
    int32_t z, i;

    for (z = 0; z < d->out; ++z) {
        qm_int *const sums = out + (size_t)z * out_size;
        qm_clear(sums, &p->out);
        for (i = 0; i < d->kernel; ++i) {
            const int32_t plane = z * d->stride + i * d->dilation - d->pad;
            of_plane.first = k->first + i * d->weights;
            if (plane >= 0 && plane < d->in)
                qm_add_conv2d(sums, in + (size_t)plane * in_size, p, &of_plane);
        }
    }
}

/* Input channel c makes the output channels c * m to c * m + m - 1. */
static inline void qm_depthwise_conv2d(qm_int *out, const qm_int *in, const qm_window *p,
                                       const qm_weights *k)
{
    const int32_t m = p->out.channels / p->in.channels;
    int32_t y, x, o, i, j, row, column;

    for (y = 0; y < p->out.height; ++y)
        for (x = 0; x < p->out.width; ++x)
            for (o = 0; o < p->out.channels; ++o) {
                qm_int sum = 0;
                for (i = 0; i < p->kernel[0]; ++i)
                    for (j = 0; j < p->kernel[1]; ++j)
                        if (qm_reads(p, 0, y, i, &row) && qm_reads(p, 1, x, j, &column))
                            sum += in[qm_at(&p->in, row, column, o / m)]
                                   * qm_weight(k, i, j, o / m, o % m);
                out[qm_at(&p->out, y, x, o)] = sum;
            }
}

/* Every input is scattered; what falls outside is cropped. Channels a are out, b are in. */
static inline void qm_conv2d_transpose(qm_int *out, const qm_int *in, const qm_window *p,
                                       const qm_weights *k)
{
    int32_t y, x, i, j, o, c;

    qm_clear(out, &p->out);
    for (y = 0; y < p->in.height; ++y)
        for (x = 0; x < p->in.width; ++x)
            for (i = 0; i < p->kernel[0]; ++i)
                for (j = 0; j < p->kernel[1]; ++j) {
                    const int32_t row = y * p->stride[0] + i * p->dilation[0] - p->pad[0];
                    const int32_t column = x * p->stride[1] + j * p->dilation[1] - p->pad[1];
                    if (row < 0 || row >= p->out.height || column < 0 || column >= p->out.width)
                        continue;
                    for (o = 0; o < p->out.channels; ++o)
                        for (c = 0; c < p->in.channels; ++c)
                            out[qm_at(&p->out, row, column, o)]
                                += in[qm_at(&p->in, y, x, c)] * qm_weight(k, i, j, o, c);
                }
}

/* Every row of k->depth inputs makes `outputs`. */
static inline void qm_dense(qm_int *out, const qm_int *in, int32_t rows, int32_t outputs,
                            const qm_weights *k)
{
    int32_t row, o, c;

    for (row = 0; row < rows; ++row)
        for (o = 0; o < outputs; ++o) {
            qm_int sum = 0;
            for (c = 0; c < k->depth; ++c)
                sum += in[(size_t)row * (size_t)k->depth + (size_t)c] * qm_weight(k, 0, 0, c, o);
            out[(size_t)row * (size_t)outputs + (size_t)o] = sum;
        }
}

/* Sums of windows: of an average, the division is in the multipliers. */
static inline void qm_pool_sum(qm_int *out, const qm_int *in, const qm_window *p)
{
    int32_t y, x, c, i, j, row, column;

    for (y = 0; y < p->out.height; ++y)
        for (x = 0; x < p->out.width; ++x)
            for (c = 0; c < p->out.channels; ++c) {
                qm_int sum = 0;
                for (i = 0; i < p->kernel[0]; ++i)
                    for (j = 0; j < p->kernel[1]; ++j)
                        if (qm_reads(p, 0, y, i, &row) && qm_reads(p, 1, x, j, &column))
                            sum += in[qm_at(&p->in, row, column, c)];
                out[qm_at(&p->out, y, x, c)] = sum;
            }
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
static inline void qm_bilinear(qm_int *out, const qm_int *in, const int32_t shape[3],
                               const int32_t factor[2])
{
    int32_t y, x, c, i, j, row[2], column[2], a[2], b[2];

    for (y = 0; y < shape[0] * factor[0]; ++y)
        for (x = 0; x < shape[1] * factor[1]; ++x) {
            qm_between(y, shape[0], factor[0], row, a);
            qm_between(x, shape[1], factor[1], column, b);
            for (c = 0; c < shape[2]; ++c) {
                qm_int sum = 0;
                for (i = 0; i < 2; ++i)
                    for (j = 0; j < 2; ++j)
                        sum += in[((size_t)row[i] * (size_t)shape[1] + (size_t)column[j])
                                  * (size_t)shape[2] + (size_t)c]
                               * (a[i] * b[j]);
                *out++ = sum;
            }
        }
}

/* `lowest` is the lowest integer of the grid. */
static inline void qm_pool_max(qm_int *out, const qm_int *in, const qm_window *p, qm_int lowest)
{
    int32_t y, x, c, i, j, row, column;

    for (y = 0; y < p->out.height; ++y)
        for (x = 0; x < p->out.width; ++x)
            for (c = 0; c < p->out.channels; ++c) {
                qm_int most = lowest;
                for (i = 0; i < p->kernel[0]; ++i)
                    for (j = 0; j < p->kernel[1]; ++j)
                        if (qm_reads(p, 0, y, i, &row) && qm_reads(p, 1, x, j, &column)
                            && in[qm_at(&p->in, row, column, c)] > most)
                            most = in[qm_at(&p->in, row, column, c)];
                out[qm_at(&p->out, y, x, c)] = most;
            }
}

/* `highest` is the highest integer of the grid. */
static inline void qm_pool_min(qm_int *out, const qm_int *in, const qm_window *p, qm_int highest)
{
    int32_t y, x, c, i, j, row, column;

    for (y = 0; y < p->out.height; ++y)
        for (x = 0; x < p->out.width; ++x)
            for (c = 0; c < p->out.channels; ++c) {
                qm_int least = highest;
                for (i = 0; i < p->kernel[0]; ++i)
                    for (j = 0; j < p->kernel[1]; ++j)
                        if (qm_reads(p, 0, y, i, &row) && qm_reads(p, 1, x, j, &column)
                            && in[qm_at(&p->in, row, column, c)] < least)
                            least = in[qm_at(&p->in, row, column, c)];
                out[qm_at(&p->out, y, x, c)] = least;
            }
}

/* A step along output axis i is a step of a[i] in the one input and of b[i] in the other: 0 where
 * it repeats. */
static inline void qm_multiply(qm_int *out, const qm_int *in, const qm_int *factor,
                               const int32_t shape[4], const int32_t a[4], const int32_t b[4])
{
    int32_t i, j, k, l;

    for (i = 0; i < shape[0]; ++i)
        for (j = 0; j < shape[1]; ++j)
            for (k = 0; k < shape[2]; ++k)
                for (l = 0; l < shape[3]; ++l)
                    *out++ = in[(size_t)i * (size_t)a[0] + (size_t)j * (size_t)a[1]
                                + (size_t)k * (size_t)a[2] + (size_t)l * (size_t)a[3]]
                             * factor[(size_t)i * (size_t)b[0] + (size_t)j * (size_t)b[1]
                                      + (size_t)k * (size_t)b[2] + (size_t)l * (size_t)b[3]];
}

/* Output (a, b, c, d) is input (a / f[0] - before[0], …), or 0 outside: zero padding, cropping
 * and nearest-neighbour upsampling. */
static inline void qm_place(qm_int *out, const qm_int *in, const int32_t out_shape[4],
                            const int32_t in_shape[4], const int32_t before[4], const int32_t f[4])
{
    int32_t at[4], axis;

    for (at[0] = 0; at[0] < out_shape[0]; ++at[0])
        for (at[1] = 0; at[1] < out_shape[1]; ++at[1])
            for (at[2] = 0; at[2] < out_shape[2]; ++at[2])
                for (at[3] = 0; at[3] < out_shape[3]; ++at[3]) {
                    size_t source = 0;
                    int inside = 1;
                    for (axis = 0; axis < 4; ++axis) {
                        const int32_t i = at[axis] / f[axis] - before[axis];
                        inside = inside && i >= 0 && i < in_shape[axis];
                        source = source * (size_t)in_shape[axis] + (size_t)(inside ? i : 0);
                    }
                    *out++ = inside ? in[source] : 0;
                }
}

/* A step along output axis i is a step of stride[i] in the input. */
static inline void qm_permute(qm_int *out, const qm_int *in, const int32_t shape[4],
                              const int32_t stride[4])
{
    int32_t a, b, c, d;

    for (a = 0; a < shape[0]; ++a)
        for (b = 0; b < shape[1]; ++b)
            for (c = 0; c < shape[2]; ++c)
                for (d = 0; d < shape[3]; ++d)
                    *out++ = in[(size_t)a * (size_t)stride[0] + (size_t)b * (size_t)stride[1]
                                + (size_t)c * (size_t)stride[2] + (size_t)d * (size_t)stride[3]];
}

static inline void qm_copy(qm_int *out, const qm_int *in, size_t size)
{
    size_t i;

    for (i = 0; i < size; ++i)
        out[i] = in[i];
}

static inline int64_t qm_scaled(const qm_scaling *s, const qm_int *const *sums, int32_t terms,
                                size_t i, size_t c)
{
    int64_t y = s->addend[c];
    int32_t t;

    for (t = 0; t < terms; ++t)
        y += (int64_t)sums[t][i] * s->multiplier[t][c];
    return y;
}

/* y / 2^shift, rounded down, also where >> of a negative number does something else. */
static inline int64_t qm_shifted(int64_t y, uint8_t shift)
{
    return y >= 0 ? y >> shift : ~(~y >> shift);
}

static inline void qm_requantize(qm_int *out, const qm_int *const *sums, size_t size,
                                 const qm_requantization *r)
{
    size_t i;

    for (i = 0; i < size; ++i) {
        const size_t c = i % (size_t)r->period;
        const uint8_t shift = r->scaling.shift[c];
        const size_t end = r->clamps > 1 ? c : 0;
        int64_t y = qm_scaled(&r->scaling, sums, r->terms, i, c);
        if (r->negative && y < (int64_t)1 << (shift - 1))
            y = qm_shifted(qm_scaled(r->negative, sums, r->terms, i, c), r->negative->shift[c]);
        else
            y = qm_shifted(y, shift);
        y = y < r->low[end] ? r->low[end] : y;
        out[i] = (qm_int)(y > r->high[end] ? r->high[end] : y);
    }
}

/* One entry for each unsigned integer of the input. */
static inline void qm_lookup(qm_int *out, const qm_int *in, size_t size, const int32_t *table,
                             int32_t zero_point)
{
    size_t i;

    for (i = 0; i < size; ++i)
        out[i] = table[in[i] + zero_point];
}

/* A softmax along one axis: `distance` apart lie its `length` values. */
typedef struct {
    size_t rows, length, distance;
    const int32_t *exponentials; /* by the distance to the greatest integer, times 2^30 */
    int64_t multiplier;          /* of a share times 2^31 */
    int shift;
    int32_t low, high;
} qm_softmax_of;

static inline void qm_softmax(qm_int *out, const qm_int *in, const qm_softmax_of *s)
{
    size_t i, j, k;

    for (i = 0; i < s->rows; ++i) {
        for (j = 0; j < s->distance; ++j) {
            const size_t start = i * s->length * s->distance + j;
            qm_int most = in[start];
            int64_t total = 0;

            for (k = 1; k < s->length; ++k)
                if (in[start + k * s->distance] > most)
                    most = in[start + k * s->distance];
            for (k = 0; k < s->length; ++k)
                total += s->exponentials[most - in[start + k * s->distance]];
            for (k = 0; k < s->length; ++k) {
                const size_t at = start + k * s->distance;
                const int64_t e = s->exponentials[most - in[at]];
                const int64_t share = (e * ((int64_t)1 << 31) + total / 2) / total;
                const int64_t half = (int64_t)1 << (s->shift - 1);
                const int64_t y = (share * s->multiplier + half) >> s->shift;

                out[at] = (qm_int)(y < s->low ? s->low : y > s->high ? s->high : y);
            }
        }
    }
}

/* Floats to integers as TensorFlow's fake quantization computes, float operation by operation:
 * volatile keeps a compiler from fusing or widening them. NaN becomes the lowest integer. */
static inline void qm_quantize(qm_int *out, const float *in, size_t size, const qm_range *r)
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
        out[i] = (float)whole > y ? whole - 1 : whole;
    }
}

#endif
