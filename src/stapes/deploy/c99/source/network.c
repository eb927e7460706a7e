/*
 * Depth first: with every STAPES_CHUNK columns each layer computes what it can and leaves the few
 * columns that it will need again, so that memory does not grow with the window.
 *
 * Times are columns of a map. The zeros that a convolution sees beyond both ends of the window
 * are columns of the map that it reads (stapes_map.margin), at times from -margin on.
 */

#include <string.h>

#include "layers.h"

#define COLUMN (STAPES_CHANNELS * STAPES_BINS)

/*
 * The stem steps by two along both axes. Its input is split by even and odd places, so that it
 * steps by one like all others: place j = i + STEM_PADDING of channel c goes to bin
 * j_frequency / 2 and column j_time / 2 of part k = 2 (j_frequency % 2) + j_time % 2, which is row
 * 4 c + k, or level k in row c. Of the last column, only the even parts need be there.
 */
#define STEM_PADDING 1

static stapes_cell *cell(stapes_network *state, int map, int row, int32_t time, int position)
{
    const stapes_map *m = &stapes_maps[map];
    return state->cells + state->lead + m->offset + row * m->stride +
           (time - state->first[map]) * m->pitch + position;
}

/* Columns of a map that are zero, from `time` on. */
static void clear(stapes_network *state, int map, int32_t time, int32_t count)
{
    const stapes_map *m = &stapes_maps[map];
    const size_t size = (size_t)(count * m->pitch) * sizeof(stapes_cell);

    for (int row = 0; row < m->rows; row++) {
        memset(cell(state, map, row, time, 0), m->zero, size);
    }
}

/* The zeros behind columns, which a long run has overwritten. */
static void clear_gaps(stapes_network *state, int map, int32_t time, int32_t count)
{
    const stapes_map *m = &stapes_maps[map];
    stapes_cell zero;

    if (m->gap == 0) {
        return;
    }
    memset(&zero, m->zero, sizeof zero);
    for (int row = 0; row < m->rows; row++) {
        stapes_cell *gap = cell(state, map, row, time, m->bins);
        for (int32_t i = 0; i < count; i++) {
            for (int k = 0; k < m->gap; k++) {
                gap[k] = zero;
            }
            gap += m->pitch;
        }
    }
}

static void convolve(stapes_network *state, const stapes_layer *layer, int32_t next, int32_t count)
{
    const stapes_map *in = &stapes_maps[layer->in], *out = &stapes_maps[layer->out];
    const int32_t from = next * layer->step - layer->lead;
    const int shortcut = layer->shortcut != STAPES_NONE;
    const int32_t shortcut_pitch = shortcut ? stapes_maps[layer->shortcut].pitch : out->pitch;
    /* Where columns are equally long, they make one line. */
    const int line = in->pitch == out->pitch && shortcut_pitch == out->pitch;
    const int32_t runs = line ? 1 : count;
    stapes_run run;

    run.x = cell(state, layer->in, 0, from, -layer->padding);
    run.y = cell(state, layer->out, 0, next, 0);
    run.y_stride = out->stride;
    run.cells = (line ? count : 1) * out->pitch;
    run.shortcut = NULL;
    run.shortcut_stride = 0;
    if (shortcut) {
        const stapes_map *m = &stapes_maps[layer->shortcut];
        run.shortcut = cell(state, layer->shortcut, 0, next, 0);
        run.shortcut_stride = m->stride;
    }
    for (int32_t i = 0; i < runs; i++) {
        if (layer->kind == STAPES_SPARSE) {
            stapes_convolve_sparse(layer, &run);
        } else {
            stapes_convolve(layer, &run);
        }
        run.x += in->pitch;
        run.y += out->pitch;
        if (shortcut) {
            run.shortcut += shortcut_pitch;
        }
    }
    clear_gaps(state, layer->out, next, count);
}

