/* CP-ResNet on a spectrogram that arrives a few columns at a time. */

#ifndef STAPES_NETWORK_H
#define STAPES_NETWORK_H

#include <stdint.h>

#include "model.h"

/*
 * What a map is made of. Both have four bytes, so that maps lie in memory in the same way:
 *
 *   float32   one value; a row is a channel
 *   int8      the levels of four channels at one place; a row is four channels
 */
#if STAPES_INT8
typedef struct {
    uint8_t level[4];
} stapes_cell;
#else
typedef float stapes_cell;
#endif

#if STAPES_INT8
typedef int32_t stapes_total; /* in levels */
#else
typedef float stapes_total;
#endif

typedef struct {
    stapes_cell cells[STAPES_CELLS];      /* all maps, where stapes_maps says */
    stapes_total totals[STAPES_FEATURES]; /* sums over the feature map */
    int32_t lead;                         /* cells that are left free in front of the maps */
    int32_t frames;                       /* columns of the spectrogram so far */
    int32_t first[STAPES_MAPS];           /* time of a map's first column that is kept */
    int32_t count[STAPES_MAPS];           /* columns that are kept, zeros included */
    int32_t next[STAPES_LAYERS];          /* column that a layer makes next */
} stapes_network;

/* Start a window. */
void stapes_network_begin(stapes_network *state);

/*
 * Take the next columns of the spectrogram, and compute as far as they allow.
 *
 * columns: [count][STAPES_CHANNELS * STAPES_BINS], channel by channel, normalised.
 * count: any; those of one window add up to STAPES_FRAMES.
 */
void stapes_network_push(stapes_network *state, const float *columns, int count);

/* logits: [STAPES_LABELS], of a window whose STAPES_FRAMES columns have all been pushed. */
void stapes_network_end(const stapes_network *state, float *logits);

#endif
