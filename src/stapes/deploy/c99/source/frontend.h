/* Waveform to normalised spectrogram, a few frames at a time. */

#ifndef STAPES_FRONTEND_H
#define STAPES_FRONTEND_H

#include "fft.h"

typedef struct {
    stapes_lanes work[2][STAPES_FFT_SIZE];
    float least[STAPES_FLOORS]; /* power of the floor, by channel */
} stapes_frontend;

/*
 * Start a window. Where the floor is relative to the loudest value (STAPES_RELATIVE_FLOOR), this
 * goes through the whole window once to find that value.
 *
 * samples: planar [STAPES_CHANNELS][STAPES_WINDOW], full scale -1 ... 1, finite.
 */
void stapes_frontend_begin(stapes_frontend *state, const float *samples);

/*
 * Columns first ... first + count - 1 of the window's spectrogram.
 *
 * count: 1 ... STAPES_LANES; first + count <= STAPES_FRAMES.
 * columns: [count][STAPES_CHANNELS * STAPES_BINS], channel by channel, normalised.
 */
void stapes_frontend_frames(stapes_frontend *state, const float *samples, int first, int count,
                            float *columns);

#endif
