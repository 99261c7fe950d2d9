/* spmm_f32 on registers of nv vectors x 4 rows: a block costs nv loads of X, 4 of W, and 4 * nv multiply-adds.
   With `tail`, one more pixel behind the last vector is taken along as a vector over the 4 rows: 49 = 3 * 16 + 1. */
INLINE void spmm_tile(const int nv, const int tail, const int sparse, const spmm_f32 *s, ptrdiff_t at) {
    const uint16_t *count = s->count, *col = s->col;
    const float *w = s->w;
    for (int c = 0; c < s->chunks; c++) {
        const float *x = s->x + (ptrdiff_t)c * s->chunk * s->x_pitch + at;
        for (int g = 0; g < s->groups; g++) {
            float *y = s->y + (ptrdiff_t)4 * g * s->y_pitch + at;
            V acc[4][MAXV];
            V4 last = {0};
            UNROLL for (int r = 0; r < 4; r++)
                UNROLL for (int v = 0; v < nv; v++)
                    acc[r][v] = c ? load(y + r * s->y_pitch + v * LANES) : splat(s->bias[4 * g + r]);
            if (tail)
                for (int r = 0; r < 4; r++) last[r] = c ? y[r * s->y_pitch + nv * LANES] : s->bias[4 * g + r];

            const int n = *count++;
            const char *base = (const char *)x;
            ptrdiff_t step = s->x_pitch * (ptrdiff_t)sizeof(float); /* in bytes: one multiply-add makes an address */
            FIXED(base);
            FIXED(step);
            for (int i = 0; i < n; i++, w += 4) {
                const float *in = (const float *)(base + (sparse ? col[i] : i) * step);
                if (sparse) {
                    FIXED(w);
                    FIXED(in);
                }
                V xs[MAXV];
                UNROLL for (int v = 0; v < nv; v++) xs[v] = load(in + v * LANES);
                PREFETCH(w + 1024); /* the stream of weights comes from far: most layers are read once a picture */
                const Weights four = weights(w);
                UNROLL for (int r = 0; r < 4; r++) {
                    const V weight = splat(four[r]);
                    UNROLL for (int v = 0; v < nv; v++) acc[r][v] = madd(weight, xs[v], acc[r][v]);
                }
                if (tail) last = madd4(load4(w), in[nv * LANES] - (V4){0}, last);
            }
            if (sparse) col += n;

            if (c == s->chunks - 1) {
                const V lo = splat(s->lo), hi = splat(s->hi);
                const float *add = s->add + (ptrdiff_t)4 * g * s->add_pitch + at;
                UNROLL for (int r = 0; r < 4; r++)
                    UNROLL for (int v = 0; v < nv; v++) {
                        if (s->add) acc[r][v] += load(add + r * s->add_pitch + v * LANES);
                        acc[r][v] = clamp(acc[r][v], lo, hi);
                    }
                if (tail)
                    for (int r = 0; r < 4; r++) {
                        if (s->add) last[r] += add[r * s->add_pitch + nv * LANES];
                        last[r] = clamp1(last[r], s->lo, s->hi);
                    }
            }
            UNROLL for (int r = 0; r < 4; r++)
                UNROLL for (int v = 0; v < nv; v++) store(y + r * s->y_pitch + v * LANES, acc[r][v]);
            if (tail)
                for (int r = 0; r < 4; r++) y[r * s->y_pitch + nv * LANES] = last[r];
        }
    }
}

#define SPMM_CASE(nv)                                                \
    case 4 * nv: spmm_tile(nv, 0, 0, s, at); break;                  \
    case 4 * nv + 1: spmm_tile(nv, 0, 1, s, at); break;              \
    case 4 * nv + 2: spmm_tile(nv, 1, 0, s, at); break;              \
    case 4 * nv + 3: spmm_tile(nv, 1, 1, s, at); break;

/* The pixels in tiles of up to MAXV vectors, as equal as can be. */
static void spmm(const spmm_f32 *s) {
    const int tail = s->n % LANES == 1 && s->n > LANES;
    int vectors = s->n / LANES + (s->n % LANES != 0 && !tail);
    ptrdiff_t at = 0;
    for (int tiles = (vectors + MAXV - 1) / MAXV; tiles > 0; tiles--) {
        const int nv = (vectors + tiles - 1) / tiles;
        switch (4 * nv + 2 * (tail && tiles == 1) + (s->col != NULL)) {
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
