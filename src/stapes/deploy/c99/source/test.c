/*
 * Does this compiler and processor give the model's answer? Classifies a made-up sound and compares
 * with what the model gave where it was exported (expected.h).
 */

#include <stdint.h>
#include <stdio.h>

#include "expected.h"
#include "stapes.h"

static stapes_state state;
static float samples[STAPES_CHANNELS * STAPES_WINDOW];

/* Noise that is loud and faint in turn: the same bits everywhere. */
static float made_up(uint32_t i)
{
    uint32_t x = i * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    x = (x ^ x >> 13) >> 8;
    const float loudness = i / 1024 % 2 ? 0.25f : 0.0078125f;
    return ((float)x / 8388608.0f - 1.0f) * loudness;
}

int main(void)
{
    float probabilities[STAPES_LABELS], most = 0;
    int right = 1;

    for (uint32_t i = 0; i < STAPES_CHANNELS * STAPES_WINDOW; i++) {
        samples[i] = made_up(i);
    }
    stapes_classify(&state, samples, probabilities);
    for (int i = 0; i < STAPES_LABELS; i++) {
        const float difference = probabilities[i] - expected[i];
        const float size = difference < 0 ? -difference : difference;
        right = right && size <= TOLERANCE;
        most = size > most ? size : most;
    }
    printf("largest difference of a probability: %.3g (allowed: %.3g): %s\n", (double)most,
           (double)TOLERANCE, right ? "right" : "WRONG");
    return right ? 0 : 1;
}