/* The largest of 2 x 2; an odd bin or column at the end is left out. */
static void pool(stapes_network *state, const stapes_layer *layer, int32_t next, int32_t count)
{
    const stapes_map *in = &stapes_maps[layer->in], *out = &stapes_maps[layer->out];
    /* Whole columns, zeros included, suit vectors better. */
    const int cells = in->pitch == 2 * out->pitch ? out->pitch : out->bins;

    for (int row = 0; row < out->rows; row++) {
        for (int32_t i = next; i < next + count; i++) {
            const stapes_cell *restrict a = cell(state, layer->in, row, 2 * i, 0);
            const stapes_cell *restrict b = a + in->pitch;
            stapes_cell *restrict y = cell(state, layer->out, row, i, 0);
            for (int k = 0; k < cells; k++) {
#if STAPES_INT8
                for (int m = 0; m < 4; m++) {
                    const uint8_t left = a[2 * k].level[m] > b[2 * k].level[m]
                                             ? a[2 * k].level[m]
                                             : b[2 * k].level[m];
                    const uint8_t right = a[2 * k + 1].level[m] > b[2 * k + 1].level[m]
                                              ? a[2 * k + 1].level[m]
                                              : b[2 * k + 1].level[m];
                    y[k].level[m] = left > right ? left : right;
                }
#else
                const float left = a[2 * k] > b[2 * k] ? a[2 * k] : b[2 * k];
                const float right = a[2 * k + 1] > b[2 * k + 1] ? a[2 * k + 1] : b[2 * k + 1];
                y[k] = left > right ? left : right;
#endif
            }
        }
    }
    clear_gaps(state, layer->out, next, count);
}

/* Add to the totals over the feature map. */
static void sum_up(stapes_network *state, const stapes_layer *layer, int32_t next, int32_t count)
{
    const stapes_map *in = &stapes_maps[layer->in];

    for (int row = 0; row < in->rows; row++) {
        for (int32_t i = next; i < next + count; i++) {
            const stapes_cell *x = cell(state, layer->in, row, i, 0);
#if STAPES_INT8
            for (int bin = 0; bin < in->bins; bin++) {
                for (int k = 0; k < 4; k++) {
                    state->totals[4 * row + k] += x[bin].level[k];
                }
            }
#else
            float sum = 0;
            for (int bin = 0; bin < in->bins; bin++) {
                sum += x[bin];
            }
            state->totals[row] += sum;
#endif
        }
    }
}

/* Columns that a layer can make now. */
static int32_t ready(const stapes_network *state, const stapes_layer *layer, int32_t next)
{
    const int32_t total = layer->columns;
    const int32_t end = state->first[layer->in] + state->count[layer->in];
    int32_t last = (end + layer->lead - layer->reach + layer->step) / layer->step;

    last = last < total ? last : total;
    return last - next >= layer->batch || last == total ? last - next : 0;
}

/* Forget what no layer needs again, and move the rest to the front. */
static void compact(stapes_network *state)
{
    int32_t needed[STAPES_MAPS];

    for (int map = 0; map < STAPES_MAPS; map++) {
        needed[map] = state->first[map] + state->count[map];
    }
    for (int i = 0; i < STAPES_LAYERS; i++) {
        const stapes_layer *layer = &stapes_layers[i];
        const int32_t from = state->next[i] * layer->step - layer->lead;
        if (from < needed[layer->in]) {
            needed[layer->in] = from;
        }
        if (layer->shortcut != STAPES_NONE && state->next[i] < needed[layer->shortcut]) {
            needed[layer->shortcut] = state->next[i];
        }
    }
    for (int map = 0; map < STAPES_MAPS; map++) {
        const stapes_map *m = &stapes_maps[map];
        const int32_t dropped = needed[map] - state->first[map];
        const int32_t kept = state->count[map] - dropped;
        if (dropped > 0 && kept > 0) {
            for (int row = 0; row < m->rows; row++) {
                memmove(cell(state, map, row, state->first[map], 0),
                        cell(state, map, row, needed[map], 0),
                        (size_t)(kept * m->pitch) * sizeof(stapes_cell));
            }
        }
        state->first[map] += dropped;
        state->count[map] = kept;
    }
}

