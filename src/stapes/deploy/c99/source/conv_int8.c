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

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* A value in levels above zero, as a whole number. */
INLINE float rounded(float value, float scale, int zero)
{
    const float least = (float)-zero, most = (float)(255 - zero);
    float x = value / scale;

    x = x > least ? x : least;
    x = x < most ? x : most;
    /* At this size a float has no room for fractions, and adding rounds half to even. */
    return (x + 12582912.0f) - 12582912.0f;
}

INLINE uint8_t level_of(float value, float scale, int zero)
{
    return (uint8_t)((int)rounded(value, scale, zero) + zero);
}

void stapes_quantise(const float *values, uint8_t *levels, int count, float scale, int zero)
{
    for (int i = 0; i < count; i++) {
        levels[i] = level_of(values[i], scale, zero);
    }
}

/* --- what the processor has ---
 *
 * LANES      cells that are worked on at once
 * GROUPS     groups of four output channels that are summed up side by side, and
 * VECTORS    times LANES cells: as many as there are registers
 * sums       int32, one for each of LANES cells
 * cells      LANES cells, ready for products
 * quad       four weights, for the four channels of a cell
 */

#define CHANNELS 4

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define LANES 16
#define GROUPS 2
#define VECTORS 3
typedef __m512i sums;
typedef __m512i cells;
typedef __m512i quad;

INLINE sums spread(int32_t x)
{
    return _mm512_set1_epi32(x);
}

INLINE cells load(const stapes_cell *x)
{
    return _mm512_loadu_si512(x);
}

INLINE quad weights(int32_t four)
{
    return _mm512_set1_epi32(four);
}

/* sum + x[0] w[0] + x[1] w[1] + x[2] w[2] + x[3] w[3] */
INLINE sums add_products(sums sum, cells x, quad w)
{
    return _mm512_dpbusd_epi32(sum, x, w);
}

#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define GROUPS 1
#define VECTORS 2
typedef __m256i sums;
/* In 16 bits: of the first and the third, and of the second and the fourth channel. */
typedef struct {
    __m256i even, odd;
} cells;
typedef cells quad;

INLINE sums spread(int32_t x)
{
    return _mm256_set1_epi32(x);
}

INLINE cells load(const stapes_cell *x)
{
    const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return (cells){_mm256_and_si256(v, _mm256_set1_epi16(255)), _mm256_srli_epi16(v, 8)};
}

INLINE quad weights(int32_t four)
{
    const __m256i v = _mm256_set1_epi32(four);
    return (quad){_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}

INLINE sums add_products(sums sum, cells x, quad w)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x.even, w.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x.odd, w.odd));
}

#elif defined(__SSE2__)
#include <emmintrin.h>
#define LANES 4
#define GROUPS 1
#define VECTORS 2
typedef __m128i sums;
typedef struct {
    __m128i even, odd;
} cells;
typedef cells quad;

INLINE sums spread(int32_t x)
{
    return _mm_set1_epi32(x);
}

INLINE cells load(const stapes_cell *x)
{
    const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)x);
    return (cells){_mm_and_si128(v, _mm_set1_epi16(255)), _mm_srli_epi16(v, 8)};
}

INLINE quad weights(int32_t four)
{
    const __m128i v = _mm_set1_epi32(four);
    return (quad){_mm_srai_epi16(_mm_slli_epi16(v, 8), 8), _mm_srai_epi16(v, 8)};
}

INLINE sums add_products(sums sum, cells x, quad w)
{
    sum = _mm_add_epi32(sum, _mm_madd_epi16(x.even, w.even));
    return _mm_add_epi32(sum, _mm_madd_epi16(x.odd, w.odd));
}

#else
#define LANES 1
#define GROUPS 1
#define VECTORS 2
typedef int32_t sums;
typedef stapes_cell cells;
typedef struct {
    int8_t weight[4];
} quad;

INLINE sums spread(int32_t x)
{
    return x;
}

INLINE cells load(const stapes_cell *x)
{
    return *x;
}

INLINE quad weights(int32_t four)
{
    quad w;
    memcpy(&w, &four, sizeof w);
    return w;
}

INLINE sums add_products(sums sum, cells x, quad w)
{
    return sum + x.level[0] * w.weight[0] + x.level[1] * w.weight[1] + x.level[2] * w.weight[2] +
           x.level[3] * w.weight[3];
}

#endif

/* --- from sums to levels --- */

#if LANES == 16

/*
 * Of 16 values, in levels above zero, as whole numbers. The product with 1 / scale is quicker than
 * the quotient, and as good unless it is close to half way between two levels.
 */
