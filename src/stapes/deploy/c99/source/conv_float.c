/*
 * Convolutions in float32, many output channels and places at a time.
 *
 * May be compiled with -ffp-contract=fast: no result depends on how often a sum is rounded.
 */

#include <string.h>

#include "layers.h"

#if !STAPES_INT8

/*
 * vec: floats that the processor multiplies at once; GNU C knows such types, elsewhere it is one
 * float. CHANNELS x VECTORS of them are summed up side by side: as many as there are registers.
 */
#if !defined(__GNUC__) || defined(STAPES_PLAIN)
#define LANES 1
#define CHANNELS 4
#elif defined(__AVX512F__)
#define LANES 16
#define CHANNELS 8
#elif defined(__AVX__)
#define LANES 8
#define CHANNELS 4
#elif defined(__aarch64__)
#define LANES 4
#define CHANNELS 8
#elif defined(__SSE2__) || defined(__ARM_NEON)
#define LANES 4
#define CHANNELS 4
#else
#define LANES 1
#define CHANNELS 4
#endif
#define VECTORS 3

#if LANES > 1
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
#define POSITIVE(x) ((vec)((mask)(x) & ((x) > 0.0f)))
#else
typedef float vec;
#define POSITIVE(x) ((x) > 0.0f ? (x) : 0.0f)
#endif
#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
/* Sums shall stay in registers from the first product to the last store. */
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLLED _Pragma("GCC unroll 8")
#else
#define UNROLLED
#endif

INLINE vec load(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE void store(float *y, vec v)
{
    memcpy(y, &v, sizeof v);
}

INLINE vec spread(float x)
{
    return x - (vec){0};
}

/* Add the shortcut, clip, and write the sums of a channel at places at ... to y. */
INLINE void finish(const stapes_layer *layer, const stapes_run *run, int channel, int32_t at,
                   const vec *sum, int vectors, float *y)
{
    const float *shortcut = NULL;

    if (run->shortcut != NULL) {
        shortcut = run->shortcut + channel * run->shortcut_stride + at;
    }
    UNROLLED for (int v = 0; v < vectors; v++) {
        vec x = sum[v];
        if (shortcut != NULL) {
            x += load(shortcut + v * LANES);
        }
        if (layer->relu) {
            x = POSITIVE(x);
        }
        store(y + v * LANES, x);
    }
}

/* `channels` x `vectors` outputs; `width` weights of a group lie next to each other. */
INLINE void tile(const stapes_layer *layer, const stapes_run *run, const float *restrict w,
                 int width, int channel, int channels, int32_t at, int vectors)
{
    const int32_t *restrict tap = stapes_taps + layer->first_tap;
    const float *bias = stapes_biases + layer->first_bias;
    const float *restrict x = run->x + at;
    vec sum[CHANNELS][VECTORS];

    for (int m = 0; m < channels; m++) {
        for (int v = 0; v < vectors; v++) {
            sum[m][v] = spread(bias[channel + m]);
        }
    }
    for (int row = 0; row < layer->in_rows; row++) {
        for (int k = 0; k < layer->taps; k++) {
            const float *from = x + tap[k];
            vec in[VECTORS];
            for (int v = 0; v < vectors; v++) {
                in[v] = load(from + v * LANES);
            }
            for (int m = 0; m < channels; m++) {
                for (int v = 0; v < vectors; v++) {
                    sum[m][v] += w[m] * in[v];
                }
            }
            w += width;
        }
        x += layer->in_stride;
    }
    /* What would go beyond the run's end goes aside first. */
    const int32_t left = run->cells - at;
    float *y = run->y + channel * run->y_stride + at;
    if (left >= vectors * LANES) {
        UNROLLED for (int m = 0; m < channels; m++) {
            finish(layer, run, channel + m, at, sum[m], vectors, y + m * run->y_stride);
        }
    } else {
        float aside[CHANNELS][VECTORS * LANES];
        UNROLLED for (int m = 0; m < channels; m++) {
            finish(layer, run, channel + m, at, sum[m], vectors, aside[m]);
        }
        for (int m = 0; m < channels; m++) {
            memcpy(y + m * run->y_stride, aside[m], (size_t)left * sizeof *y);
        }
    }
}

/* All channels of one tile. */
INLINE void tiles(const stapes_layer *layer, const stapes_run *run, int32_t at, int vectors)
{
    const int per_channel = layer->in_rows * layer->taps;
    const float *w = stapes_weights + layer->first_weight;
    int channel = 0;

    for (; channel + 8 <= layer->out_rows; channel += 8) {
        for (int m = 0; m < 8; m += CHANNELS) {
            tile(layer, run, w + m, 8, channel + m, CHANNELS, at, vectors);
        }
        w += 8 * per_channel;
    }
    if (layer->out_rows & 4) {
        tile(layer, run, w, 4, channel, 4, at, vectors);
        w += 4 * per_channel;
        channel += 4;
    }
    if (layer->out_rows & 2) {
        tile(layer, run, w, 2, channel, 2, at, vectors);
        w += 2 * per_channel;
        channel += 2;
    }
    if (layer->out_rows & 1) {
        tile(layer, run, w, 1, channel, 1, at, vectors);
    }
}

void stapes_convolve(const stapes_layer *layer, const stapes_run *run)
{
    int32_t at = 0;

    while (at < run->cells) {
        const int32_t vectors = (run->cells - at + LANES - 1) / LANES;
        /* Four are better two and two than three and one. */
        if (vectors >= 3 && vectors != 4) {
            tiles(layer, run, at, 3);
            at += 3 * LANES;
        } else if (vectors >= 2) {
            tiles(layer, run, at, 2);
            at += 2 * LANES;
        } else {
            tiles(layer, run, at, 1);
            at += LANES;
        }
    }
}

INLINE void sparse_tile(const stapes_layer *layer, const stapes_run *run, int32_t at, int vectors)
{
    const float *restrict w = stapes_weights + layer->first_weight;
    const float *bias = stapes_biases + layer->first_bias;
    const uint16_t *restrict counts = stapes_counts + layer->first_count;
    const uint16_t *restrict jump = stapes_jumps + layer->first_jump;
    const int32_t left = run->cells - at;
    vec sum[8];

    for (int channel = 0; channel < layer->out_rows; channel++) {
        const float *restrict x = run->x + at;
        const float *const end = w + counts[channel];
        for (int v = 0; v < vectors; v++) {
            sum[v] = spread(bias[channel]);
        }
        for (; w < end; w++) {
            x += *jump++;
            for (int v = 0; v < vectors; v++) {
                sum[v] += *w * load(x + v * LANES);
            }
        }
        float *y = run->y + channel * run->y_stride + at;
        if (left >= vectors * LANES) {
            finish(layer, run, channel, at, sum, vectors, y);
        } else {
            float aside[8 * LANES];
            finish(layer, run, channel, at, sum, vectors, aside);
            memcpy(y, aside, (size_t)left * sizeof *y);
        }
    }
}

void stapes_convolve_sparse(const stapes_layer *layer, const stapes_run *run)
{
    int32_t at = 0;

    while (at < run->cells) {
        const int32_t vectors = (run->cells - at + LANES - 1) / LANES;
        if (vectors >= 8) {
            sparse_tile(layer, run, at, 8);
            at += 8 * LANES;
        } else if (vectors >= 4) {
            sparse_tile(layer, run, at, 4);
            at += 4 * LANES;
        } else if (vectors >= 2) {
            sparse_tile(layer, run, at, 2);
            at += 2 * LANES;
        } else {
            sparse_tile(layer, run, at, 1);
            at += LANES;
        }
    }
}

#endif
