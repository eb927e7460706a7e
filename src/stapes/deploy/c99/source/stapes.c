/* The whole chain: columns of the spectrogram are made and handed to the network a few at a time. */

#include "stapes.h"

#include <math.h>

/* Does not compile where the state has another size than model.h says. */
typedef char state_has_the_stated_size[sizeof(stapes_state) == STAPES_RAM_BYTES ? 1 : -1];

/* Logits to probabilities, in place. */
static void softmax(float *values)
{
    float most = values[0], sum = 0;

    for (int i = 1; i < STAPES_LABELS; i++) {
        most = values[i] > most ? values[i] : most;
    }
    for (int i = 0; i < STAPES_LABELS; i++) {
        values[i] = expf(values[i] - most);
        sum += values[i];
    }
    for (int i = 0; i < STAPES_LABELS; i++) {
        values[i] /= sum;
    }
}

void stapes_classify(stapes_state *state, const float *samples, float *probabilities)
{
    stapes_frontend_begin(&state->frontend, samples);
    stapes_network_begin(&state->network);
    for (int first = 0; first < STAPES_FRAMES; first += STAPES_LANES) {
        const int left = STAPES_FRAMES - first, count = left < STAPES_LANES ? left : STAPES_LANES;
        stapes_frontend_frames(&state->frontend, samples, first, count, state->columns);
        stapes_network_push(&state->network, state->columns, count);
    }
    stapes_network_end(&state->network, probabilities);
    softmax(probabilities);
}
