/*
 * A sound classifier: one window of samples to the probabilities of its labels.
 *
 * model.h says what the window is (STAPES_SAMPLE_RATE, STAPES_CHANNELS, STAPES_WINDOW), how many
 * labels there are (STAPES_LABELS), and what all this takes (STAPES_RAM_BYTES, STAPES_FLASH_BYTES).
 *
 * Nothing is allocated and no global is written: all that changes is in the state, which the
 * caller places. Two states may be used in two threads at once.
 */

#ifndef STAPES_H
#define STAPES_H

#include "frontend.h"
#include "model.h"
#include "network.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    stapes_frontend frontend;
    float columns[STAPES_COLUMNS];
    stapes_network network;
} stapes_state;

/* What the label of each probability is called, in UTF-8. */
extern const char *const stapes_labels[STAPES_LABELS];

/*
 * Classify a window.
 *
 * state: need not be set before; nothing in it is kept from one window to the next.
 * samples: planar [STAPES_CHANNELS][STAPES_WINDOW], full scale -1 ... 1, finite.
 * probabilities: [STAPES_LABELS], sum to 1.
 */
void stapes_classify(stapes_state *state, const float *samples, float *probabilities);

#ifdef __cplusplus
}
#endif

#endif
