/* spmm_f32 in blocks of 1, 8 and 16 rows x 1 column. Included by spmm_f32.h, whose loops these share.

   1     single weights, for zeros that stand in no pattern. A weight serves one row, so a tile is one row of as many vectors
         as there are registers: a load of X a multiply-add, two of which a core does in a cycle, as it does multiply-adds.
   8     for maps of few pixels, whose tile is so narrow that 4 rows of sums would wait for one another.
   16    for maps of fewer still: lanes run over rows, as in gemv_f32, so no lane is a pixel that is not there. */

/* Sums in registers: with a weight, and a vector of X for all 8 rows, all that a set has. */
#if LANES == 16 || defined __aarch64__
#define SUMS 24
#elif LANES == 8
#define SUMS 12
#else
#define SUMS 8
#endif
#define SINGLE_MAXV (SUMS < 12 ? SUMS : 12) /* beyond 12 vectors the rows of X that a k-tile meets would leave the cache */
#define EIGHT_MAXV (SUMS / 8)
#define WIDE (16 / LANES) /* vectors of 16 rows */
#define WIDE_PIXELS (SUMS / WIDE < 12 ? SUMS / WIDE : 12)

/* One tile of pixels, from pixel `at` on: nv vectors x `rows` rows of sums; both, and sparse, are constants of every call. */
INLINE void rows_tile(const int rows, const int nv, const int sparse, const spmm_f32 *s, ptrdiff_t at) {
    const uint16_t *count = s->count, *col = s->col; /* these and w run through all of W in the order it is stored */
    const float *w = s->w;
    const V lo = splat(s->lo), hi = splat(s->hi);
    for (int c = 0; c < s->k_tiles; c++) {
        const float *x = s->x + (ptrdiff_t)c * s->k_tile * s->x_pitch + at;
        const float *row_ptr[ROW_PTR_TABLE ? SPMM_MAX_K_TILE : 1];
        for (int k = 0; ROW_PTR_TABLE && sparse && k < s->k_tile; k++) row_ptr[k] = x + k * s->x_pitch;
        float *y = s->y + at;
        const ptrdiff_t before = blocks_of(count, s->before);
        count += s->before, w += rows * before;
        if (sparse) col += before; /* else there is none, and NULL takes no offset */
        for (int g = 0; g < s->groups; g++, y += rows * s->y_pitch) {
            V acc[SUMS];
            UNROLL24 for (int i = 0; i < rows * nv; i++)
                acc[i] = c ? load(y + i / nv * s->y_pitch + i % nv * LANES) : splat(s->bias[rows * g + i / nv]);
            const int n = *count++;
            UNROLL2 for (int i = 0; i < n; i++, w += rows) {
                const float *in = ROW_PTR_TABLE && sparse ? row_ptr[col[i]] : x + (sparse ? col[i] : i) * s->x_pitch;
                if (rows == 1) {
                    const V weight = splat(*w);
                    UNROLL24 for (int v = 0; v < nv; v++) acc[v] = madd(weight, load(in + v * LANES), acc[v]);
                } else {
                    PREFETCH(w + 1024);
                    V xs[EIGHT_MAXV + 1]; /* loaded before the weights: 8 rows use each */
                    UNROLL for (int v = 0; v < nv; v++) xs[v] = load(in + v * LANES);
                    UNROLL24 for (int i = 0; i < rows * nv; i++) acc[i] = madd(splat(w[i / nv]), xs[i % nv], acc[i]);
                }
            }
            if (sparse) col += n;
            const float *add = s->add ? s->add + (ptrdiff_t)rows * g * s->add_pitch + at : NULL;
            UNROLL24 for (int i = 0; i < rows * nv; i++) {
                V sum = acc[i];
                if (c == s->k_tiles - 1) {
                    if (add) sum += load(add + i / nv * s->add_pitch + i % nv * LANES);
                    sum = clamp(sum, lo, hi);
                }
                store(y + i / nv * s->y_pitch + i % nv * LANES, sum);
            }
        }
        const ptrdiff_t behind = blocks_of(count, s->behind);
        count += s->behind, w += rows * behind;
        if (sparse) col += behind; /* else there is none, and NULL takes no offset */
    }
}