INLINE __m512 rounded16(__m512 value, float scale, float inverse, int zero)
{
    const __m512 least = _mm512_set1_ps((float)-zero), most = _mm512_set1_ps((float)(255 - zero));
    const __m512 room = _mm512_set1_ps(12582912.0f);
    __m512 x = _mm512_mul_ps(value, _mm512_set1_ps(inverse));

    x = _mm512_min_ps(_mm512_max_ps(x, least), most);
    __m512 whole = _mm512_sub_ps(_mm512_add_ps(x, room), room);
    const __m512 off = _mm512_abs_ps(_mm512_sub_ps(x, whole));
    if (_mm512_cmp_ps_mask(off, _mm512_set1_ps(0.4998f), _CMP_GT_OQ)) {
        x = _mm512_div_ps(value, _mm512_set1_ps(scale));
        x = _mm512_min_ps(_mm512_max_ps(x, least), most);
        whole = _mm512_sub_ps(_mm512_add_ps(x, room), room);
    }
    return whole;
}

INLINE void finish(const stapes_layer *layer, const stapes_run *run, int group, int32_t at,
                   const sums *sum, int apart)
{
    const stapes_map *out = &stapes_maps[layer->out];
    const int32_t left = run->cells - at;
    const __mmask16 mask = (__mmask16)(left >= LANES ? 0xffff : (1 << left) - 1);
    const float *factors = stapes_factors + layer->first_bias + CHANNELS * group;
    const float *biases = stapes_biases + layer->first_bias + CHANNELS * group;
    const float inverse = 1.0f / out->scale;
    __m512i made = _mm512_setzero_si512();

    if (run->shortcut != NULL) {
        const stapes_map *other = &stapes_maps[layer->shortcut];
        const float inside = 1.0f / layer->scale;
        __m512i others =
            _mm512_loadu_si512(run->shortcut + group * run->shortcut_stride + at);
        for (int m = 0; m < CHANNELS; m++) {
            const __m512i byte = _mm512_and_si512(others, _mm512_set1_epi32(255));
            const __m512i level = _mm512_sub_epi32(byte, _mm512_set1_epi32(other->zero));
            const __m512 b =
                _mm512_mul_ps(_mm512_cvtepi32_ps(level), _mm512_set1_ps(other->scale));
            __m512 y = _mm512_cvtepi32_ps(sum[m * apart]);
            y = _mm512_mul_ps(y, _mm512_set1_ps(factors[m]));
            y = _mm512_add_ps(y, _mm512_set1_ps(biases[m]));
            y = rounded16(y, layer->scale, inside, layer->zero);
            y = _mm512_add_ps(_mm512_mul_ps(y, _mm512_set1_ps(layer->scale)), b);
            y = rounded16(y, out->scale, inverse, out->zero);
            const __m512i whole =
                _mm512_add_epi32(_mm512_cvtps_epi32(y), _mm512_set1_epi32(out->zero));
            made = _mm512_or_si512(_mm512_srli_epi32(made, 8), _mm512_slli_epi32(whole, 24));
            others = _mm512_srli_epi32(others, 8);
        }
    } else {
        for (int m = 0; m < CHANNELS; m++) {
            __m512 y = _mm512_cvtepi32_ps(sum[m * apart]);
            y = _mm512_mul_ps(y, _mm512_set1_ps(factors[m]));
            y = _mm512_add_ps(y, _mm512_set1_ps(biases[m]));
            y = rounded16(y, out->scale, inverse, out->zero);
            const __m512i whole =
                _mm512_add_epi32(_mm512_cvtps_epi32(y), _mm512_set1_epi32(out->zero));
            made = _mm512_or_si512(_mm512_srli_epi32(made, 8), _mm512_slli_epi32(whole, 24));
        }
    }
    _mm512_mask_storeu_epi32(run->y + group * run->y_stride + at, mask, made);
}

#else

/* Write the cells of a group from the sums of its channels, which lie `apart`. */
INLINE void finish(const stapes_layer *layer, const stapes_run *run, int group, int32_t at,
                   const sums *sum, int apart)
{
    const stapes_map *out = &stapes_maps[layer->out];
    const float *factors = stapes_factors + layer->first_bias + CHANNELS * group;
    const float *biases = stapes_biases + layer->first_bias + CHANNELS * group;
    const int32_t left = run->cells - at, count = left < LANES ? left : LANES;
    stapes_cell made[LANES];

    for (int m = 0; m < CHANNELS; m++) {
        int32_t whole[LANES];
        float y[LANES];
        memcpy(whole, sum + m * apart, sizeof whole);
        for (int i = 0; i < LANES; i++) {
            const float product = (float)whole[i] * factors[m];
            y[i] = product + biases[m];
        }
        if (run->shortcut != NULL) {
            const stapes_map *other = &stapes_maps[layer->shortcut];
            const stapes_cell *x = run->shortcut + group * run->shortcut_stride + at;
            for (int i = 0; i < LANES; i++) {
                const float a = rounded(y[i], layer->scale, layer->zero) * layer->scale;
                const float b = (float)(x[i].level[m] - other->zero) * other->scale;
                y[i] = a + b;
            }
        }
        for (int i = 0; i < LANES; i++) {
            made[i].level[m] = level_of(y[i], out->scale, out->zero);
        }
    }
    stapes_cell *y = run->y + group * run->y_stride + at;
    for (int32_t i = 0; i < count; i++) {
        y[i] = made[i];
    }
}

