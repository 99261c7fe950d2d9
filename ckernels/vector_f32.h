/* gemv_f32, mean_f32 and add_f32: what is left behind the last feature map. */
static void gemv(const gemv_f32 *s) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    const float *w = s->w;
    const uint16_t *col = s->col;
    for (int g = 0; g < s->groups; g++) {
        V acc[16 / LANES];
        UNROLL for (int v = 0; v < 16 / LANES; v++) acc[v] = load(s->bias + 16 * g + v * LANES);
        for (int i = 0; i < s->count[g]; i++, w += 16) {
            const V x = splat(s->x[col ? col[i] : i]);
            UNROLL for (int v = 0; v < 16 / LANES; v++) acc[v] = madd(load(w + v * LANES), x, acc[v]);
        }
        if (col) col += s->count[g];
        UNROLL for (int v = 0; v < 16 / LANES; v++) store(s->y + 16 * g + v * LANES, clamp(acc[v], lo, hi));
    }
}

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

static void add(const add_f32 *s) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    int64_t i = 0;
    for (; i + LANES <= s->n; i += LANES) store(s->y + i, clamp(load(s->a + i) + load(s->b + i), lo, hi));
    for (; i < s->n; i++) s->y[i] = clamp1(s->a[i] + s->b[i], s->lo, s->hi);
}
