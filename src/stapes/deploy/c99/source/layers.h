/* Descriptions of maps and layers, and what network.c asks of the convolutions. */

#ifndef STAPES_LAYERS_H
#define STAPES_LAYERS_H

#include "network.h"

/*
 * A map: what one layer writes and others read, or rather those of its columns that are still
 * needed. Row after row; in a row, column after column; of a column, its bins and a cell or so
 * behind them. Where a convolution looks beyond the bins, these cells are zeros, which serve as
 * those in front of the next column or row as well, so that it runs along a row as if that were
 * one long line:
 *
 *   (0) b b b b b 0 b b b b b 0 b b b b b 0
 *       '-- pitch --'
 */
typedef struct {
    int32_t offset;   /* of the first bin, in stapes_network.cells behind the lead */
    int32_t stride;   /* cells from row to row */
    uint16_t rows;
    uint16_t bins;
    uint16_t pitch;   /* cells of a column */
    uint8_t gap;      /* how many of the cells behind a column's bins are to be zeros */
    uint8_t margin;   /* columns of zeros before the first and behind the last column */
    int32_t columns;  /* in all, without the margins */
    float scale;      /* int8: of one level */
    uint8_t zero;     /* int8: the level that stands for zero */
} stapes_map;

enum { STAPES_CONVOLUTION, STAPES_SPARSE, STAPES_POOL, STAPES_MEAN };

#define STAPES_NONE 255

typedef struct {
    uint8_t kind;
    uint8_t in, out;    /* maps */
    uint8_t shortcut;   /* map that is added to the sums, or STAPES_NONE */
    uint8_t relu;
    uint8_t reach;      /* columns that are read for one column of the output */
    uint8_t lead;       /* how many of them lie before the output's own place */
    uint8_t step;       /* columns of the input per column of the output */
    int32_t columns;    /* that it makes in all */
    uint8_t padding;    /* cells in front of its own place at which an output begins to read */
    uint8_t taps;
    uint16_t batch;     /* columns that are worth a call; fewer only at the end */
    uint8_t zero;       /* int8, with a shortcut: of the levels that are added to the shortcut */
    float scale;
    uint16_t in_rows;   /* times taps, the cells that make one sum */
    uint16_t out_rows;
    int32_t in_stride;  /* cells from one in_row to the next */

    /* Where its numbers begin in the tables below. */
    int32_t first_tap;    /* [taps] cells from the first one that is read */
    int32_t first_weight;
    int32_t first_bias;   /* [output channels] */
    int32_t first_count;  /* sparse: [output channels] weights that are stored */
    int32_t first_jump;   /* sparse: of each weight, from the place of the one before */
} stapes_layer;

/*
 * In model.c. The first map is the stem's input.
 *
 * Weights, float32: groups of 8 output channels, then of 4, 2 and 1 for the rest; in a group
 * [in_rows][taps][8]. int8: groups of 4 output channels, [in_rows][taps][4][4 input channels].
 * Sparse: those that are not zero, one output channel after the other, in the order of the places
 * that they are for.
 */
extern const stapes_map stapes_maps[STAPES_MAPS];
extern const stapes_layer stapes_layers[STAPES_LAYERS];
extern const int32_t stapes_taps[];
extern const float stapes_biases[];
extern const uint16_t stapes_counts[];
extern const uint16_t stapes_jumps[];
#if STAPES_INT8
extern const int8_t stapes_weights[];
extern const int32_t stapes_starts[]; /* of the sums: what the zeros of the input take away */
extern const float stapes_factors[];  /* what one unit of a sum stands for */
#else
extern const float stapes_weights[];
#endif
/* [STAPES_LABELS][channels]; the mean over the feature map's places is in it. */
extern const float stapes_head[STAPES_LABELS * STAPES_FEATURES];
extern const float stapes_head_bias[STAPES_LABELS];

/*
 * A run of `cells` outputs in a line, for all output channels.
 *
 * x, y, shortcut: the first cells in the first rows; shortcut may be null.
 * Reads up to 15 cells more than it needs, but writes none.
 */
typedef struct {
    const stapes_cell *x;
    const stapes_cell *shortcut;
    stapes_cell *y;
    int32_t y_stride;
    int32_t shortcut_stride;
    int32_t cells;
} stapes_run;

#if STAPES_INT8
/* Of each value the nearest level, half to even, 0 ... 255. */
void stapes_quantise(const float *values, uint8_t *levels, int count, float scale, int zero);
#endif

void stapes_convolve(const stapes_layer *layer, const stapes_run *run);
void stapes_convolve_sparse(const stapes_layer *layer, const stapes_run *run);

#endif
