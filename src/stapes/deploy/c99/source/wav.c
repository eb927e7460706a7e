#include "wav.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_CHANNELS 256
#define BLOCK 16384 /* bytes read at once */

/* Larger values are damage: squared and summed up they would overflow. */
#define MAX_AMPLITUDE 1e12

#define PCM 1
#define FLOAT 3
#define EXTENSIBLE 0xfffe

#define DAMAGED "its header is damaged; write the file again"
#define UNREADABLE "cannot be read to its end; copy it again"

static uint32_t little(const unsigned char *bytes, int count)
{
    uint32_t value = 0;

    for (int i = count - 1; i >= 0; i--) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static const char *read_format(wav_file *wav, uint32_t size)
{
    /* The end of the identifier of each kind of samples in an extensible header. */
    static const unsigned char common[14] = {0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38,
                                             0x9b, 0x71};
    unsigned char format[40] = {0};
    const size_t wanted = size < sizeof format ? size : sizeof format;

    if (size < 16 || fread(format, 1, wanted, wav->file) != wanted) {
        return DAMAGED;
    }
    uint32_t kind = little(format, 2);
    const uint32_t channels = little(format + 2, 2), rate = little(format + 4, 4);
    const uint32_t frame = little(format + 12, 2), bits = little(format + 14, 2);
    if (kind == EXTENSIBLE) {
        if (size < 40 || memcmp(format + 26, common, sizeof common) != 0) {
            return "its samples are of an unknown kind; convert them to 16-bit PCM";
        }
        kind = little(format + 24, 2);
    }
    if (kind != PCM && kind != FLOAT) {
        return "its samples are compressed; convert them to 16-bit PCM";
    }
    if (channels < 1 || channels > MAX_CHANNELS || rate < 1 || rate > INT32_MAX || bits < 1) {
        return DAMAGED;
    }
    wav->channels = (int)channels;
    wav->sample_rate = (long)rate;
    wav->bytes = (int)((bits + 7) / 8);
    wav->is_float = kind == FLOAT;
    if ((wav->is_float ? bits != 32 && bits != 64 : bits > 32) ||
        frame != channels * (uint32_t)wav->bytes) {
        return "its samples have an unusual size; convert them to 16-bit PCM";
    }
    return NULL;
}

static const char *read_header(wav_file *wav)
{
    unsigned char head[12];
    int have_format = 0;

    if (fseek(wav->file, 0, SEEK_END) != 0) {
        return "is not a regular file; save the recording to disk first";
    }
    const long end = ftell(wav->file);
    if (end < 0 || fseek(wav->file, 0, SEEK_SET) != 0) {
        return "is larger than can be read here; cut it";
    }
    if (fread(head, 1, 12, wav->file) != 12 || memcmp(head, "RIFF", 4) != 0 ||
        memcmp(head + 8, "WAVE", 4) != 0) {
        return "is no wav file";
    }
    for (;;) {
        if (fread(head, 1, 8, wav->file) != 8) {
            return "holds no samples; record it again";
        }
        const uint32_t size = little(head + 4, 4);
        const long position = ftell(wav->file);
        if (memcmp(head, "data", 4) == 0) {
            if (!have_format) {
                return DAMAGED;
            }
            /* The stated size is that of a file that was closed well, or far too large. */
            const long there = end - position;
            const long bytes = size < (unsigned long)there ? (long)size : there;
            wav->start = position;
            wav->frames = bytes / (wav->channels * wav->bytes);
            return wav->frames < 1 ? "holds no samples; record it again" : NULL;
        }
        if (memcmp(head, "fmt ", 4) == 0) {
            const char *problem = read_format(wav, size);
            if (problem != NULL) {
                return problem;
            }
            have_format = 1;
        }
        /* Chunks begin at even places. */
        if (size >= (unsigned long)(end - position) ||
            fseek(wav->file, position + (long)size + (long)(size & 1), SEEK_SET) != 0) {
            return "holds no samples; record it again";
        }
    }
}

const char *wav_open(wav_file *wav, const char *path)
{
    memset(wav, 0, sizeof *wav);
    wav->file = fopen(path, "rb");
    if (wav->file == NULL) {
        return "cannot be opened; check the name";
    }
    const char *problem = read_header(wav);
    if (problem != NULL) {
        wav_close(wav);
    }
    return problem;
}

void wav_close(wav_file *wav)
{
    if (wav->file != NULL) {
        fclose(wav->file);
        wav->file = NULL;
    }
}

/* One sample; not a number where it is none or absurdly large. */
static inline float decode(const wav_file *wav, const unsigned char *bytes)
{
    if (wav->is_float) {
        double value;
        if (wav->bytes == 4) {
            const uint32_t bits = little(bytes, 4);
            float single;
            memcpy(&single, &bits, sizeof single);
            value = (double)single;
        } else {
            const uint64_t bits = (uint64_t)little(bytes + 4, 4) << 32 | little(bytes, 4);
            memcpy(&value, &bits, sizeof value);
        }
        return fabs(value) <= MAX_AMPLITUDE ? (float)value : NAN;
    }
    uint32_t bits = 0; /* at the top, where the highest one is the sign */
    switch (wav->bytes) {
    case 1:
        return ((float)bytes[0] - 128.0f) / 128.0f;
    case 2:
        bits = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 24;
        break;
    case 3:
        bits = (uint32_t)bytes[0] << 8 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 24;
        break;
    default:
        bits = little(bytes, 4);
    }
    const int64_t value = (int64_t)bits - ((int64_t)(bits >> 31) << 32);
    return (float)value / 2147483648.0f;
}

const char *wav_read(wav_file *wav, long first, long count, int channels, float *planar,
                     long stride)
{
    unsigned char block[BLOCK];
    const long frame = (long)wav->channels * wav->bytes, at_once = BLOCK / frame;
    const float share = (float)(1.0 / wav->channels);

    if (wav->channels != 1 && channels > wav->channels) {
        return "has fewer channels than the model listens to";
    }
    if (first > (LONG_MAX - wav->start) / frame ||
        fseek(wav->file, wav->start + first * frame, SEEK_SET) != 0) {
        return UNREADABLE;
    }
    for (long done = 0; done < count;) {
        const long part = count - done < at_once ? count - done : at_once;
        if (fread(block, (size_t)frame, (size_t)part, wav->file) != (size_t)part) {
            return UNREADABLE;
        }
        for (long i = 0; i < part; i++, done++) {
            const unsigned char *bytes = block + i * frame;
            float mixed = 0;
            for (int c = 0; c < wav->channels; c++) {
                const float sample = decode(wav, bytes + c * wav->bytes);
                if (isnan(sample)) {
                    return "holds a sample that is not a finite number; write the file again";
                }
                mixed += sample;
                if (c < channels) {
                    planar[c * stride + done] = sample;
                }
            }
            if (channels == 1) {
                planar[done] = wav->channels == 1 ? mixed : mixed * share;
            }
            for (int c = wav->channels; c < channels; c++) {
                planar[c * stride + done] = planar[done];
            }
        }
    }
    return NULL;
}
