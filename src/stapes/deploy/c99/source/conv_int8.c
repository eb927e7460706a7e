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

/* Output channels in a group of weights, and in a cell. */
#define CHANNELS 4
/* At this size a float has no room for fractions, and adding rounds half to even. */
#define ROOM 12582912.0f

/*
 * --- what the processor has ---
 *
 * LANES          cells that are worked on at once
 * GROUPS         groups of output channels that are summed up side by side, and
 * VECTORS        times LANES cells: as many as there are registers
 * sums, reals    int32 and float, one for each of LANES cells
 * cells          LANES cells, ready for products
 * quad           four weights, for the four channels of a cell
 *
 * add_products   sum + x[0] w[0] + x[1] w[1] + x[2] w[2] + x[3] w[3]
 * limited        x between two bounds
 */

#if !defined(__GNUC__) || defined(STAPES_PLAIN)
#define LANES 1
#define GROUPS 1
#define VECTORS 2
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define LANES 16
#define GROUPS 2
#define VECTORS 3
#elif defined(__AVX2__)
#define LANES 8
#define GROUPS 1
#define VECTORS 2
#elif defined(__SSE2__)
#define LANES 4
#define GROUPS 1
#define VECTORS 2
#else
#define LANES 1
#define GROUPS 1
#define VECTORS 2
#endif

#if LANES > 1
#include <immintrin.h>
typedef int32_t sums __attribute__((vector_size(4 * LANES)));
typedef float reals __attribute__((vector_size(4 * LANES)));
/* LANES cells as 32 bits each; these processors are little-endian. */
typedef uint32_t packed __attribute__((vector_size(4 * LANES)));

INLINE reals to_reals(sums x)
{
    return __builtin_convertvector(x, reals);
}

INLINE packed to_packed(reals x)
{
    return (packed)__builtin_convertvector(x, sums);
}

INLINE sums level(packed x, int channel)
{
    return (sums)(x >> 8 * channel & 255);
}
#else
typedef int32_t sums;
typedef float reals;
typedef stapes_cell packed;
#endif

#if LANES == 16
typedef __m512i cells;
typedef __m512i quad;

INLINE cells load(const stapes_cell *x)
{
    return _mm512_loadu_si512(x);
}

INLINE quad weights(int32_t four)
{
    return _mm512_set1_epi32(four);
}

INLINE sums add_products(sums sum, cells x, quad w)
{
    return (sums)_mm512_dpbusd_epi32((__m512i)sum, x, w);
}

INLINE reals limited(reals x, float least, float most)
{
    return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(least)), _mm512_set1_ps(most));
}

#elif LANES == 8
/* In 16 bits: of the first and the third, and of the second and the fourth channel. */
typedef struct {
    __m256i even, odd;
} cells;
typedef cells quad;

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
    sum += (sums)_mm256_madd_epi16(x.even, w.even);
    return sum + (sums)_mm256_madd_epi16(x.odd, w.odd);
}

INLINE reals limited(reals x, float least, float most)
{
    return _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(least)), _mm256_set1_ps(most));
}

#elif LANES == 4
typedef struct {
    __m128i even, odd;
} cells;
typedef cells quad;

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
    sum += (sums)_mm_madd_epi16(x.even, w.even);
    return sum + (sums)_mm_madd_epi16(x.odd, w.odd);
}

INLINE reals limited(reals x, float least, float most)
{
    return _mm_min_ps(_mm_max_ps(x, _mm_set1_ps(least)), _mm_set1_ps(most));
}

#else
typedef stapes_cell cells;
typedef struct {
    int8_t weight[4];
} quad;

INLINE reals to_reals(sums x)
{
    return (float)x;
}

INLINE sums level(packed x, int channel)
{
    return x.level[channel];
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

INLINE reals limited(reals x, float least, float most)
{
    x = x > least ? x : least;
    return x < most ? x : most;
}
#endif

/* --- from sums to levels --- */

/* Values in levels above zero, as whole numbers. */
INLINE reals rounded(reals value, float scale, int zero)
{
    const float least = (float)-zero, most = (float)(255 - zero);
#if LANES == 16
    /* A product is quicker than a quotient, and as good unless close to half way between levels. */
    reals x = limited(value * (1.0f / scale), least, most);
    reals whole = (x + ROOM) - ROOM;
    if (_mm512_cmp_ps_mask(_mm512_abs_ps(x - whole), _mm512_set1_ps(0.4998f), _CMP_GT_OQ)) {
        whole = (limited(value / scale, least, most) + ROOM) - ROOM;
    }
    return whole;
#else
    return (limited(value / scale, least, most) + ROOM) - ROOM;
#endif
}

/* Write the cells of a group from the sums of its channels, which lie `apart`. */
INLINE void finish(const stapes_layer *layer, const stapes_run *run, int group, int32_t at,
                   const sums *sum, int apart)
{
    const stapes_map *out = &stapes_maps[layer->out];
    const float *factors = stapes_factors + layer->first_bias + CHANNELS * group;
    const float *biases = stapes_biases + layer->first_bias + CHANNELS * group;
    const int32_t left = run->cells - at;
    stapes_cell *y = run->y + group * run->y_stride + at;
    const stapes_map *other = NULL;
    packed others = {0}, made = {0};

    if (run->shortcut != NULL) {
        other = &stapes_maps[layer->shortcut];
        memcpy(&others, run->shortcut + group * run->shortcut_stride + at, sizeof others);
    }
    for (int m = 0; m < CHANNELS; m++) {
        reals x = to_reals(sum[m * apart]) * factors[m];
        x += biases[m];
        if (other != NULL) {
            const reals more = to_reals(level(others, m) - other->zero) * other->scale;
            x = rounded(x, layer->scale, layer->zero) * layer->scale;
            x += more;
        }
        x = rounded(x, out->scale, out->zero) + (float)out->zero;
#if LANES > 1
        made |= to_packed(x) << 8 * m;
#else
        made.level[m] = (uint8_t)x;
#endif
    }
    if (left >= LANES) {
        memcpy(y, &made, sizeof made);
    } else {
        memcpy(y, &made, (size_t)left * sizeof *y);
    }
}

void stapes_quantise(const float *values, uint8_t *levels, int count, float scale, int zero)
{
    const float least = (float)-zero, most = (float)(255 - zero);

    for (int i = 0; i < count; i++) {
        float x = values[i] / scale;
        x = x > least ? x : least;
        x = x < most ? x : most;
        x = (x + ROOM) - ROOM;
        levels[i] = (uint8_t)((int)x + zero);
    }
}

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
            sum[m][v] = starts[m] - (sums){0};
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
                sum[m][v] = *starts - (sums){0};
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
