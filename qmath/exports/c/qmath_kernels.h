/* Kernels of qmath's integer models. C99, also C++, no libraries, no malloc.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A tensor is an array of unsigned integers of one or two bytes in the order height, width,
 * channels; kernels see them relative to the zero point, so that real zero is 0. Outputs are made
 * in blocks: whole pixels, or some of the channels of one. Each term of a sum gives a block of
 * accumulators, and qm_requantize multiplies them in 64 bits and rounds once. qmath proved that no
 * accumulator overflows. Inner loops go through neighbours, so that compilers vectorise them.
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

/* Accumulators of a block: more are faster, and take about 33 bytes of stack each. */
#ifndef QM_BLOCK
#define QM_BLOCK 64
#endif
#define QM_RUN 128   /* inputs of a convolution that are read at once */
#define QM_LANES 16  /* loops have a multiple of this length, where they can */

#ifdef __cplusplus
#define QM_RESTRICT
#else
#define QM_RESTRICT restrict
#endif

typedef struct {
    void *data;
    int bytes;           /* of an integer: 1 or 2; those of a qm_int for accumulators */
    int32_t zero_point;
} qm_tensor;

/* Pixels are numbered through all axes but the last, which is the channels. A block is `count`
 * pixels with `lanes` channels each; if these are not all, it is one pixel. */
typedef struct {
    size_t pixels;              /* of the output */
    int32_t channels;
    size_t first;               /* of the block */
    int32_t count, channel, lanes;
} qm_block;

/* A kernel computes a block of accumulators: that of pixel p and lane l is number p * lanes + l. */
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
    size_t stride[4];
    int32_t depth;              /* how many a there are */
    const int32_t *zero_point;  /* one, or one for each b */
    int32_t zero_points;
    size_t first;
} qm_weights;

