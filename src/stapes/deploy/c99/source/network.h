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

typedef struct {
    stapes_cell cells[STAPES_CELLS];          /* all maps, where stapes_maps says */
    int32_t lead;                             /* cells that are left free in front of them */
    int32_t first[STAPES_MAPS];               /* time of a map's first column that is kept */
    int32_t count[STAPES_MAPS];               /* columns that are kept, zeros included */
    int32_t next[STAPES_LAYERS];              /* column that a layer makes next */
#if STAPES_INT8
    int32_t totals[STAPES_FEATURES];  /* sums over the feature map, in levels */
#else
    float totals[STAPES_FEATURES];
#endif
    int32_t frames;                           /* columns of the spectrogram so far */
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