#endif

/* --- sums --- */

INLINE void tile(const stapes_layer *layer, const stapes_run *run, int group, int groups,
                 int32_t at, int vectors)
{
    const int32_t size = layer->in_rows * layer->taps * CHANNELS * 4;
    const int8_t *w = stapes_weights + layer->first_weight + group * size;
    const int32_t *tap = stapes_taps + layer->first_tap;
    const int32_t *starts = stapes_starts + layer->first_bias + CHANNELS * group;
    const stapes_cell *x = run->x + at;
    sums sum[GROUPS * CHANNELS][VECTORS];

    for (int m = 0; m < groups * CHANNELS; m++) {
        for (int v = 0; v < vectors; v++) {
            sum[m][v] = spread(starts[m]);
        }
    }
    for (int row = 0; row < layer->in_rows; row++) {
        for (int k = 0; k < layer->taps; k++) {
            cells in[VECTORS];
            for (int v = 0; v < vectors; v++) {
                in[v] = load(x + tap[k] + v * LANES);
            }
            for (int m = 0; m < groups * CHANNELS; m++) {
                int32_t four;
                memcpy(&four, w + m / CHANNELS * size + m % CHANNELS * 4, sizeof four);
                const quad q = weights(four);
                for (int v = 0; v < vectors; v++) {
                    sum[m][v] = add_products(sum[m][v], in[v], q);
                }
            }
            w += CHANNELS * 4;
        }
        x += layer->in_stride;
    }
    for (int g = 0; g < groups; g++) {
        for (int v = 0; v < vectors; v++) {
            finish(layer, run, group + g, at + v * LANES, &sum[g * CHANNELS][v], VECTORS);
        }
    }
}

INLINE void tiles(const stapes_layer *layer, const stapes_run *run, int32_t at, int vectors)
{
    int group = 0;

    for (; group + GROUPS <= layer->out_rows; group += GROUPS) {
        tile(layer, run, group, GROUPS, at, vectors);
    }
    for (; group < layer->out_rows; group++) {
        tile(layer, run, group, 1, at, vectors);
    }
}

void stapes_convolve(const stapes_layer *layer, const stapes_run *run)
{
    int32_t at = 0;

    while (at < run->cells) {
        const int32_t vectors = (run->cells - at + LANES - 1) / LANES;
        /* Four are better two and two than three and one. */
        if (VECTORS == 3 && vectors >= 3 && vectors != 4) {
            tiles(layer, run, at, VECTORS);
            at += VECTORS * LANES;
        } else if (vectors >= 2) {
            tiles(layer, run, at, 2);
            at += 2 * LANES;
        } else {
            tiles(layer, run, at, 1);
            at += LANES;
        }
    }
}

/* Jumps are in levels, not in cells. */
INLINE void sparse_tile(const stapes_layer *layer, const stapes_run *run, int32_t at, int vectors)
{
    const int8_t *w = stapes_weights + layer->first_weight;
    const uint16_t *jump = stapes_jumps + layer->first_jump;
    const uint16_t *counts = stapes_counts + layer->first_count;
    const int32_t *starts = stapes_starts + layer->first_bias;

    for (int group = 0; group < layer->out_rows; group++) {
        sums sum[CHANNELS][4];
        for (int m = 0; m < CHANNELS; m++) {
            const int8_t *const end = w + *counts++;
            int32_t place = 0;
            for (int v = 0; v < vectors; v++) {
                sum[m][v] = spread(*starts);
            }
            starts++;
            for (; w < end; w++) {
                place += *jump++;
                const stapes_cell *x = run->x + at + place / 4;
#if LANES == 1
                for (int v = 0; v < vectors; v++) {
                    sum[m][v] += x[v].level[place % 4] * *w;
                }
#else
                /* The others are zero. The processors above are little-endian. */
                const quad q = weights((int32_t)((uint32_t)(uint8_t)*w << 8 * (place % 4)));
                for (int v = 0; v < vectors; v++) {
                    sum[m][v] = add_products(sum[m][v], load(x + v * LANES), q);
                }
#endif
            }
        }
        for (int v = 0; v < vectors; v++) {
            finish(layer, run, group, at + v * LANES, &sum[0][v], 4);
        }
    }
}

void stapes_convolve_sparse(const stapes_layer *layer, const stapes_run *run)
{
    int32_t at = 0;

    while (at < run->cells) {
        if (run->cells - at > 3 * LANES) {
            sparse_tile(layer, run, at, 4);
            at += 4 * LANES;
        } else {
            sparse_tile(layer, run, at, 1);
            at += LANES;
        }
    }
}

#endif
