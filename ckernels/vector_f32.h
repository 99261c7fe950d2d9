/* gemv_f32 and mean_f32: the head behind the last feature map. */
#define GEMV_VECTORS (16 / LANES) /* vectors of a block of 16 rows */

/* y (16 * batch rows) of `batch` groups with the same n columns at once. A vector x is read from the cache, but each weight
   comes from memory and is used once: more groups are more streams to prefetch, and more sums under way, so that no
   multiply-add waits for the one before. */
INLINE void gemv_groups(const int batch, const gemv_f32 *s, int g, const float *w, const uint16_t *col) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    const int n = s->count[g];
    V acc[4][GEMV_VECTORS];
    UNROLL for (int t = 0; t < batch; t++)
        UNROLL for (int v = 0; v < GEMV_VECTORS; v++) acc[t][v] = load(s->bias + 16 * (g + t) + v * LANES);
    for (int i = 0; i < n; i++) { /* a column of 16 rows: lanes are rows, x is one number for all of them */
        const V x = splat(s->x[col ? col[i] : i]);
        UNROLL for (int t = 0; t < batch; t++)
            UNROLL for (int v = 0; v < GEMV_VECTORS; v++)
                acc[t][v] = madd(load(w + 16 * ((ptrdiff_t)t * n + i) + v * LANES), x, acc[t][v]);
    }
    UNROLL for (int t = 0; t < batch; t++)
        UNROLL for (int v = 0; v < GEMV_VECTORS; v++) store(s->y + 16 * (g + t) + v * LANES, clamp(acc[t][v], lo, hi));
}

/* Four vectors of sums at a time where W is dense, all of whose groups have n columns; else group by group. */
static void gemv(const gemv_f32 *s) {
    const float *w = s->w;
    const uint16_t *col = s->col;
    int g = 0;
    if (!col)
        for (const int batch = 4 / GEMV_VECTORS; batch > 1 && g + batch <= s->groups; g += batch) {
            gemv_groups(4 / GEMV_VECTORS, s, g, w, NULL);
            w += 16 * (ptrdiff_t)s->n * batch;
        }
    for (; g < s->groups; g++) {
        gemv_groups(1, s, g, w, col);
        w += 16 * (ptrdiff_t)s->count[g];
        if (col) col += s->count[g];
    }
}

/* Summed in four lanes whatever the vectors' length, as the reference does: results are the same to the bit. */
static void mean(const mean_f32 *s) {
    for (int c = 0; c < s->c; c++) {
        const float *x = s->x + c * s->x_pitch;
        V sums = {0};
        int p = 0;
        for (; p + LANES <= s->n; p += LANES) sums += load(x + p);
        for (int lane = 0; p < s->n; p++, lane++) sums[lane] += x[p];
        float sum[4];
        for (int lane = 0; lane < 4; lane++) {
            sum[lane] = sums[lane];
            for (int v = lane + 4; v < LANES; v += 4) sum[lane] += sums[v];
        }
        s->y[c] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)s->n;
    }
}

/* Multiply-adds on registers alone, in more chains than the latency of one needs to be hidden: the peak that products are
   measured against. */
#define CHAINS (MAXV > 3 ? 16 : 12) /* Zen 2 needs 10: two units, five cycles */
static float peak(int64_t rounds) {
    V sums[16], total = {0};
    UNROLL for (int i = 0; i < CHAINS; i++) sums[i] = splat((float)i);
    const V half = splat(0.5f), one = splat(1.0f);
    for (int64_t r = 0; r < rounds * 16 / CHAINS; r++) {
        UNROLL for (int i = 0; i < CHAINS; i++) sums[i] = madd(sums[i], half, one);
        PIN_VECTOR(sums[0]);
    }
    UNROLL for (int i = 0; i < CHAINS; i++) total += sums[i];
    return total[0];
}
