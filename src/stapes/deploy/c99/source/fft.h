/* Complex Fourier transform of STAPES_POINTS points, on STAPES_LANES series side by side. */

#ifndef STAPES_FFT_H
#define STAPES_FFT_H

#include "model.h"

/* One number of each series: a vector where the compiler has them (GCC and Clang), else one. */
#if STAPES_LANES == 1
typedef stapes_real stapes_lanes;
#define STAPES_LANE(lanes, l) (lanes)
#else
typedef stapes_real stapes_lanes
    __attribute__((vector_size(STAPES_LANES * STAPES_REAL_BYTES), aligned(STAPES_REAL_BYTES)));
#define STAPES_LANE(lanes, l) ((lanes)[l])
#endif

/* A buffer holds the real parts of all points, then their imaginary parts. */
#define STAPES_FFT_SIZE (2 * STAPES_POINTS)

typedef struct {
    stapes_real re;
    stapes_real im;
} stapes_turn;

/* exp(-2 pi i k / STAPES_N_FFT), 0 <= k < STAPES_N_FFT. */
stapes_turn stapes_turn_of(int k);

/*
 * Transform `a`; `b` is scratch. Returns whichever of the two holds the result, in the natural
 * order: sum over i of x[i] exp(-2 pi i i k / STAPES_POINTS) for k = 0 ... STAPES_POINTS - 1.
 */
stapes_lanes *stapes_fft(stapes_lanes *a, stapes_lanes *b);

#endif
