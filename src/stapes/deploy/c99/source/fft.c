/*
 * Stockham's self-sorting FFT with the radices 8, 4, 2, 3, 5 and any other prime.
 *
 * Each pass takes the length n = r m of the transforms still to be done down to m. It reads r
 * points that lie m apart, transforms them, turns result k by exp(-2 pi i k p / n), and writes
 * the r results next to each other, so that no reordering is left at the end:
 *
 *   y[q + s (r p + k)] = turn(k p s) * sum over j of x[q + s (p + m j)] exp(-2 pi i j k / r)
 *
 *   p = 0 ... m - 1       place in the transform
 *   q = 0 ... s - 1       which of the s interleaved transforms
 *
 * It takes about STAPES_POINTS times the sum of the radices multiplications: a large prime factor
 * of n_fft is slow, but right.
 */

#include "fft.h"

/* A full circle of this transform's points, in steps of stapes_turn_of. */
#define STEP (STAPES_N_FFT / STAPES_POINTS)

typedef struct {
    stapes_lanes re;
    stapes_lanes im;
} point;

static inline point get(const stapes_lanes *x, int at)
{
    return (point){x[at], x[STAPES_POINTS + at]};
}

static inline void put(stapes_lanes *y, int at, point a)
{
    y[at] = a.re;
    y[STAPES_POINTS + at] = a.im;
}

static inline point add(point a, point b)
{
    return (point){a.re + b.re, a.im + b.im};
}

static inline point subtract(point a, point b)
{
    return (point){a.re - b.re, a.im - b.im};
}

static inline point scale(stapes_real factor, point a)
{
    return (point){factor * a.re, factor * a.im};
}

/* -i a */
static inline point quarter(point a)
{
    return (point){a.im, -a.re};
}

