/* spmm_f32: Y (M, n) = clamp(W (M, K) X (K, n) + bias + add), W in blocks of 4 rows x 1 column; of other blocks in
   spmm_rows_f32.h.

   The loops, from the outside in:
       pixels      a tile of up to MAXV vectors; its sums stay in registers while the columns of W pass
       k-tiles     k_tile rows of X x one tile of pixels: 128 rows and 96 pixels are 48 KB, about a first-level cache
       groups      4 rows of Y: their sums begin as the bias, or come back from Y where the last k-tile left them
       blocks      one row of X, loaded once, times 4 weights
   W is read once a tile, from far; X once for all groups, from the first-level cache; Y is written once a k-tile. */

/* ROW_PTR_TABLE: the addresses of a k-tile's rows in a table, and UNROLL2: two blocks a turn. The product that would make
   an address goes through a port that AVX2's multiply-adds want, and so does half of a loop's counting; AVX-512's go
   elsewhere, and NEON has one instruction for such a product and sum. */
#if defined __x86_64__ && LANES == 8
#define ROW_PTR_TABLE 1
#define UNROLL2 _Pragma("GCC unroll 2")
#else
#define ROW_PTR_TABLE 0
#define UNROLL2
#endif

#include "spmm_rows_f32.h"

/* The sums acc (4 rows, nv vectors) of a group: from Y, to Y, and to Y within bounds. There each is clamped and stored
   before the next: stores in a burst fill their queue, and the next group's multiply-adds wait behind them. */
INLINE void spmm_load(const int nv, V acc[4][MAXV], const float *y, ptrdiff_t y_pitch) {
    UNROLL for (int r = 0; r < 4; r++, y += y_pitch) {
        PIN_ADDRESS_X86(y);
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = load(y + v * LANES);
    }
}

INLINE void spmm_store(const int nv, V acc[4][MAXV], float *y, ptrdiff_t y_pitch) {
    UNROLL for (int r = 0; r < 4; r++, y += y_pitch) {
        PIN_ADDRESS_X86(y);
        UNROLL for (int v = 0; v < nv; v++) store(y + v * LANES, acc[r][v]);
    }
}

INLINE void spmm_clamp(const int nv, V acc[4][MAXV], float *y, ptrdiff_t y_pitch, V lo, V hi) {
    UNROLL for (int r = 0; r < 4; r++, y += y_pitch) {
        PIN_ADDRESS_X86(y);
        UNROLL for (int v = 0; v < nv; v++) {
            V sum = clamp(acc[r][v], lo, hi);
            COMPILER_BARRIER(sum);
            store(y + v * LANES, sum);
        }
    }
}

/* One tile of pixels, from pixel `at` on: nv vectors x 4 rows of sums. A block costs nv loads of X, 4 of W (NEON: 1), and
   4 * nv multiply-adds, so that with nv = MAXV the multiply-adds alone decide.
   With `tail` 1, one more pixel behind the last vector is taken along as a vector over the 4 rows: 49 = 3 * 16 + 1; with
   tail 4, 2 to 4 pixels as a square of 4 rows x 4 pixels: 196 = 12 * 16 + 4. nv, tail and sparse are constants of every
   call: each case is compiled by itself, its loops unrolled, acc in registers throughout. */