/* A tile of np pixels in blocks of 16 rows, whose columns are one k-tile. A block costs its loads of W and np numbers of X. */
INLINE void wide_tile(const int np, const spmm_f32 *s, ptrdiff_t at) {
    const ptrdiff_t before = blocks_of(s->count, s->before);
    const uint16_t *count = s->count + s->before, *col = s->col ? s->col + before : NULL;
    const float *w = s->w + 16 * before, *x = s->x + at;
    for (int g = 0; g < s->groups; g++) {
        V acc[WIDE_PIXELS][WIDE];
        UNROLL for (int p = 0; p < np; p++)
            UNROLL for (int v = 0; v < WIDE; v++) acc[p][v] = load(s->bias + 16 * g + v * LANES);
        const int n = count[g];
        for (int i = 0; i < n; i++, w += 16) {
            const float *in = x + (col ? col[i] : i) * s->x_pitch;
            V ws[WIDE];
            UNROLL for (int v = 0; v < WIDE; v++) ws[v] = load(w + v * LANES);
            PREFETCH(w + 1024);
            UNROLL for (int p = 0; p < np; p++) {
                const V pixel = splat(in[p]);
                UNROLL for (int v = 0; v < WIDE; v++) acc[p][v] = madd(ws[v], pixel, acc[p][v]);
            }
        }
        if (col) col += n;
        float sums[WIDE_PIXELS][16];
        UNROLL for (int p = 0; p < np; p++)
            UNROLL for (int v = 0; v < WIDE; v++) store(sums[p] + v * LANES, acc[p][v]);
        for (int r = 0; r < 16; r++)
            for (int p = 0; p < np; p++) {
                const ptrdiff_t row = 16 * g + r;
                const float sum = sums[p][r] + (s->add ? s->add[row * s->add_pitch + at + p] : 0.0f);
                s->y[row * s->y_pitch + at + p] = clamp1(sum, s->lo, s->hi);
            }
    }
}

#define SINGLE_CASE(nv) \
    case nv: rows_tile(1, nv, 1, s, at); break;
#define EIGHT_CASE(nv)                                 \
    case 2 * nv: rows_tile(8, nv, 0, s, at); break;     \
    case 2 * nv + 1: rows_tile(8, nv, 1, s, at); break;
#define WIDE_CASE(np) \
    case np: wide_tile(np, s, at); break;

static void single_tiles(const int nv, const spmm_f32 *s, ptrdiff_t at) {
    switch (nv) {
        SINGLE_CASE(1) SINGLE_CASE(2) SINGLE_CASE(3) SINGLE_CASE(4) SINGLE_CASE(5) SINGLE_CASE(6) SINGLE_CASE(7) SINGLE_CASE(8)
#if SINGLE_MAXV > 8
        SINGLE_CASE(9) SINGLE_CASE(10) SINGLE_CASE(11) SINGLE_CASE(12)
#endif
    }
}

static void eight_tiles(const int nv, const spmm_f32 *s, ptrdiff_t at) {
    switch (2 * nv + (s->col != NULL)) {
        EIGHT_CASE(1)
#if EIGHT_MAXV > 1
        EIGHT_CASE(2) EIGHT_CASE(3)
#endif
    }
}

static void wide_tiles(const int np, const spmm_f32 *s, ptrdiff_t at) {
    switch (np) {
        WIDE_CASE(1) WIDE_CASE(2)
#if WIDE_PIXELS > 2
        WIDE_CASE(3) WIDE_CASE(4) WIDE_CASE(5) WIDE_CASE(6)
#endif
#if WIDE_PIXELS > 6
        WIDE_CASE(7) WIDE_CASE(8) WIDE_CASE(9) WIDE_CASE(10) WIDE_CASE(11) WIDE_CASE(12)
#endif
    }
}

/* The pixels in tiles as equal as can be, of vectors or, in blocks of 16 rows, of pixels. */
static void spmm_rows(const spmm_f32 *s) {
    const int is_wide = s->block == 16, step = is_wide ? 1 : LANES;
    const int most = is_wide ? WIDE_PIXELS : s->block == 1 ? SINGLE_MAXV : EIGHT_MAXV;
    int left = (s->n + step - 1) / step;
    ptrdiff_t at = 0;
    for (int tiles = (left + most - 1) / most; tiles > 0; tiles--) {
        const int size = (left + tiles - 1) / tiles;
        if (is_wide) wide_tiles(size, s, at);
        else if (s->block == 1) single_tiles(size, s, at);
        else eight_tiles(size, s, at);
        left -= size;
        at += (ptrdiff_t)size * step;
    }
}
