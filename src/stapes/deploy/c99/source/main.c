/*
 * classify [--probabilities] FILE.wav ...
 *
 * Prints the most probable label of each file. With --probabilities: a table of all, with tabs.
 * A file longer than the model's window is cut into windows, whose probabilities are averaged.
 */

#include <stdio.h>
#include <string.h>

#include "stapes.h"
#include "wav.h"

static stapes_state state;
static float samples[STAPES_CHANNELS * STAPES_WINDOW];

/* Read the window at sample `first`; a file shorter than a window is filled up. */
static const char *read_window(wav_file *wav, long first)
{
    const long have = wav->frames < STAPES_WINDOW ? wav->frames : STAPES_WINDOW;
    const char *problem = wav_read(wav, first, have, STAPES_CHANNELS, samples, STAPES_WINDOW);

    for (int channel = 0; problem == NULL && channel < STAPES_CHANNELS; channel++) {
        float *const row = samples + channel * STAPES_WINDOW;
        for (long i = have; i < STAPES_WINDOW; i++) {
            row[i] = STAPES_REPEAT ? row[i - have] : 0;
        }
    }
    return problem;
}

/* Where the window after the one at `first` begins; none: -1. */
static long next_window(long first, long frames)
{
    const long last = frames - STAPES_WINDOW;

    if (STAPES_CROP || first >= last) {
        return -1;
    }
    return first + STAPES_WINDOW_HOP <= last ? first + STAPES_WINDOW_HOP : last;
}

/* The mean over the file's windows. Returns NULL, or what is wrong. */
static const char *classify(wav_file *wav, double *mean)
{
    float probabilities[STAPES_LABELS];
    long first = STAPES_CROP && wav->frames > STAPES_WINDOW ? (wav->frames - STAPES_WINDOW) / 2 : 0;
    int windows = 0;

    for (int i = 0; i < STAPES_LABELS; i++) {
        mean[i] = 0;
    }
    for (; first >= 0; first = next_window(first, wav->frames), windows++) {
        const char *problem = read_window(wav, first);
        if (problem != NULL) {
            return problem;
        }
        stapes_classify(&state, samples, probabilities);
        for (int i = 0; i < STAPES_LABELS; i++) {
            mean[i] += (double)probabilities[i];
        }
    }
    for (int i = 0; i < STAPES_LABELS; i++) {
        mean[i] /= windows;
    }
    return NULL;
}

static void print(const char *path, const double *mean, int all)
{
    int best = 0;

    for (int i = 1; i < STAPES_LABELS; i++) {
        best = mean[i] > mean[best] ? i : best;
    }
    if (!all) {
        printf("%s: %s %.4f\n", path, stapes_labels[best], mean[best]);
        return;
    }
    printf("%s", path);
    for (int i = 0; i < STAPES_LABELS; i++) {
        printf("\t%.9g", mean[i]);
    }
    printf("\n");
}

int main(int count, char **arguments)
{
    const int all = count > 1 && strcmp(arguments[1], "--probabilities") == 0;
    int status = 0;

    if (count < 2 + all) {
        fprintf(stderr, "usage: %s [--probabilities] FILE.wav ...\n",
                count > 0 ? arguments[0] : "classify");
        return 1;
    }
    if (all) {
        printf("file");
        for (int i = 0; i < STAPES_LABELS; i++) {
            printf("\t%s", stapes_labels[i]);
        }
        printf("\n");
    }
    for (int i = 1 + all; i < count; i++) {
        wav_file wav;
        double mean[STAPES_LABELS];
        const char *problem = wav_open(&wav, arguments[i]);
        if (problem == NULL && wav.sample_rate != STAPES_SAMPLE_RATE) {
            fprintf(stderr, "%s: has %ld Hz and the model listens at %d Hz; convert it first.\n",
                    arguments[i], wav.sample_rate, STAPES_SAMPLE_RATE);
            status = 1;
        } else {
            problem = problem == NULL ? classify(&wav, mean) : problem;
            if (problem == NULL) {
                print(arguments[i], mean, all);
            } else {
                fprintf(stderr, "%s: %s.\n", arguments[i], problem);
                status = 1;
            }
        }
        wav_close(&wav);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "The result cannot be written; check the disk.\n");
        status = 1;
    }
    return status;
}
