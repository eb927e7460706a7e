/*
 * The front ends log_mel and perceptual_mel:
 *
 *   frame     STAPES_N_FFT samples around sample t * STAPES_HOP, mirrored at the window's ends
 *   taper     periodic Hann window of STAPES_WIN_LENGTH in the middle of the frame; it is
 *             transformed from the frame's start, which turns the phase only
 *   power     squared magnitude of the Fourier transform
 *   log_mel          bands = filters * power, then the logarithm of each band
 *   perceptual_mel   the logarithm of each power, then bands = filters * logarithms
 *   scale     A-weighting, the unit of the logarithm and the normalisation are one factor and one
 *             summand for each channel and band: stapes_scale, stapes_shift
 *
 * STAPES_LANES frames are worked on side by side.
 */

#include "frontend.h"

#include <stdint.h>
#include <string.h>

#define COLUMN (STAPES_CHANNELS * STAPES_BINS)

/* Samples between a frame's first tapered sample and its middle. */
#define BEFORE (STAPES_N_FFT / 2 - (STAPES_N_FFT - STAPES_WIN_LENGTH) / 2)

/* Where sample `i` of a frame goes. */
static inline int place(int i)
{
#if STAPES_N_FFT % 2 == 0
    /* A real series of even length: even samples as real parts, odd ones as imaginary parts. */
    return i % 2 * STAPES_POINTS + i / 2;
#else
    return i;
#endif
}

/* Sample `i` of a window that goes on beyond its ends as in a mirror, again and again. */
static float mirrored(const float *samples, int i)
{
#if STAPES_WINDOW == 1
    (void)i;
    return samples[0];
#else
    const int period = 2 * (STAPES_WINDOW - 1);
    i %= period;
    i += i < 0 ? period : 0;
    return samples[i < STAPES_WINDOW ? i : period - i];
#endif
}

/* Frames first, first + 1 ..., tapered; the window's last frame again in place of any behind it. */
static void take_frames(stapes_lanes *work, const float *samples, int first)
{
    const int start = first * STAPES_HOP - BEFORE;
    const int end = start + (STAPES_LANES - 1) * STAPES_HOP + STAPES_WIN_LENGTH;

    if (start >= 0 && end <= STAPES_WINDOW) {
        const float *x = samples + start;
        for (int i = 0; i < STAPES_WIN_LENGTH; i++) {
            stapes_lanes value;
            for (int l = 0; l < STAPES_LANES; l++) {
                STAPES_LANE(value, l) = (stapes_real)x[i + l * STAPES_HOP];
            }
            work[place(i)] = stapes_taper[i] * value;
        }
    } else {
        for (int l = 0; l < STAPES_LANES; l++) {
            const int frame = first + l < STAPES_FRAMES ? first + l : STAPES_FRAMES - 1;
            for (int i = 0; i < STAPES_WIN_LENGTH; i++) {
                const float x = mirrored(samples, frame * STAPES_HOP - BEFORE + i);
                STAPES_LANE(work[place(i)], l) = stapes_taper[i] * (stapes_real)x;
            }
        }
    }
    const stapes_lanes zero = {0};
    for (int i = STAPES_WIN_LENGTH; i < STAPES_N_FFT; i++) {
        work[place(i)] = zero;
    }
#if STAPES_N_FFT % 2
    for (int i = 0; i < STAPES_POINTS; i++) {
        work[STAPES_POINTS + i] = zero;
    }
#endif
}

/* The power spectra of frames first, first + 1 ...; they lie in the state until the next call. */
static stapes_lanes *take_powers(stapes_frontend *state, const float *samples, int first)
{
    take_frames(state->work[0], samples, first);
    const stapes_lanes *const z = stapes_fft(state->work[0], state->work[1]);
    const stapes_lanes *const zi = z + STAPES_POINTS;
    stapes_lanes *const power = state->work[z == state->work[0]];

#if STAPES_N_FFT % 2 == 0
    /*
     * z is the transform of even + i odd samples. Symmetry takes the two apart, and the last step
     * of the transform joins them again:
     *
     *   even[k] = (z[k] + z*[n - k]) / 2      odd[k] = (z[k] - z*[n - k]) / 2i
     *   x[k] = even[k] + turn(k) odd[k]       x[n - k] = (even[k] - turn(k) odd[k])*
     */
    const stapes_real half = (stapes_real)0.5;
    const stapes_lanes sum = z[0] + zi[0], difference = z[0] - zi[0];
    power[0] = sum * sum;
    power[STAPES_POINTS] = difference * difference;
    for (int k = 1; k <= STAPES_POINTS / 2; k++) {
        const int mirror = STAPES_POINTS - k;
        const stapes_turn w = stapes_turn_of(k);
        const stapes_lanes even_re = half * (z[k] + z[mirror]);
        const stapes_lanes even_im = half * (zi[k] - zi[mirror]);
        const stapes_lanes odd_re = half * (zi[k] + zi[mirror]);
        const stapes_lanes odd_im = half * (z[mirror] - z[k]);
        const stapes_lanes turned_re = odd_re * w.re - odd_im * w.im;
        const stapes_lanes turned_im = odd_re * w.im + odd_im * w.re;
        const stapes_lanes low_re = even_re + turned_re, low_im = even_im + turned_im;
        const stapes_lanes high_re = even_re - turned_re, high_im = even_im - turned_im;
        power[k] = low_re * low_re + low_im * low_im;
        power[mirror] = high_re * high_re + high_im * high_im;
    }
#else
    for (int k = 0; k < STAPES_POWERS; k++) {
        power[k] = z[k] * z[k] + zi[k] * zi[k];
    }
#endif
    return power;
}