static void compute(stapes_network *state)
{
    for (int i = 0; i < STAPES_LAYERS; i++) {
        const stapes_layer *layer = &stapes_layers[i];
        const int32_t next = state->next[i];
        const int32_t count = ready(state, layer, next);
        if (count <= 0) {
            continue;
        }
        state->next[i] += count;
        if (layer->kind == STAPES_MEAN) {
            sum_up(state, layer, next, count);
            continue;
        }
        if (layer->kind == STAPES_POOL) {
            pool(state, layer, next, count);
        } else {
            convolve(state, layer, next, count);
        }
        state->count[layer->out] += count;
        if (state->next[i] == layer->columns) {
            const int margin = stapes_maps[layer->out].margin;
            clear(state, layer->out, layer->columns, margin);
            state->count[layer->out] += margin;
        }
    }
    compact(state);
}

void stapes_network_begin(stapes_network *state)
{
    memset(state, 0, sizeof *state);
    /* Maps begin where a vector does. */
    state->lead = (int32_t)((0 - (uintptr_t)state->cells) % STAPES_ALIGNMENT / sizeof(stapes_cell));
    for (int map = 0; map < STAPES_MAPS; map++) {
        const stapes_map *m = &stapes_maps[map];
        memset(state->cells + state->lead + m->offset - m->gap, m->zero,
               (size_t)(m->gap + m->rows * m->stride) * sizeof(stapes_cell));
        state->first[map] = -m->margin;
        state->count[map] = m->margin;
    }
    state->count[0] = 1; /* of the zeros before the first column, which is the odd half of it */
}

/* Put a column of the spectrogram where the stem reads it. */
static void split(stapes_network *state, const float *column)
{
    const int32_t time = state->frames + STEM_PADDING;

    for (int channel = 0; channel < STAPES_CHANNELS; channel++) {
        const float *values = column + channel * STAPES_BINS;
#if STAPES_INT8
        uint8_t levels[STAPES_BINS];
        stapes_quantise(values, levels, STAPES_BINS, stapes_maps[0].scale, stapes_maps[0].zero);
        stapes_cell *first = cell(state, 0, channel, time / 2, 0);
#else
        stapes_cell *first = cell(state, 0, 4 * channel + time % 2, time / 2, 0);
        const int32_t odd = 2 * stapes_maps[0].stride;
#endif
        for (int bin = 0; bin < STAPES_BINS; bin++) {
            const int place = bin + STEM_PADDING;
#if STAPES_INT8
            first[place / 2].level[2 * (place % 2) + time % 2] = levels[bin];
#else
            first[place % 2 * odd + place / 2] = values[bin];
#endif
        }
    }
    state->count[0] = time / 2 + 1 - state->first[0];
    state->frames++;
}

/* The zeros behind the last column, where the stem reads them: in an even place. */
static void end(stapes_network *state)
{
    const int32_t time = STAPES_FRAMES + STEM_PADDING;

    if (time % 2 == 0) {
        clear(state, 0, time / 2, 1);
        state->count[0]++;
    }
}

void stapes_network_push(stapes_network *state, const float *columns, int count)
{
    for (int i = 0; i < count && state->frames < STAPES_FRAMES; i++) {
        split(state, columns + i * COLUMN);
        if (state->frames == STAPES_FRAMES) {
            end(state);
        } else if (state->frames % STAPES_CHUNK != 0) {
            continue;
        }
        compute(state);
    }
}

void stapes_network_end(const stapes_network *state, float *logits)
{
    for (int label = 0; label < STAPES_LABELS; label++) {
        const float *weights = stapes_head + label * STAPES_FEATURES;
        float sum = 0;
        for (int i = 0; i < STAPES_FEATURES; i++) {
            sum += weights[i] * (float)state->totals[i];
        }
        logits[label] = sum + stapes_head_bias[label];
    }
}
