/* Samples of wav files: PCM of 8 to 32 bits, float of 32 and 64 bits, plain or extensible. */

#ifndef STAPES_WAV_H
#define STAPES_WAV_H

#include <stdio.h>

typedef struct {
    FILE *file;
    long start;       /* bytes before the samples */
    long frames;      /* samples of each channel */
    long sample_rate; /* Hz */
    int channels;
    int bytes;        /* of a sample */
    int is_float;
} wav_file;

/* Open a file and read its header. Returns NULL, or what is wrong; then nothing is left open. */
const char *wav_open(wav_file *wav, const char *path);

void wav_close(wav_file *wav);

/*
 * Read samples first ... first + count - 1 of each channel, all of them there, as so many channels:
 * one from many is their mean, many from one are copies, fewer from many are the first ones.
 *
 * planar: channel c, sample i goes to planar[c * stride + i]; full scale -1 ... 1.
 * Returns NULL, or what is wrong.
 */
const char *wav_read(wav_file *wav, long first, long count, int channels, float *planar,
                     long stride);

#endif
