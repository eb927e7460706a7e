/*
 * Convolutions in eight bits.
 *
 * Sums are whole numbers. What follows is float32 in the order in which the network was trained,
 * each operation rounded by itself: with a fused multiply-add a value may fall on the other side
 * of the border between two levels.
 *
 *   y      = (float)sum * factor[channel] + bias[channel]
 *   level  = round(y / scale) + zero                              half to even, 0 ... 255
 *   behind a shortcut, from these levels and those of the shortcut:
 *   y      = (level - zero) * scale + (shortcut level - shortcut zero) * shortcut scale
 */

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include <string.h>

#include "layers.h"

#if STAPES_INT8

uint8_t stapes_level(float value, float scale, int zero)
{
    const float least = (float)-zero, most = (float)(255 - zero);
    float x = value / scale;

    x = x > least ? x : least;
    x = x < most ? x : most;
    /* At this size a float has no room for fractions, and adding rounds half to even. */
    x = (x + 12582912.0f) - 12582912.0f;
    return (uint8_t)((int)x + zero);
}

/* Round the sums of one output channel at places at ... at + count - 1, and write them. */
static void finish(const stapes_layer *layer, const stapes_run *run, int channel, int32_t at,
                   int32_t count, const int32_t *sums)
{
    const stapes_map *out = &stapes_maps[layer->out];
    const float factor = stapes_factors[layer->first_bias + channel];
    const float bias = stapes_biases[layer->first_bias + channel];
    const int row = channel / 4, k = channel % 4;
    stapes_cell *y = run->y + row * run->y_stride + at;

    if (run->shortcut == NULL) {
        for (int32_t i = 0; i < count; i++) {
            const float product = (float)sums[i] * factor;
            y[i].level[k] = stapes_level(product + bias, out->scale, out->zero);
        }
        return;
    }
    const stapes_map *other = &stapes_maps[layer->shortcut];
    const stapes_cell *x = run->shortcut + row * run->shortcut_stride + at;
    for (int32_t i = 0; i < count; i++) {
        const float product = (float)sums[i] * factor;
        const int level = stapes_level(product + bias, layer->scale, layer->zero) - layer->zero;
        const float a = (float)level * layer->scale;
        const float b = (float)(x[i].level[k] - other->zero) * other->scale;
        y[i].level[k] = stapes_level(a + b, out->scale, out->zero);
    }
}

/* Places that are summed up side by side, and output channels in a group of weights. */
#if defined(__SSE2__) || defined(__ARM_NEON)
#define PLACES 16
#else
#define PLACES 2
#endif
#define CHANNELS 4

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

/*
 * A vector is 16 cells. One instruction multiplies each level with the weight for its channel, and
 * adds the four products to a sum of the cell.
 */
#include <immintrin.h>

#define LANES 16
#define GROUPS 2
#define VECTORS 3
#define INLINE static inline __attribute__((always_inline))

INLINE __m512 requantised(__m512 value, float scale, int zero)
{
    const __m512 least = _mm512_set1_ps((float)-zero), most = _mm512_set1_ps((float)(255 - zero));
    const __m512 x = _mm512_div_ps(value, _mm512_set1_ps(scale));
    return _mm512_min_ps(_mm512_max_ps(x, least), most);
}

/* The sums of four channels, as cells of their levels. */
INLINE void finish_cells(const stapes_layer *layer, const stapes_run *run, int group, int32_t at,
                         const __m512i sums[CHANNELS])
{
    const int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const stapes_map *out = &stapes_maps[layer->out];
    const int32_t left = run->cells - at;
    const __mmask16 mask = (__mmask16)(left >= LANES ? 0xffff : (1 << left) - 1);
    const float *factors = stapes_factors + layer->first_bias + CHANNELS * group;
    const float *biases = stapes_biases + layer->first_bias + CHANNELS * group;
    __m512i cells = _mm512_setzero_si512(), others = cells;
    const stapes_map *other = NULL;

    if (run->shortcut != NULL) {
        other = &stapes_maps[layer->shortcut];
        others = _mm512_loadu_si512(run->shortcut + group * run->shortcut_stride + at);
    }
    for (int m = CHANNELS - 1; m >= 0; m--) {
        __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m]), _mm512_set1_ps(factors[m]));
        y = _mm512_add_ps(y, _mm512_set1_ps(biases[m]));
        if (other != NULL) {
            const __m512i byte = _mm512_srli_epi32(_mm512_slli_epi32(others, (unsigned)(24 - 8 * m)), 24);
            const __m512i level = _mm512_sub_epi32(byte, _mm512_set1_epi32(other->zero));
            const __m512 b =
                _mm512_mul_ps(_mm512_cvtepi32_ps(level), _mm512_set1_ps(other->scale));
            y = requantised(y, layer->scale, layer->zero);
            y = _mm512_mul_ps(_mm512_roundscale_ps(y, nearest), _mm512_set1_ps(layer->scale));
            y = _mm512_add_ps(y, b);
        }
        y = requantised(y, out->scale, out->zero);
        const __m512i level =
            _mm512_add_epi32(_mm512_cvtps_epi32(y), _mm512_set1_epi32(out->zero));
        cells = _mm512_or_si512(_mm512_slli_epi32(cells, 8), level);
    }
    _mm512_mask_storeu_epi32(run->y + group * run->y_stride + at, mask, cells);
}

