/* A stand-in for CMSIS-NN's header, for tests: types and signatures as its documentation gives
 * them, and one slow kernel of our own behind them, which reads weights as documented there: OHWI,
 * 1HWC or OI, those of 4 bits two to a byte, the first in the low half.
 */
#ifndef ARM_NNFUNCTIONS_H
#define ARM_NNFUNCTIONS_H

#include <stdint.h>

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
    int32_t input_offset, filter_offset, output_offset;
    cmsis_nn_activation activation;
} cmsis_nn_fc_params;

static inline int32_t nn_requantize(int32_t sum, int32_t multiplier, int32_t shift)
{
    const int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    const int64_t product = (int64_t)sum * ((int64_t)1 << left) * multiplier;
    const int32_t high = (int32_t)((product + (1 << 30)) >> 31);
    const int32_t mask = (int32_t)(((int64_t)1 << right) - 1), rest = high & mask;

    return (high >> right) + (rest > (mask >> 1) + (high < 0));
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
                    sum = sum < p->activation.min ? p->activation.min : sum;
                    sum = sum > p->activation.max ? p->activation.max : sum;
                    output[((n * out->h + y) * out->w + x) * out->c + o] = (int8_t)sum;
                }
    return ARM_CMSIS_NN_SUCCESS;
}

#define NN_CONVOLUTION(name, bits) \
    static inline arm_cmsis_nn_status name( \
        const cmsis_nn_context *ctx, const cmsis_nn_conv_params *p, \
        const cmsis_nn_per_channel_quant_params *q, const cmsis_nn_dims *in, const int8_t *input, \
        const cmsis_nn_dims *filter, const int8_t *weights, const cmsis_nn_dims *biases, \
        const int32_t *bias, const cmsis_nn_dims *out, int8_t *output) \
    { \
        return ctx->buf ? nn_convolve(bits, 0, p, q->multiplier, q->shift, 1, in, input, filter, \
                                      weights, biases, bias, out, output) \
                        : ARM_CMSIS_NN_ARG_ERROR; \
    } \
    static inline int32_t name##_get_buffer_size( \
        const cmsis_nn_conv_params *p, const cmsis_nn_dims *in, const cmsis_nn_dims *filter, \
        const cmsis_nn_dims *out) \
    { \
        return p->stride.w && out->c ? 4 * filter->w * filter->h * in->c : 0; \
    }

#define NN_DEPTHWISE(name, bits) \
    static inline arm_cmsis_nn_status name( \
        const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *d, \
        const cmsis_nn_per_channel_quant_params *q, const cmsis_nn_dims *in, const int8_t *input, \
        const cmsis_nn_dims *filter, const int8_t *weights, const cmsis_nn_dims *biases, \
        const int32_t *bias, const cmsis_nn_dims *out, int8_t *output) \
    { \
        const cmsis_nn_conv_params p = {d->input_offset, d->output_offset, d->stride, d->padding, \
                                        d->dilation, d->activation}; \
        if (!ctx->buf || d->ch_mult * in->c != out->c || filter->c != out->c) \
            return ARM_CMSIS_NN_ARG_ERROR; \
        return nn_convolve(bits, 1, &p, q->multiplier, q->shift, 1, in, input, filter, weights, \
                           biases, bias, out, output); \
    } \
    static inline int32_t name##_get_buffer_size( \
        const cmsis_nn_dw_conv_params *p, const cmsis_nn_dims *in, const cmsis_nn_dims *filter, \
        const cmsis_nn_dims *out) \
    { \
        return p->stride.w && out->c ? 2 * filter->w * filter->h * in->c : 0; \
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

static inline arm_cmsis_nn_status arm_fully_connected_wrapper_s8(
    const cmsis_nn_context *ctx, const cmsis_nn_fc_params *f, const cmsis_nn_quant_params *q,
    const cmsis_nn_dims *in, const int8_t *input, const cmsis_nn_dims *filter,
    const int8_t *weights, const cmsis_nn_dims *biases, const int32_t *bias,
    const cmsis_nn_dims *out, int8_t *output)
{
    (void)ctx;
    return nn_dense(8, f, q->multiplier, q->shift, q->is_per_channel, in, input, filter, weights,
                    biases, bias, out, output);
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
    return filter->c * (int32_t)sizeof(int32_t);
}

#endif