/* A band of a spectrum: the weighted sum of its bins. */
static inline void sum_band(const stapes_lanes *bins, const float *weights, int size,
                            stapes_lanes *sum)
{
    /* Two sums side by side: an addition need not wait for the one before. */
    stapes_lanes even = {0}, odd = {0};

    for (int k = 0; k + 1 < size; k += 2) {
        even += (stapes_real)weights[k] * bins[k];
        odd += (stapes_real)weights[k + 1] * bins[k + 1];
    }
    if (size % 2) {
        even += (stapes_real)weights[size - 1] * bins[size - 1];
    }
    *sum = even + odd;
}

#if STAPES_RELATIVE_FLOOR
/* The largest power of a channel: of a bin, or of a band where the bands are limited. */
static stapes_real loudest(stapes_frontend *state, const float *samples)
{
    stapes_real most = 0;

    for (int first = 0; first < STAPES_FRAMES; first += STAPES_LANES) {
        const stapes_lanes *powers = take_powers(state, samples, first);
#if STAPES_PERCEPTUAL
        const int count = STAPES_POWERS;
#else
        const int count = STAPES_BINS;
        const float *weights = stapes_band_weights;
#endif
        for (int i = 0; i < count; i++) {
#if STAPES_PERCEPTUAL
            const stapes_lanes power = powers[i];
#else
            stapes_lanes power;
            sum_band(powers + stapes_band_low[i], weights, stapes_band_size[i], &power);
            weights += stapes_band_size[i];
#endif
            for (int l = 0; l < STAPES_LANES; l++) {
                most = STAPES_LANE(power, l) > most ? STAPES_LANE(power, l) : most;
            }
        }
    }
    return most;
}
#endif

void stapes_frontend_begin(stapes_frontend *state, const float *samples)
{
    for (int channel = 0; channel < STAPES_CHANNELS; channel++) {
        state->least[channel] = STAPES_FLOOR;
#if STAPES_RELATIVE_FLOOR
        const stapes_real most = loudest(state, samples + channel * STAPES_WINDOW);
        const float relative = (float)most * STAPES_RANGE;
        if (relative > STAPES_FLOOR) {
            state->least[channel] = relative;
        }
#else
        (void)samples;
#endif
    }
}

/*
 * The natural logarithm of a normal number above 0, in operations that a compiler makes vectors of,
 * which a call of logf is not. With x = m 2^e, m within a factor of sqrt(2) around 1:
 *
 *   log x = e log 2 + 2 artanh s,    s = (m - 1) / (m + 1),   |s| < 0.172
 *
 * The first term of artanh's series that is left out, s^11 / 11, is below the rounding.
 */
static inline float natural_log(float x)
{
    const uint32_t one = 0x3f800000, low = 0x3f3504f3; /* 1 and sqrt(1/2) as bits */
    uint32_t bits;
    float m;

    memcpy(&bits, &x, sizeof bits);
    bits += one - low;
    const float e = (float)((int32_t)(bits >> 23) - 127);
    bits = (bits & 0x007fffff) + low;
    memcpy(&m, &bits, sizeof m);
    const float s = (m - 1.0f) / (m + 1.0f), square = s * s;
    const float series =
        2.0f + square * (2.0f / 3 + square * (2.0f / 5 + square * (2.0f / 7 + square * (2.0f / 9))));
    return e * 0.693147181f + s * series;
}

/* The natural logarithm of a power, limited or with an offset. */
static inline float level(float power, float least)
{
#if STAPES_OFFSET
    return natural_log(power + least);
#else
    return natural_log(power > least ? power : least);
#endif
}

void stapes_frontend_frames(stapes_frontend *state, const float *samples, int first, int count,
                            float *columns)
{
    for (int channel = 0; channel < STAPES_CHANNELS; channel++) {
        const float least = state->least[channel];
        stapes_lanes *const bins = take_powers(state, samples + channel * STAPES_WINDOW, first);
        const float *weights = stapes_band_weights;
        const float *const scale = stapes_scale + channel * STAPES_BINS;
        const float *const shift = stapes_shift + channel * STAPES_BINS;

#if STAPES_PERCEPTUAL
        for (int k = 0; k < STAPES_POWERS; k++) {
            for (int l = 0; l < STAPES_LANES; l++) {
                const float power = (float)STAPES_LANE(bins[k], l);
                STAPES_LANE(bins[k], l) = (stapes_real)level(power, least);
            }
        }
#endif
        for (int band = 0; band < STAPES_BINS; band++) {
            stapes_lanes sum;
            sum_band(bins + stapes_band_low[band], weights, stapes_band_size[band], &sum);
            weights += stapes_band_size[band];
            for (int l = 0; l < count; l++) {
                columns[l * COLUMN + channel * STAPES_BINS + band] = (float)STAPES_LANE(sum, l);
            }
        }
        for (int l = 0; l < count; l++) {
            float *const rows = columns + l * COLUMN + channel * STAPES_BINS;
            for (int band = 0; band < STAPES_BINS; band++) {
#if STAPES_PERCEPTUAL
                const float value = rows[band];
#else
                const float value = level(rows[band], least);
#endif
                rows[band] = value * scale[band] + shift[band];
            }
        }
    }
}