/* Of convolutions of three axes: the first of them, of which a qm_window tells the others. */
typedef struct {
    int32_t in, out, kernel, stride, dilation, pad;
    size_t weights;  /* how far apart the planes of the kernel are */
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
static inline void qm_load(qm_value *QM_RESTRICT to, const qm_tensor *t, size_t at, int32_t n)
{
    const uint8_t *const bytes = (const uint8_t *)t->data + at;
    int32_t i;

    if (t->bytes == 1)
        for (i = 0; i < n; ++i)
            to[i] = (qm_value)(bytes[i] - t->zero_point);
    else
        for (i = 0; i < n; ++i)
            to[i] = (qm_value)qm_get(t, at + (size_t)i);
}

/* The same, as accumulators. */
static inline void qm_widen(qm_int *QM_RESTRICT to, const qm_tensor *t, size_t at, int32_t n)
{
    const uint8_t *const bytes = (const uint8_t *)t->data + at;
    int32_t i;

    if (t->bytes == 1)
        for (i = 0; i < n; ++i)
            to[i] = (qm_int)bytes[i] - t->zero_point;
    else
        for (i = 0; i < n; ++i)
            to[i] = qm_get(t, at + (size_t)i);
}

static inline void qm_store(const qm_tensor *t, size_t at, const qm_int *QM_RESTRICT from,
                            int32_t n)
{
    uint8_t *const bytes = (uint8_t *)t->data + at;
    int32_t i;

    if (t->bytes == 1)
        for (i = 0; i < n; ++i)
            bytes[i] = (uint8_t)(from[i] + t->zero_point);
    else
        for (i = 0; i < n; ++i)
            qm_set(t, at + (size_t)i, from[i]);
}

/* The number of a weight. */
static inline size_t qm_weight_at(const qm_weights *k, int32_t h, int32_t w, int32_t a, int32_t b)
{
    const size_t *s = k->stride;

    return k->first + (size_t)h * s[0] + (size_t)w * s[1] + (size_t)a * s[2] + (size_t)b * s[3];
}

/* Weight number `at`, which belongs to b. */
static inline qm_value qm_weight(const qm_weights *k, size_t at, int32_t b)
{
    const int32_t zero_point = k->zero_point[k->zero_points > 1 ? b : 0];

    return (qm_value)(qm_integer(k->integers, at) - zero_point);
}

/* n weights, `step` apart, of one b. */
static inline void qm_unpack(qm_value *to, const qm_weights *k, size_t at, size_t step, int32_t b,
                             int32_t n)
{
    int32_t i;

    for (i = 0; i < n; ++i)
        to[i] = qm_weight(k, at + (size_t)i * step, b);
}

/* All weights as they are stored, if they can be read so along an axis; else NULL. */
static inline const int8_t *qm_plain(const qm_weights *k, int axis)
{
    if (k->integers->packing != QM_INT8 || !k->integers->is_signed || k->stride[axis] != 1
        || k->zero_points != 1 || *k->zero_point != 0)
        return NULL;
    return (const int8_t *)k->integers->data;
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

static inline void qm_clear(qm_int *sums, const qm_block *b)
{
    const int32_t n = b->count * b->lanes;
    int32_t i;

    for (i = 0; i < n; ++i)
        sums[i] = 0;
}

/* Add the products of n inputs, a multiple of QM_LANES, and four rows of weights, which are `row`
 * apart. */
static inline void qm_dot4(qm_int *QM_RESTRICT sums, const qm_value *QM_RESTRICT x,
                           const int8_t *QM_RESTRICT w, size_t row, int32_t n)
{
    const int8_t *const w1 = w + row, *const w2 = w1 + row, *const w3 = w2 + row;
    qm_int s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    const int32_t whole = n & -QM_LANES;
    int32_t c;

    for (c = 0; c < whole; ++c) {
        s0 += (qm_int)x[c] * w[c];
        s1 += (qm_int)x[c] * w1[c];
        s2 += (qm_int)x[c] * w2[c];
        s3 += (qm_int)x[c] * w3[c];
    }
    for (; c < n; ++c) {
        s0 += (qm_int)x[c] * w[c];
        s1 += (qm_int)x[c] * w1[c];
        s2 += (qm_int)x[c] * w2[c];
        s3 += (qm_int)x[c] * w3[c];
    }
    sums[0] += s0;
    sums[1] += s1;
    sums[2] += s2;
    sums[3] += s3;
}

static inline qm_int qm_dot(const qm_value *x, const qm_value *w, int32_t n)
{
    qm_int sum = 0;
    int32_t c;

    for (c = 0; c < n; ++c)
        sum += (qm_int)x[c] * w[c];
    return sum;
}

/* Inputs under neighbouring weights, of one pixel, between zeros. */
typedef struct {
    qm_value x[QM_LANES + QM_RUN];
    int32_t n;           /* of the inputs, which begin at QM_LANES */
    size_t at;           /* the number of the first weight, of output channel 0 */
} qm_run;

static inline void qm_begin(qm_run *r)
{
    int32_t i;

    for (i = 0; i < QM_LANES; ++i)
        r->x[i] = 0;
    r->n = 0;
    r->at = 0;
}

/* Add n inputs, of number `at` and after it, for which there is room. */
static inline void qm_read(qm_run *r, const qm_tensor *t, size_t at, int32_t n)
{
    qm_load(r->x + QM_LANES + r->n, t, at, n);
    r->n += n;
}

/* Add the products of a run to the sums of `lanes` output channels from o on, which lie along an
 * axis of the weights, and inputs along the other. Zeros make the run longer, so that it meets
 * weights of what follows or, where the array ends, of what is before. */
static inline void qm_add_run(qm_int *sums, qm_run *r, const qm_weights *k, int axis, int32_t o,
                              int32_t lanes)
{
    const size_t row = k->stride[axis], step = k->stride[5 - axis];
    const int8_t *const plain = qm_plain(k, 5 - axis);
    const qm_value *x = r->x + QM_LANES;
    size_t at = r->at + (size_t)o * row;
    int32_t length = r->n, more, l;
    qm_value w[QM_RUN];

    for (; length % QM_LANES; ++length)
        r->x[QM_LANES + length] = 0;
    more = length - r->n;
    for (l = 0; plain && l + 4 <= lanes; l += 4, at += 4 * row) {
        const int ends = at + 3 * row + (size_t)length > k->integers->size;
        const int32_t back = ends && at >= (size_t)more ? more : 0;
        qm_dot4(sums + l, x - back, plain + at - back, row, ends && !back ? r->n : length);
    }
    for (; l < lanes; ++l, at += row) {
        qm_unpack(w, k, at, step, o + l, r->n);
        sums[l] += qm_dot(x, w, r->n);
    }
    r->n = 0;
}

/* Where a kernel reads along an axis: `qm_reads` or `qm_reaches`. */
typedef int (*qm_reader)(const qm_window *, int, int32_t, int32_t, int32_t *);

/* One pixel of a convolution: `lanes` output channels from o on, of the group whose inputs begin
 * at channel `first`. */
static inline void qm_conv_pixel(qm_int *sums, const qm_term *t, size_t pixel, int32_t first,
                                 int32_t o, int32_t lanes, qm_reader reads, int axis)
{
    const qm_convolution *const f = (const qm_convolution *)t->of;
    const qm_window *const p = &f->window;
    const qm_weights *const k = &f->weights;
    const size_t width = (size_t)p->out.width, plane = (size_t)p->out.height * width;
    const size_t step = k->stride[5 - axis];
    const int32_t d = (int32_t)(pixel / plane) * f->depth.stride - f->depth.pad;
    const int32_t y = (int32_t)(pixel % plane / width), x = (int32_t)(pixel % width);
    /* Whether neighbours of a row of the input have neighbours of a row of the kernel. */
    const int whole = axis == 3 && p->dilation[1] == 1 && k->depth == p->in.channels
                      && k->stride[1] == (size_t)k->depth * step;
    int32_t z, i, j, c, n, row, column, length;
    qm_run r;

    qm_begin(&r);
    for (z = 0; z < f->depth.kernel; ++z) {
        const int32_t in = d + z * f->depth.dilation;
        if (in < 0 || in >= f->depth.in)
            continue;
        for (i = 0; i < p->kernel[0]; ++i) {
            if (!reads(p, 0, y, i, &row))
                continue;
            for (j = 0; j < p->kernel[1]; ++j) {
                size_t at, weight;
                if (!reads(p, 1, x, j, &column))
                    continue;
                at = qm_at(&p->in, in * p->in.height + row, column, first);
                weight = qm_weight_at(k, i, j, 0, 0) + (size_t)z * f->depth.weights;
                length = k->depth;
                if (whole) {
                    const int32_t left = p->in.width - column;
                    n = p->kernel[1] - j < left ? p->kernel[1] - j : left;
                    length *= n;
                    j += n - 1;
                }
                for (c = 0; c < length; c += n) {
                    const size_t next = weight + (size_t)c * step;
                    if (r.n == QM_RUN || (r.n && next != r.at + (size_t)r.n * step))
                        qm_add_run(sums, &r, k, axis, o, lanes);
                    if (!r.n)
                        r.at = next;
                    n = length - c < QM_RUN - r.n ? length - c : QM_RUN - r.n;
                    qm_read(&r, &t->in, at + (size_t)c, n);
                }
            }
        }
    }
    qm_add_run(sums, &r, k, axis, o, lanes);
}

/* Channels of groups, if the kernel has fewer inputs than there are. */
static inline void qm_conv(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_convolution *const f = (const qm_convolution *)t->of;
    const qm_window *const p = &f->window;
    const int32_t of_group = p->out.channels / (p->in.channels / f->weights.depth);
    int32_t n, lane, count;

    qm_clear(sums, b);
    for (n = 0; n < b->count; ++n)
        for (lane = 0; lane < b->lanes; lane += count) {
            const int32_t o = b->channel + lane, first = o / of_group * f->weights.depth;
            count = of_group - o % of_group;
            count = count < b->lanes - lane ? count : b->lanes - lane;
            qm_conv_pixel(sums + n * b->lanes + lane, t, b->first + (size_t)n, first, o, count,
                          qm_reads, 3);
        }
}

/* A convolution whose outputs read the one input pixel that has their number. */
static inline void qm_pointwise(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_weights *const k = &((const qm_convolution *)t->of)->weights;
    int32_t n, c;
    qm_run r;

    qm_begin(&r);
    qm_clear(sums, b);
    for (n = 0; n < b->count; ++n)
        for (c = 0; c < k->depth; c += QM_RUN) {
            r.at = k->first + (size_t)c * k->stride[2];
            qm_read(&r, &t->in, (b->first + (size_t)n) * (size_t)k->depth + (size_t)c,
                    k->depth - c < QM_RUN ? k->depth - c : QM_RUN);
            qm_add_run(sums + n * b->lanes, &r, k, 3, b->channel, b->lanes);
        }
}

/* Channels a of the weights are out, b are in. */
static inline void qm_conv_transpose(qm_int *sums, const qm_term *t, const qm_block *b)
{
    int32_t n;

    qm_clear(sums, b);
    for (n = 0; n < b->count; ++n)
        qm_conv_pixel(sums + n * b->lanes, t, b->first + (size_t)n, 0, b->channel, b->lanes,
                      qm_reaches, 2);
}

/* Add the products of n inputs and weights, at three positions of the kernel. */
static inline void qm_multiply_add3(qm_int *QM_RESTRICT sums, const uint8_t *const *x,
                                    int16_t zero_point, const int8_t *const *w, int32_t n)
{
    const uint8_t *const x0 = x[0], *const x1 = x[1], *const x2 = x[2];
    const int8_t *const w0 = w[0], *const w1 = w[1], *const w2 = w[2];
    int32_t l;

    for (l = 0; l < (n & -QM_LANES); ++l)
        sums[l] += (qm_int)(int16_t)(x0[l] - zero_point) * w0[l]
                   + (qm_int)(int16_t)(x1[l] - zero_point) * w1[l]
                   + (qm_int)(int16_t)(x2[l] - zero_point) * w2[l];
    for (; l < n; ++l)
        sums[l] += (qm_int)(int16_t)(x0[l] - zero_point) * w0[l]
                   + (qm_int)(int16_t)(x1[l] - zero_point) * w1[l]
                   + (qm_int)(int16_t)(x2[l] - zero_point) * w2[l];
}

/* Go on to the next pixel. */
static inline void qm_step(int32_t *y, int32_t *x, int32_t width)
{
    if (++*x == width) {
        *x = 0;
        ++*y;
    }
}

/* One pixel of a depthwise convolution of bytes, whose weights lie in the order of channels. */
static inline void qm_depthwise_pixel(qm_int *sums, const qm_term *t, const qm_block *b, int32_t y,
                                      int32_t x, const int8_t *weights)
{
    const qm_convolution *const f = (const qm_convolution *)t->of;
    const qm_window *const p = &f->window;
    const uint8_t *const data = (const uint8_t *)t->in.data + b->channel;
    const int16_t zero_point = (int16_t)t->in.zero_point;
    static const int8_t zeros[QM_BLOCK] = {0};
    const uint8_t *from[3];
    const int8_t *by[3];
    int32_t i, j, row, column, n = 0;

    for (i = 0; i < p->kernel[0]; ++i) {
        if (!qm_reads(p, 0, y, i, &row))
            continue;
        for (j = 0; j < p->kernel[1]; ++j) {
            if (!qm_reads(p, 1, x, j, &column))
                continue;
            from[n] = data + qm_at(&p->in, row, column, 0);
            by[n] = weights + qm_weight_at(&f->weights, i, j, b->channel, 0);
            if (++n == 3) {
                qm_multiply_add3(sums, from, zero_point, by, b->lanes);
                n = 0;
            }
        }
    }
    if (!n)
        return;
    for (; n < 3; ++n) {
        from[n] = data;
        by[n] = zeros;
    }
    qm_multiply_add3(sums, from, zero_point, by, b->lanes);
}

/* Input channel c makes the output channels c * m to c * m + m - 1. */
static inline void qm_depthwise(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_convolution *const f = (const qm_convolution *)t->of;
    const qm_window *const p = &f->window;
    const qm_weights *const k = &f->weights;
    const int32_t m = p->out.channels / p->in.channels, width = p->out.width;
    const int8_t *const plain = m == 1 && t->in.bytes == 1 ? qm_plain(k, 2) : NULL;
    const int32_t first_row = (int32_t)(b->first / (size_t)width);
    const int32_t first_column = (int32_t)(b->first % (size_t)width);
    qm_value w[QM_BLOCK];
    int32_t i, j, n, l, y, x, row, column;

    qm_clear(sums, b);
    for (n = 0, y = first_row, x = first_column; plain && n < b->count; ++n) {
        qm_depthwise_pixel(sums + n * b->lanes, t, b, y, x, plain);
        qm_step(&y, &x, width);
    }
    for (i = 0; !plain && i < p->kernel[0]; ++i)
        for (j = 0; j < p->kernel[1]; ++j) {
            for (l = 0; l < b->lanes; ++l) {
                const int32_t c = b->channel + l;
                w[l] = qm_weight(k, qm_weight_at(k, i, j, c / m, c % m), c % m);
            }
            for (n = 0, y = first_row, x = first_column; n < b->count; ++n) {
                qm_int *const to = sums + n * b->lanes;
                if (qm_reads(p, 0, y, i, &row) && qm_reads(p, 1, x, j, &column))
                    for (l = 0; l < b->lanes; ++l)
                        to[l] += qm_get(&t->in, qm_at(&p->in, row, column, (b->channel + l) / m))
                                 * w[l];
                qm_step(&y, &x, width);
            }
        }
}

/* Sums of windows: of an average, the division is in the multipliers. */
static inline void qm_pool_sum(qm_int *sums, const qm_term *t, const qm_block *b)
{
    const qm_window *const p = (const qm_window *)t->of;
    int32_t i, j, n, l;

    qm_clear(sums, b);
    for (n = 0; n < b->count; ++n)
        for (i = 0; i < p->kernel[0]; ++i)
            for (j = 0; j < p->kernel[1]; ++j) {
                const size_t at = qm_under(p, b->first + (size_t)n, i, j, qm_reads);
                for (l = 0; at != SIZE_MAX && l < b->lanes; ++l)
                    sums[n * b->lanes + l] += qm_get(&t->in, at + (size_t)(b->channel + l));
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

    for (i = 0; i < b->count * b->lanes; ++i)
        sums[i] = sign * f->end;
    for (n = 0; n < b->count; ++n)
        for (i = 0; i < p->kernel[0]; ++i)
            for (j = 0; j < p->kernel[1]; ++j) {
                const size_t at = qm_under(p, b->first + (size_t)n, i, j, qm_reads);
                for (l = 0; at != SIZE_MAX && l < b->lanes; ++l) {
                    const qm_int x = sign * qm_get(&t->in, at + (size_t)(b->channel + l));
                    qm_int *const most = sums + n * b->lanes + l;
                    *most = x > *most ? x : *most;
                }
            }
    for (i = 0; i < b->count * b->lanes; ++i)
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

    qm_clear(sums, b);
    for (n = 0; n < b->count; ++n) {
        const size_t pixel = b->first + (size_t)n;
        qm_between((int32_t)(pixel / width), f->shape[0], f->factor[0], row, v);
        qm_between((int32_t)(pixel % width), f->shape[1], f->factor[1], column, w);
        for (i = 0; i < 2; ++i)
            for (j = 0; j < 2; ++j) {
                const size_t at = ((size_t)row[i] * (size_t)f->shape[1] + (size_t)column[j])
                                  * (size_t)f->shape[2] + (size_t)b->channel;
                for (l = 0; l < b->lanes; ++l)
                    sums[n * b->lanes + l] += qm_get(&t->in, at + (size_t)l) * (v[i] * w[j]);
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
            sums[n * b->lanes + l] = qm_get(&t->in, qm_strided(at, f->a));
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
            sums[n * b->lanes + l] = qm_get(&t->in, qm_strided(at, f->strides.a))
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
    const int whole = f->in[3] == f->out[3];
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
        if (inside && whole) {
            qm_widen(sums + n * b->lanes, &t->in, source + (size_t)b->channel, b->lanes);
            continue;
        }
        for (l = 0; l < b->lanes; ++l) {
            sums[n * b->lanes + l] = inside && c >= 0 && c < f->in[3]
                                         ? qm_get(&t->in, source + (size_t)c)
                                         : 0;
            if (++rest == f->factor[3]) {
                rest = 0;
                ++c;
            }
        }
    }
}

/* The number of a block's first integer, after which the others follow. */
static inline size_t qm_start(const qm_block *b)
{
    return b->first * (size_t)b->channels + (size_t)b->channel;
}

/* The integers as they are. */
static inline void qm_same(qm_int *sums, const qm_term *t, const qm_block *b)
{
    qm_widen(sums, &t->in, qm_start(b), b->count * b->lanes);
}

/* Go on to the next block; 0 after the last. */
static inline int qm_next(qm_block *b)
{
    b->channel += b->lanes;
    if (b->count && b->channel >= b->channels) {
        b->channel = 0;
        b->first += (size_t)b->count;
    }
    b->lanes = b->channels - b->channel < QM_BLOCK ? b->channels - b->channel : QM_BLOCK;
    b->count = b->channels > 0 && b->channels < QM_BLOCK ? QM_BLOCK / b->channels : 1;
    if (b->pixels - b->first < (size_t)b->count)
        b->count = (int32_t)(b->pixels - b->first);
    return b->count > 0 && b->lanes > 0;
}

/* Keep what a kernel gives: integers of the same scale, or accumulators. */
static inline void qm_move(const qm_tensor *out, const qm_term *t, size_t pixels, int32_t channels)
{
    qm_block b = {pixels, channels, 0, 0, 0, 0};
    qm_int sums[QM_BLOCK];

    while (qm_next(&b)) {
        t->kernel(sums, t, &b);
        qm_store(out, qm_start(&b), sums, b.count * b.lanes);
    }
}

/* The number of the constants of pixel n of a block and its first channel. */
static inline size_t qm_constant(const qm_requantization *r, const qm_block *b, int32_t n)
{
    const size_t of_pixel
        = r->pixel_step ? (b->first + (size_t)n) / r->pixels * r->pixel_step : 0;

    return of_pixel + (size_t)b->channel * (size_t)r->channel_step;
}

/* The constants of each element of a block. */
typedef struct {
    int32_t multiplier[QM_BLOCK];
    int64_t addend[QM_BLOCK];
    uint8_t shift[QM_BLOCK];
} qm_constants;

/* Spread the constants, with the multipliers of term t. */
static inline void qm_spread(qm_constants *to, const qm_scaling *s, int32_t t,
                             const qm_requantization *r, const qm_block *b)
{
    int32_t n, l;

    for (n = 0; n < b->count; ++n) {
        const size_t first = qm_constant(r, b, n);
        for (l = 0; l < b->lanes; ++l) {
            const size_t c = first + (size_t)(l * r->channel_step);
            const int32_t i = n * b->lanes + l;
            to->multiplier[i] = s->multiplier[t][c];
            to->addend[i] = s->addend[c];
            to->shift[i] = s->shift[c];
        }
    }
}

/* Add the accumulators of term t times their multipliers; the first begins with the addends. */
static inline void qm_scale(int64_t *QM_RESTRICT y, const qm_int *QM_RESTRICT sums,
                            const qm_constants *QM_RESTRICT c, int32_t t, int32_t n)
{
    int32_t i;

    for (i = 0; i < n; ++i) {
        const int64_t total = t ? y[i] : c->addend[i];
        y[i] = total + (int64_t)sums[i] * c->multiplier[i];
    }
}

/* y / 2^shift, rounded down: of a negative y the bits are inverted meanwhile, as C leaves open what
 * a right shift makes of its sign. */
static inline int64_t qm_shifted(int64_t y, uint8_t shift)
{
    const int64_t shifted = (int64_t)((uint64_t)(y < 0 ? -1 - y : y) >> shift);

    return y < 0 ? -1 - shifted : shifted;
}

static inline int64_t qm_rounded(int64_t y, const qm_constants *c, int32_t i)
{
    const uint8_t shift = c->shift[i];

    return qm_shifted(y, shift);
}

static inline int qm_is_negative(int64_t y, uint8_t shift)
{
    return y < (int64_t)1 << (shift - 1);  /* half a step, for rounding, is in it */
}

/* Round y, and take what a leaky ReLU makes where it is negative; no shift is left. */
static inline void qm_leak(int64_t *y, int64_t *negative, qm_constants *c,
                           const qm_requantization *r, const qm_block *b)
{
    const int32_t n = b->count * b->lanes;
    int32_t i;

    qm_spread(c, r->negative, 0, r, b);
    for (i = 0; i < n; ++i)
        negative[i] = qm_shifted(negative[i], c->shift[i]);
    qm_spread(c, &r->scaling, 0, r, b);
    for (i = 0; i < n; ++i) {
        y[i] = qm_is_negative(y[i], c->shift[i]) ? negative[i] : qm_rounded(y[i], c, i);
        c->shift[i] = 0;
    }
}

static inline qm_int qm_clamped(int64_t y, int64_t low, int64_t high)
{
    y = y < low ? low : y;
    y = y > high ? high : y;
    return (qm_int)y;
}

/* Round and clamp. */
static inline void qm_finish(qm_int *QM_RESTRICT out, const int64_t *QM_RESTRICT y,
                             const qm_constants *QM_RESTRICT c, const qm_requantization *r,
                             const qm_block *b)
{
    const int64_t low = *r->low, high = *r->high;
    const int32_t n = b->count * b->lanes;
    int32_t i;

    for (i = 0; i < n; ++i)
        out[i] = qm_clamped(qm_rounded(y[i], c, i), low, high);
    for (i = 0; r->clamps > 1 && i < n; ++i) {
        const size_t k = qm_constant(r, b, i / b->lanes)
                         + (size_t)(i % b->lanes * r->channel_step);
        out[i] = qm_clamped(qm_rounded(y[i], c, i), r->low[k], r->high[k]);
    }
}

static inline void qm_requantize(const qm_tensor *out, const qm_term *terms, size_t pixels,
                                 int32_t channels, const qm_requantization *r)
{
    /* Whether not all blocks have the constants of the first. */
    const int varies = r->terms > 1 || r->negative || r->pixel_step || channels > QM_BLOCK;
    qm_block b = {pixels, channels, 0, 0, 0, 0};
    qm_int sums[QM_BLOCK];
    int64_t y[QM_BLOCK], negative[QM_BLOCK];
    qm_constants c;
    int32_t t;

    while (qm_next(&b)) {
        const int32_t n = b.count * b.lanes;
        for (t = 0; t < r->terms; ++t) {
            terms[t].kernel(sums, &terms[t], &b);
            if (r->negative) {
                qm_spread(&c, r->negative, t, r, &b);
                qm_scale(negative, sums, &c, t, n);
            }
            if (varies || b.first == 0)
                qm_spread(&c, &r->scaling, t, r, &b);
            qm_scale(y, sums, &c, t, n);
        }
        if (r->negative)
            qm_leak(y, negative, &c, r, &b);
        qm_finish(sums, y, &c, r, &b);
        qm_store(out, qm_start(&b), sums, n);
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