INLINE void tile(const stapes_layer *layer, const stapes_run *run, int group, int groups,
                 int32_t at, int vectors)
{
    const int32_t size = layer->in_rows * layer->taps * CHANNELS * 4;
    const int8_t *w = stapes_weights + layer->first_weight + group * size;
    const int32_t *tap = stapes_taps + layer->first_tap;
    const int32_t *starts = stapes_starts + layer->first_bias + CHANNELS * group;
    const stapes_cell *x = run->x + at;
    __m512i sum[VECTORS][GROUPS * CHANNELS];

    for (int m = 0; m < groups * CHANNELS; m++) {
        for (int v = 0; v < vectors; v++) {
            sum[v][m] = _mm512_set1_epi32(starts[m]);
        }
    }
    for (int row = 0; row < layer->in_rows; row++) {
        for (int k = 0; k < layer->taps; k++) {
            __m512i in[VECTORS];
            for (int v = 0; v < vectors; v++) {
                in[v] = _mm512_loadu_si512(x + tap[k] + v * LANES);
            }
            for (int m = 0; m < groups * CHANNELS; m++) {
                int32_t four;
                memcpy(&four, w + m / CHANNELS * size + m % CHANNELS * 4, sizeof four);
                for (int v = 0; v < vectors; v++) {
                    sum[v][m] = _mm512_dpbusd_epi32(sum[v][m], in[v], _mm512_set1_epi32(four));
                }
            }
            w += CHANNELS * 4;
        }
        x += layer->in_stride;
    }
    for (int g = 0; g < groups; g++) {
        for (int v = 0; v < vectors; v++) {
            finish_cells(layer, run, group + g, at + v * LANES, sum[v] + g * CHANNELS);
        }
    }
}

INLINE void tiles(const stapes_layer *layer, const stapes_run *run, int32_t at, int vectors)
{
    int group = 0;

    for (; group + GROUPS <= layer->out_rows; group += GROUPS) {
        tile(layer, run, group, GROUPS, at, vectors);
    }
    if (group < layer->out_rows) {
        tile(layer, run, group, 1, at, vectors);
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

#else

void stapes_convolve(const stapes_layer *layer, const stapes_run *run)
{
    const int32_t *tap = stapes_taps + layer->first_tap;

    for (int32_t at = 0; at < run->cells; at += PLACES) {
        const int32_t left = run->cells - at, count = left < PLACES ? left : PLACES;
        const int8_t *w = stapes_weights + layer->first_weight;
        for (int group = 0; group < layer->out_rows; group++) {
            const int32_t *starts = stapes_starts + layer->first_bias + CHANNELS * group;
            const stapes_cell *x = run->x + at;
            int32_t sum[CHANNELS][PLACES];
            for (int m = 0; m < CHANNELS; m++) {
                for (int i = 0; i < PLACES; i++) {
                    sum[m][i] = starts[m];
                }
            }
            for (int row = 0; row < layer->in_rows; row++) {
                for (int k = 0; k < layer->taps; k++) {
                    const stapes_cell *from = x + tap[k];
                    for (int m = 0; m < CHANNELS; m++) {
                        for (int i = 0; i < PLACES; i++) {
                            sum[m][i] += from[i].level[0] * w[0] + from[i].level[1] * w[1] +
                                         from[i].level[2] * w[2] + from[i].level[3] * w[3];
                        }
                        w += 4;
                    }
                }
                x += layer->in_stride;
            }
            for (int m = 0; m < CHANNELS; m++) {
                finish(layer, run, CHANNELS * group + m, at, count, sum[m]);
            }
        }
    }
}

#endif

/* Jumps are in levels, not in cells. */
void stapes_convolve_sparse(const stapes_layer *layer, const stapes_run *run)
{
    for (int32_t at = 0; at < run->cells; at += PLACES) {
        const int32_t left = run->cells - at, count = left < PLACES ? left : PLACES;
        const int8_t *w = stapes_weights + layer->first_weight;
        const uint16_t *jump = stapes_jumps + layer->first_jump;
        for (int channel = 0; channel < CHANNELS * layer->out_rows; channel++) {
            const int8_t *const end = w + stapes_counts[layer->first_count + channel];
            const uint8_t *x = (const uint8_t *)(run->x + at);
            int32_t sum[PLACES];
            for (int i = 0; i < PLACES; i++) {
                sum[i] = stapes_starts[layer->first_bias + channel];
            }
            for (; w < end; w++) {
                x += *jump++;
                for (int i = 0; i < PLACES; i++) {
                    sum[i] += *w * x[4 * i];
                }
            }
            finish(layer, run, channel, at, count, sum);
        }
    }
}

#endif
