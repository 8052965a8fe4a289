/* A stand-in for CMSIS-NN's header, for tests: types and signatures as its documentation gives
 * them, and slow kernels of our own behind them, which read weights as documented there: OHWI,
 * 1HWC or OI, those of 4 bits two to a byte, the first in the low half. With NN_LIKE_MVE defined,
 * dense layers take the sums of their weights from the buffer, as on a Cortex-M55.
 */
#ifndef ARM_NNFUNCTIONS_H
#define ARM_NNFUNCTIONS_H

#include <stdint.h>
#include <string.h>

typedef enum { ARM_CMSIS_NN_SUCCESS = 0, ARM_CMSIS_NN_ARG_ERROR = -1 } arm_cmsis_nn_status;
typedef struct { int32_t w, h; } cmsis_nn_tile;
typedef struct { void *buf; int32_t size; } cmsis_nn_context;
typedef struct { int32_t n, h, w, c; } cmsis_nn_dims;
typedef struct { int32_t *multiplier, *shift; } cmsis_nn_per_channel_quant_params;
typedef struct { int32_t multiplier, shift; } cmsis_nn_per_tensor_quant_params;
typedef struct { int32_t *multiplier, *shift; int32_t is_per_channel; } cmsis_nn_quant_params;
typedef struct { int32_t min, max; } cmsis_nn_activation;
typedef struct {
    int32_t input_offset, output_offset;
    cmsis_nn_tile stride, padding, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_conv_params;
typedef struct {
    int32_t input_offset, output_offset, ch_mult;
    cmsis_nn_tile stride, padding, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_dw_conv_params;
typedef struct {
    int32_t input_offset, output_offset;
    cmsis_nn_tile stride, padding, padding_offsets, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_transpose_conv_params;
typedef struct {
    int32_t input_offset, filter_offset, output_offset;
    cmsis_nn_activation activation;
} cmsis_nn_fc_params;
typedef struct {
    cmsis_nn_tile stride, padding;
    cmsis_nn_activation activation;
} cmsis_nn_pool_params;

static inline int32_t nn_requantize(int32_t sum, int32_t multiplier, int32_t shift)
{
    const int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    const int64_t product = (int64_t)sum * ((int64_t)1 << left) * multiplier;
    const int32_t high = (int32_t)((product + (1 << 30)) >> 31);
    const int32_t mask = (int32_t)(((int64_t)1 << right) - 1), rest = high & mask;

    return (high >> right) + (rest > (mask >> 1) + (high < 0));
}

static inline int8_t nn_clamped(int32_t value, const cmsis_nn_activation *ends)
{
    value = value < ends->min ? ends->min : value;
    return (int8_t)(value > ends->max ? ends->max : value);
}

static inline int32_t nn_weight(const int8_t *weights, int bits, int32_t index)
{
    if (bits == 8)
        return weights[index];
    return (int8_t)(uint8_t)((uint8_t)weights[index / 2] << (index % 2 ? 0 : 4)) >> 4;
}

/* Of a depthwise convolution, of_group is the channel multiplier and depth is 1. */
static inline arm_cmsis_nn_status nn_convolve(
    int bits, int is_depthwise, const cmsis_nn_conv_params *p, const int32_t *multiplier,
    const int32_t *shift, int is_per_channel, const cmsis_nn_dims *in, const int8_t *input,
    const cmsis_nn_dims *filter, const int8_t *weights, const cmsis_nn_dims *biases,
    const int32_t *bias, const cmsis_nn_dims *out, int8_t *output)
{
    const int32_t depth = is_depthwise ? 1 : filter->c, of_group = out->c / (in->c / depth);
    int32_t n, y, x, o, i, j, c;

    if (biases->c != out->c || in->n != out->n || filter->n != (is_depthwise ? 1 : out->c))
        return ARM_CMSIS_NN_ARG_ERROR;
    for (n = 0; n < in->n; ++n)
        for (y = 0; y < out->h; ++y)
            for (x = 0; x < out->w; ++x)
                for (o = 0; o < out->c; ++o) {
                    int32_t sum = bias[o];
                    for (i = 0; i < filter->h; ++i)
                        for (j = 0; j < filter->w; ++j)
                            for (c = 0; c < depth; ++c) {
                                const int32_t row = y * p->stride.h + i * p->dilation.h - p->padding.h;
                                const int32_t column = x * p->stride.w + j * p->dilation.w - p->padding.w;
                                const int32_t channel = o / of_group * depth + c;
                                const int32_t place = is_depthwise
                                    ? (i * filter->w + j) * out->c + o
                                    : ((o * filter->h + i) * filter->w + j) * depth + c;
                                if (row < 0 || row >= in->h || column < 0 || column >= in->w)
                                    continue;
                                sum += (input[((n * in->h + row) * in->w + column) * in->c + channel]
                                        + p->input_offset) * nn_weight(weights, bits, place);
                            }
                    c = is_per_channel ? o : 0;
                    sum = nn_requantize(sum, multiplier[c], shift[c]) + p->output_offset;
                    output[((n * out->h + y) * out->w + x) * out->c + o] =
                        nn_clamped(sum, &p->activation);
                }
    return ARM_CMSIS_NN_SUCCESS;
}

/* Whether a layer got the buffer that it asked for; it is free to write to all of it. */
static inline int nn_has(const cmsis_nn_context *ctx, int32_t size)
{
    if (!ctx->buf || ctx->size < size)
        return 0;
    memset(ctx->buf, 0, (size_t)size);
    return 1;
}

#define NN_CONVOLUTION(name, bits) \
    static inline int32_t name##_get_buffer_size( \
        const cmsis_nn_conv_params *p, const cmsis_nn_dims *in, const cmsis_nn_dims *filter, \
        const cmsis_nn_dims *out) \
    { \
        return p->stride.w && out->c ? 4 * filter->w * filter->h * in->c : 0; \
    } \
    static inline arm_cmsis_nn_status name( \
        const cmsis_nn_context *ctx, const cmsis_nn_conv_params *p, \
        const cmsis_nn_per_channel_quant_params *q, const cmsis_nn_dims *in, const int8_t *input, \
        const cmsis_nn_dims *filter, const int8_t *weights, const cmsis_nn_dims *biases, \
        const int32_t *bias, const cmsis_nn_dims *out, int8_t *output) \
    { \
        if (!nn_has(ctx, name##_get_buffer_size(p, in, filter, out))) \
            return ARM_CMSIS_NN_ARG_ERROR; \
        return nn_convolve(bits, 0, p, q->multiplier, q->shift, 1, in, input, filter, weights, \
                           biases, bias, out, output); \
    }

#define NN_DEPTHWISE(name, bits) \
    static inline int32_t name##_get_buffer_size( \
        const cmsis_nn_dw_conv_params *p, const cmsis_nn_dims *in, const cmsis_nn_dims *filter, \
        const cmsis_nn_dims *out) \
    { \
        return p->stride.w && out->c ? 2 * filter->w * filter->h * in->c : 0; \
    } \
    static inline arm_cmsis_nn_status name( \
        const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *d, \
        const cmsis_nn_per_channel_quant_params *q, const cmsis_nn_dims *in, const int8_t *input, \
        const cmsis_nn_dims *filter, const int8_t *weights, const cmsis_nn_dims *biases, \
        const int32_t *bias, const cmsis_nn_dims *out, int8_t *output) \
    { \
        const cmsis_nn_conv_params p = {d->input_offset, d->output_offset, d->stride, d->padding, \
                                        d->dilation, d->activation}; \
        if (!nn_has(ctx, name##_get_buffer_size(d, in, filter, out)) \
            || d->ch_mult * in->c != out->c || filter->c != out->c) \
            return ARM_CMSIS_NN_ARG_ERROR; \
        return nn_convolve(bits, 1, &p, q->multiplier, q->shift, 1, in, input, filter, weights, \
                           biases, bias, out, output); \
    }

NN_CONVOLUTION(arm_convolve_wrapper_s8, 8)
NN_CONVOLUTION(arm_convolve_wrapper_s4, 4)
NN_DEPTHWISE(arm_depthwise_conv_wrapper_s8, 8)
NN_DEPTHWISE(arm_depthwise_conv_wrapper_s4, 4)

static inline arm_cmsis_nn_status nn_dense(
    int bits, const cmsis_nn_fc_params *f, const int32_t *multiplier, const int32_t *shift,
    int is_per_channel, const cmsis_nn_dims *in, const int8_t *input, const cmsis_nn_dims *filter,
    const int8_t *weights, const cmsis_nn_dims *biases, const int32_t *bias,
    const cmsis_nn_dims *out, int8_t *output)
{
    const cmsis_nn_conv_params p = {f->input_offset, f->output_offset, {1, 1}, {0, 0}, {1, 1},
                                    f->activation};
    const cmsis_nn_dims as_filter = {filter->c, 1, 1, filter->n};

    if (f->filter_offset || in->h * in->w * in->c != filter->n)
        return ARM_CMSIS_NN_ARG_ERROR;
    return nn_convolve(bits, 0, &p, multiplier, shift, is_per_channel, in, input, &as_filter,
                       weights, biases, bias, out, output);
}

static inline arm_cmsis_nn_status arm_vector_sum_s8(
    int32_t *sums, const int32_t columns, const int32_t rows, const int8_t *vectors,
    const int32_t lhs_offset, const int32_t rhs_offset, const int32_t *bias)
{
    int32_t row, column;

    for (row = 0; row < rows; ++row) {
        sums[row] = bias[row];
        for (column = 0; column < columns; ++column)
            sums[row] += (vectors[row * columns + column] + rhs_offset) * lhs_offset;
    }
    return ARM_CMSIS_NN_SUCCESS;
}

static inline arm_cmsis_nn_status arm_fully_connected_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *f, const cmsis_nn_quant_params *q,
    const cmsis_nn_dims *in, const int8_t *input, const cmsis_nn_dims *filter,
    const int8_t *weights, const cmsis_nn_dims *biases, const int32_t *bias,
    const cmsis_nn_dims *out, int8_t *output)
{
    cmsis_nn_fc_params own = *f;

#ifdef NN_LIKE_MVE
    bias = ctx->buf;
    own.input_offset = 0;
    if (ctx->size < 4 * out->c)
        return ARM_CMSIS_NN_ARG_ERROR;
#endif
    (void)ctx;
    return nn_dense(8, &own, q->multiplier, q->shift, q->is_per_channel, in, input, filter,
                    weights, biases, bias, out, output);
}

static inline arm_cmsis_nn_status arm_fully_connected_s4(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *f,
    const cmsis_nn_per_tensor_quant_params *q, const cmsis_nn_dims *in, const int8_t *input,
    const cmsis_nn_dims *filter, const int8_t *weights, const cmsis_nn_dims *biases,
    const int32_t *bias, const cmsis_nn_dims *out, int8_t *output)
{
    (void)ctx;
    return nn_dense(4, f, &q->multiplier, &q->shift, 0, in, input, filter, weights, biases, bias,
                    out, output);
}

static inline int32_t arm_fully_connected_s8_get_buffer_size(const cmsis_nn_dims *filter)
{
#ifdef NN_LIKE_MVE
    return filter->c * (int32_t)sizeof(int32_t);
#else
    (void)filter;
    return 0;
#endif
}

static inline int32_t arm_transpose_conv_s8_get_buffer_size(
    const cmsis_nn_transpose_conv_params *p, const cmsis_nn_dims *in, const cmsis_nn_dims *filter,
    const cmsis_nn_dims *out)
{
    return 4 * (in->w * p->stride.w + filter->w) * filter->h * out->c;
}

static inline int32_t arm_transpose_conv_s8_get_reverse_conv_buffer_size(
    const cmsis_nn_transpose_conv_params *p, const cmsis_nn_dims *in, const cmsis_nn_dims *filter)
{
    return p->stride.w <= 2 && in->c > 2 ? filter->n * filter->h * filter->w * filter->c : 0;
}

static inline arm_cmsis_nn_status arm_transpose_conv_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_context *more,
    const cmsis_nn_transpose_conv_params *p, const cmsis_nn_per_channel_quant_params *q,
    const cmsis_nn_dims *in, const int8_t *input, const cmsis_nn_dims *filter,
    const int8_t *weights, const cmsis_nn_dims *biases, const int32_t *bias,
    const cmsis_nn_dims *out, int8_t *output)
{
    int32_t y, x, o, i, j, c;

    if (!nn_has(ctx, arm_transpose_conv_s8_get_buffer_size(p, in, filter, out))
        || !nn_has(more, arm_transpose_conv_s8_get_reverse_conv_buffer_size(p, in, filter))
        || in->n != 1 || filter->n != out->c || filter->c != in->c || biases->c != out->c)
        return ARM_CMSIS_NN_ARG_ERROR;
    for (y = 0; y < out->h; ++y)
        for (x = 0; x < out->w; ++x)
            for (o = 0; o < out->c; ++o) {
                int32_t sum = bias[o];
                for (i = 0; i < filter->h; ++i)
                    for (j = 0; j < filter->w; ++j) {
                        const int32_t row = y + p->padding.h - i, column = x + p->padding.w - j;
                        if (row < 0 || row % p->stride.h || row / p->stride.h >= in->h
                            || column < 0 || column % p->stride.w || column / p->stride.w >= in->w)
                            continue;
                        for (c = 0; c < in->c; ++c)
                            sum += (input[(row / p->stride.h * in->w + column / p->stride.w) * in->c
                                          + c] + p->input_offset)
                                * weights[((o * filter->h + i) * filter->w + j) * in->c + c];
                    }
                sum = nn_requantize(sum, q->multiplier[o], q->shift[o]) + p->output_offset;
                output[(y * out->w + x) * out->c + o] = nn_clamped(sum, &p->activation);
            }
    return ARM_CMSIS_NN_SUCCESS;
}

static inline arm_cmsis_nn_status nn_pool(
    int is_average, const cmsis_nn_pool_params *p, const cmsis_nn_dims *in, const int8_t *input,
    const cmsis_nn_dims *filter, const cmsis_nn_dims *out, int8_t *output)
{
    int32_t y, x, c, i, j;

    if (in->n != 1 || in->c != out->c)
        return ARM_CMSIS_NN_ARG_ERROR;
    for (y = 0; y < out->h; ++y)
        for (x = 0; x < out->w; ++x)
            for (c = 0; c < out->c; ++c) {
                int32_t sum = 0, most = -128, count = 0;
                for (i = 0; i < filter->h; ++i)
                    for (j = 0; j < filter->w; ++j) {
                        const int32_t row = y * p->stride.h + i - p->padding.h;
                        const int32_t column = x * p->stride.w + j - p->padding.w;
                        int32_t value;
                        if (row < 0 || row >= in->h || column < 0 || column >= in->w)
                            continue;
                        value = input[(row * in->w + column) * in->c + c];
                        most = value > most ? value : most;
                        sum += value;
                        ++count;
                    }
                sum = (sum > 0 ? sum + count / 2 : sum - count / 2) / count;
                output[(y * out->w + x) * out->c + c] =
                    nn_clamped(is_average ? sum : most, &p->activation);
            }
    return ARM_CMSIS_NN_SUCCESS;
}

static inline int32_t arm_avgpool_s8_get_buffer_size(const int width, const int channels)
{
    return width ? 4 * channels : 0;
}

static inline arm_cmsis_nn_status arm_avgpool_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *p, const cmsis_nn_dims *in,
    const int8_t *input, const cmsis_nn_dims *filter, const cmsis_nn_dims *out, int8_t *output)
{
    return nn_has(ctx, arm_avgpool_s8_get_buffer_size(out->w, in->c))
        ? nn_pool(1, p, in, input, filter, out, output) : ARM_CMSIS_NN_ARG_ERROR;
}

static inline arm_cmsis_nn_status arm_max_pool_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_pool_params *p, const cmsis_nn_dims *in,
    const int8_t *input, const cmsis_nn_dims *filter, const cmsis_nn_dims *out, int8_t *output)
{
    (void)ctx;
    return nn_pool(0, p, in, input, filter, out, output);
}

static inline arm_cmsis_nn_status arm_elementwise_add_s8(
    const int8_t *a, const int8_t *b, const int32_t a_offset, const int32_t a_multiplier,
    const int32_t a_shift, const int32_t b_offset, const int32_t b_multiplier,
    const int32_t b_shift, const int32_t left_shift, int8_t *output, const int32_t offset,
    const int32_t multiplier, const int32_t shift, const int32_t min, const int32_t max,
    const int32_t size)
{
    const cmsis_nn_activation ends = {min, max};
    int32_t i;

    for (i = 0; i < size; ++i) {
        const int32_t first = (a[i] + a_offset) * (1 << left_shift);
        const int32_t second = (b[i] + b_offset) * (1 << left_shift);
        const int32_t sum = nn_requantize(first, a_multiplier, a_shift)
            + nn_requantize(second, b_multiplier, b_shift);
        output[i] = nn_clamped(nn_requantize(sum, multiplier, shift) + offset, &ends);
    }
    return ARM_CMSIS_NN_SUCCESS;
}

#endif