static inline point turned(point a, stapes_turn w)
{
    return (point){a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}

stapes_turn stapes_turn_of(int k)
{
    stapes_turn turn;
#if STAPES_TURNS < STAPES_N_FFT
    /* The table has half a circle; the other half is its negative. */
    const int beyond = k >= STAPES_TURNS;
    const stapes_real sign = beyond ? (stapes_real)-1 : (stapes_real)1;
    const stapes_real *entry = stapes_turns + 2 * (beyond ? k - STAPES_TURNS : k);
    turn.re = sign * entry[0];
    turn.im = sign * entry[1];
#else
    turn.re = stapes_turns[2 * k];
    turn.im = stapes_turns[2 * k + 1];
#endif
    return turn;
}

static void pass2(const stapes_lanes *restrict x, stapes_lanes *restrict y, int m, int s)
{
    for (int p = 0; p < m; p++) {
        const stapes_turn w = stapes_turn_of(p * s * STEP);
        for (int q = 0; q < s; q++) {
            const int from = q + s * p, to = q + 2 * s * p;
            const point a = get(x, from), b = get(x, from + s * m);
            put(y, to, add(a, b));
            put(y, to + s, turned(subtract(a, b), w));
        }
    }
}

static void pass3(const stapes_lanes *restrict x, stapes_lanes *restrict y, int m, int s)
{
    const stapes_real sin60 = (stapes_real)0.86602540378443864676;

    for (int p = 0; p < m; p++) {
        const stapes_turn w1 = stapes_turn_of(p * s * STEP);
        const stapes_turn w2 = stapes_turn_of(2 * p * s * STEP);
        for (int q = 0; q < s; q++) {
            const int from = q + s * p, to = q + 3 * s * p;
            const point a = get(x, from), b = get(x, from + s * m), c = get(x, from + 2 * s * m);
            const point sum = add(b, c), side = scale(sin60, quarter(subtract(b, c)));
            const point middle = subtract(a, scale((stapes_real)0.5, sum));
            put(y, to, add(a, sum));
            put(y, to + s, turned(add(middle, side), w1));
            put(y, to + 2 * s, turned(subtract(middle, side), w2));
        }
    }
}

/* Transforms of four points, in place. */
static inline void four(point *a, point *b, point *c, point *d)
{
    const point even = add(*a, *c), odd = add(*b, *d);
    const point apart = subtract(*a, *c), side = quarter(subtract(*b, *d));

    *a = add(even, odd);
    *b = add(apart, side);
    *c = subtract(even, odd);
    *d = subtract(apart, side);
}

static void pass4(const stapes_lanes *restrict x, stapes_lanes *restrict y, int m, int s)
{
    for (int p = 0; p < m; p++) {
        const stapes_turn w1 = stapes_turn_of(p * s * STEP);
        const stapes_turn w2 = stapes_turn_of(2 * p * s * STEP);
        const stapes_turn w3 = stapes_turn_of(3 * p * s * STEP);
        for (int q = 0; q < s; q++) {
            const int from = q + s * p, to = q + 4 * s * p, apart = s * m;
            point a = get(x, from), b = get(x, from + apart);
            point c = get(x, from + 2 * apart), d = get(x, from + 3 * apart);
            four(&a, &b, &c, &d);
            put(y, to, a);
            put(y, to + s, turned(b, w1));
            put(y, to + 2 * s, turned(c, w2));
            put(y, to + 3 * s, turned(d, w3));
        }
    }
}

static void pass8(const stapes_lanes *restrict x, stapes_lanes *restrict y, int m, int s)
{
    const stapes_real sin45 = (stapes_real)0.70710678118654752440;

    for (int p = 0; p < m; p++) {
        stapes_turn w[8];
        for (int k = 1; k < 8; k++) {
            w[k] = stapes_turn_of(k * p * s * STEP);
        }
        for (int q = 0; q < s; q++) {
            const int from = q + s * p, to = q + 8 * s * p, apart = s * m;
            point a = get(x, from), b = get(x, from + apart);
            point c = get(x, from + 2 * apart), d = get(x, from + 3 * apart);
            point e = get(x, from + 4 * apart), f = get(x, from + 5 * apart);
            point g = get(x, from + 6 * apart), h = get(x, from + 7 * apart);
            /* Even and odd points apart; then the odd ones' result k is turned by k eighths. */
            four(&a, &c, &e, &g);
            four(&b, &d, &f, &h);
            d = scale(sin45, add(d, quarter(d)));
            f = quarter(f);
            h = scale(sin45, subtract(quarter(h), h));
            put(y, to, add(a, b));
            put(y, to + s, turned(add(c, d), w[1]));
            put(y, to + 2 * s, turned(add(e, f), w[2]));
            put(y, to + 3 * s, turned(add(g, h), w[3]));
            put(y, to + 4 * s, turned(subtract(a, b), w[4]));
            put(y, to + 5 * s, turned(subtract(c, d), w[5]));
            put(y, to + 6 * s, turned(subtract(e, f), w[6]));
            put(y, to + 7 * s, turned(subtract(g, h), w[7]));
        }
    }
}

static void pass5(const stapes_lanes *restrict x, stapes_lanes *restrict y, int m, int s)
{
    const stapes_real cos72 = (stapes_real)0.30901699437494742410;
    const stapes_real sin72 = (stapes_real)0.95105651629515357212;
    const stapes_real cos144 = (stapes_real)-0.80901699437494742410;
    const stapes_real sin144 = (stapes_real)0.58778525229247312917;

    for (int p = 0; p < m; p++) {
        const stapes_turn w1 = stapes_turn_of(p * s * STEP);
        const stapes_turn w2 = stapes_turn_of(2 * p * s * STEP);
        const stapes_turn w3 = stapes_turn_of(3 * p * s * STEP);
        const stapes_turn w4 = stapes_turn_of(4 * p * s * STEP);
        for (int q = 0; q < s; q++) {
            const int from = q + s * p, to = q + 5 * s * p, apart = s * m;
            const point a = get(x, from), b = get(x, from + apart), c = get(x, from + 2 * apart);
            const point d = get(x, from + 3 * apart), e = get(x, from + 4 * apart);
            /* The outer pair, b and e, and the inner pair, c and d. */
            const point outer = add(b, e), inner = add(c, d);
            const point wide = quarter(subtract(b, e)), near = quarter(subtract(c, d));
            const point first = add(a, add(scale(cos72, outer), scale(cos144, inner)));
            const point second = add(a, add(scale(cos144, outer), scale(cos72, inner)));
            const point side1 = add(scale(sin72, wide), scale(sin144, near));
            const point side2 = subtract(scale(sin144, wide), scale(sin72, near));
            put(y, to, add(a, add(outer, inner)));
            put(y, to + s, turned(add(first, side1), w1));
            put(y, to + 2 * s, turned(add(second, side2), w2));
            put(y, to + 3 * s, turned(subtract(second, side2), w3));
            put(y, to + 4 * s, turned(subtract(first, side1), w4));
        }
    }
}

/* Any radix r, by its definition. */
static void pass_any(const stapes_lanes *restrict x, stapes_lanes *restrict y, int r, int m, int s)
{
    for (int p = 0; p < m; p++) {
        for (int k = 0; k < r; k++) {
            const stapes_turn w = stapes_turn_of(k * p * s * STEP);
            for (int q = 0; q < s; q++) {
                point sum = get(x, q + s * p);
                int turns = 0; /* j k, less full circles of r */
                for (int j = 1; j < r; j++) {
                    turns += k;
                    turns -= turns >= r ? r : 0;
                    const stapes_turn u = stapes_turn_of(turns * (STAPES_N_FFT / r));
                    sum = add(sum, turned(get(x, q + s * (p + m * j)), u));
                }
                put(y, q + s * (r * p + k), turned(sum, w));
            }
        }
    }
}

stapes_lanes *stapes_fft(stapes_lanes *a, stapes_lanes *b)
{
    int length = STAPES_POINTS;

    for (int i = 0; i < STAPES_PASSES; i++) {
        const int r = stapes_radices[i], m = length / r, s = STAPES_POINTS / length;
        stapes_lanes *const done = b;
        switch (r) {
        case 2:
            pass2(a, b, m, s);
            break;
        case 3:
            pass3(a, b, m, s);
            break;
        case 4:
            pass4(a, b, m, s);
            break;
        case 5:
            pass5(a, b, m, s);
            break;
        case 8:
            pass8(a, b, m, s);
            break;
        default:
            pass_any(a, b, r, m, s);
        }
        b = a;
        a = done;
        length = m;
    }
    return a;
}