INLINE void spmm_tile(const int nv, const int tail, const int sparse, const spmm_f32 *s, ptrdiff_t at) {
    const uint16_t *count = s->count, *col = s->col; /* these and w run through all of W in the order it is stored */
    const float *w = s->w;
    const int groups = s->groups;
    const ptrdiff_t y_pitch = s->y_pitch, x_step = s->x_pitch * (ptrdiff_t)sizeof(float);
    for (int c = 0; c < s->k_tiles; c++) {
        const float *x = s->x + (ptrdiff_t)c * s->k_tile * s->x_pitch + at;
        const float *row_ptr[ROW_PTR_TABLE ? SPMM_MAX_K_TILE : 1];
        for (int k = 0; ROW_PTR_TABLE && sparse && k < s->k_tile; k++) row_ptr[k] = x + k * s->x_pitch;
        float *y = s->y + at;
        const float *bias = s->bias;
        const ptrdiff_t before = blocks_of(count, s->before);
        count += s->before, w += 4 * before;
        if (sparse) col += before; /* else there is none, and NULL takes no offset */
        for (int g = 0; g < groups; g++, y += 4 * y_pitch, bias += 4) {
            V acc[4][MAXV];
            V4 last = {0};
            if (c) spmm_load(nv, acc, y, y_pitch);
            else
                UNROLL for (int r = 0; r < 4; r++)
                    UNROLL for (int v = 0; v < nv; v++) acc[r][v] = splat(bias[r]);
            V square = {0};
            if (tail == 4) square = c ? square_load(y + nv * LANES, y_pitch) : square_rows(bias);
            if (tail == 1)
                for (int r = 0; r < 4; r++) last[r] = c ? y[r * y_pitch + nv * LANES] : bias[r];

            const int n = *count++;
            const char *base = (const char *)x;
            ptrdiff_t step = x_step; /* in bytes: one multiply-add makes an address */
            PIN_ADDRESS_NEON(base);
            PIN_ADDRESS_NEON(step);
            UNROLL2 for (int i = 0; i < n; i++, w += 4) {
                const float *in =
                    ROW_PTR_TABLE && sparse ? row_ptr[col[i]] : (const float *)(base + (sparse ? col[i] : i) * step);
                if (sparse) {
                    PIN_ADDRESS_NEON(w);
                    PIN_ADDRESS_NEON(in);
                }
                V xs[MAXV]; /* loaded before the weights: 4 rows use each */
                UNROLL for (int v = 0; v < nv; v++) xs[v] = load(in + v * LANES);
                PREFETCH(w + 1024); /* the stream of weights comes from far: most layers are read once an image */
                const Weights four = weights(w);
                UNROLL for (int r = 0; r < 4; r++) {
                    const V weight = splat(four[r]);
                    UNROLL for (int v = 0; v < nv; v++) acc[r][v] = madd(weight, xs[v], acc[r][v]);
                }
                if (tail == 4) square = madd(square_rows(w), square_pixels(in + nv * LANES), square);
                if (tail == 1) last = madd4(load4(w), in[nv * LANES] - (V4){0}, last);
            }
            if (sparse) col += n;

            if (c < s->k_tiles - 1) spmm_store(nv, acc, y, y_pitch);
            else {
                if (s->add) {
                    const float *add = s->add + (ptrdiff_t)4 * g * s->add_pitch + at;
                    UNROLL for (int r = 0; r < 4; r++)
                        UNROLL for (int v = 0; v < nv; v++) acc[r][v] += load(add + r * s->add_pitch + v * LANES);
                    if (tail == 4) square += square_load(add + nv * LANES, s->add_pitch);
                    if (tail == 1)
                        for (int r = 0; r < 4; r++) last[r] += add[r * s->add_pitch + nv * LANES];
                }
                spmm_clamp(nv, acc, y, y_pitch, splat(s->lo), splat(s->hi));
                if (tail == 4) square = clamp(square, splat(s->lo), splat(s->hi));
                if (tail == 1) last = clamp4(last, s->lo, s->hi);
            }
            if (tail == 4) square_store(y + nv * LANES, y_pitch, square);
            if (tail == 1)
                for (int r = 0; r < 4; r++) y[r * y_pitch + nv * LANES] = last[r];
        }
        const ptrdiff_t behind = blocks_of(count, s->behind);
        count += s->behind, w += 4 * behind;
        if (sparse) col += behind; /* else there is none, and NULL takes no offset */
    }
}

/* A case is 6 * nv + 2 * (which tail) + (whether W has an index). */
#if SQUARE
#define SPMM_SQUARE(nv)                                \
    case 6 * nv + 4: spmm_tile(nv, 4, 0, s, at); break; \
    case 6 * nv + 5: spmm_tile(nv, 4, 1, s, at); break;
#else
#define SPMM_SQUARE(nv)
#endif
#define SPMM_CASE(nv)                                  \
    case 6 * nv: spmm_tile(nv, 0, 0, s, at); break;     \
    case 6 * nv + 1: spmm_tile(nv, 0, 1, s, at); break; \
    case 6 * nv + 2: spmm_tile(nv, 1, 0, s, at); break; \
    case 6 * nv + 3: spmm_tile(nv, 1, 1, s, at); break; \
    SPMM_SQUARE(nv)

/* The pixels in tiles of up to MAXV vectors, as equal as can be: 7 vectors are 4 + 3 and not 6 + 1, since a narrow tile
   loads as many weights for fewer multiply-adds. The last tile has the tail; a square takes as many registers as a vector. */
static void spmm(const spmm_f32 *s) {
    if (s->block != 4) {
        spmm_rows(s);
        return;
    }
    const int rest = s->n % LANES, tail = s->n < LANES ? 0 : rest == 1 ? 1 : SQUARE && rest > 1 && rest <= 4 ? 4 : 0;
    const int takes_registers = tail == 4 || (tail == 1 && MAXV == 3); /* of 16, three vectors leave none to a tail */
    int vectors = s->n / LANES + (rest != 0 && !tail);
    ptrdiff_t at = 0;
    for (int tiles = (vectors + takes_registers + MAXV - 1) / MAXV; tiles > 0; tiles--) {
        const int nv = (vectors + tiles - 1) / tiles, ends = tiles > 1 || !tail ? 0 : tail == 1 ? 2 : 4;
        switch (6 * nv + ends + (s->col != NULL)) {
            SPMM_CASE(1)
            SPMM_CASE(2)
#if MAXV > 2
            SPMM_CASE(3)
#endif
#if MAXV > 3
            SPMM_CASE(4)
#endif
#if MAXV > 4
            SPMM_CASE(5)
            SPMM_CASE(6)
#endif
        }
        vectors -= nv;
        at += (ptrdiff_t)nv * LANES;
    }
}
