/* softmax_f32 and norm_f32: over planes, lanes are pixels, a few vectors of them at a time; over pixels too, sums of long
   rows run in lanes. nv is a constant of every call. */
INLINE void softmax_pixels(const int nv, const softmax_f32 *s, const float *x, float *y) {
    V greatest[4], sum[4];
    UNROLL for (int v = 0; v < nv; v++) greatest[v] = load(x + v * LANES), sum[v] = (V){0};
    for (int c = 1; c < s->planes; c++)
        UNROLL for (int v = 0; v < nv; v++) greatest[v] = vmax(greatest[v], load(x + c * s->x_pitch + v * LANES));
    for (int c = 0; c < s->planes; c++)
        UNROLL for (int v = 0; v < nv; v++) {
            const V e = vexp(load(x + c * s->x_pitch + v * LANES) - greatest[v]); /* of a NaN, NaN, and so is the sum */
            sum[v] += e;
            store(y + c * s->y_pitch + v * LANES, e);
        }
    UNROLL for (int v = 0; v < nv; v++) sum[v] = splat(1.0f) / sum[v];
    for (int c = 0; c < s->planes; c++)
        UNROLL for (int v = 0; v < nv; v++) {
            float *at = y + c * s->y_pitch + v * LANES;
            store(at, load(at) * sum[v]);
        }
}

static void softmax(const softmax_f32 *s) {
    for (int64_t c = 0; c < s->c; c += s->planes)
        for (int64_t i = 0; i < s->n; i += LANES) {
            const float *x = s->x + c * s->x_pitch + i;
            float *y = s->y + c * s->y_pitch + i;
            if (i + 3 * LANES < s->n) softmax_pixels(4, s, x, y), i += 3 * LANES;
            else softmax_pixels(1, s, x, y);
        }
}

/* A group of planes at nv vectors of pixels; `with_mean` is 0 for a norm of squares alone. What is left of the mean after
   it has been taken away is taken away too: equal numbers then have a variance of 0 to the last bit. */
INLINE void norm_pixels(const int nv, const int with_mean, const norm_f32 *s, int64_t first, int64_t at) {
    const V share = splat(1.0f / (float)s->planes);
    V mean[4], square[4], rest[4];
    const float *x = s->x + first * s->x_pitch + at;
    float *y = s->y + first * s->y_pitch + at;
    UNROLL for (int v = 0; v < nv; v++) mean[v] = square[v] = rest[v] = (V){0};
    for (int c = 0; with_mean && c < s->planes; c++)
        UNROLL for (int v = 0; v < nv; v++) mean[v] += load(x + c * s->x_pitch + v * LANES);
    UNROLL for (int v = 0; v < nv; v++) mean[v] *= share;
    for (int c = 0; c < s->planes; c++)
        UNROLL for (int v = 0; v < nv; v++) {
            const V d = load(x + c * s->x_pitch + v * LANES) - mean[v];
            square[v] = madd(d, d, square[v]);
            if (with_mean) rest[v] += d;
        }
    UNROLL for (int v = 0; v < nv; v++) {
        rest[v] *= share;
        mean[v] += rest[v];
        const V variance = square[v] * share - rest[v] * rest[v];
        square[v] = splat(1.0f) / vsqrt(vmax(splat(0.0f), variance) + splat(s->eps));
    }
    for (int c = 0; c < s->planes; c++) {
        const V weight = splat(s->weight[first + c]), bias = splat(s->bias[first + c]);
        UNROLL for (int v = 0; v < nv; v++) {
            const V d = load(x + c * s->x_pitch + v * LANES) - mean[v];
            store(y + c * s->y_pitch + v * LANES, madd(d * square[v], weight, bias));
        }
    }
}

INLINE void norm_over_planes(const int with_mean, const norm_f32 *s) {
    for (int64_t c = 0; c < s->c; c += s->planes)
        for (int64_t i = 0; i < s->n; i += LANES) {
            if (i + 3 * LANES < s->n) norm_pixels(4, with_mean, s, c, i), i += 3 * LANES;
            else norm_pixels(1, with_mean, s, c, i);
        }
}

/* The sum of n floats less `mean`, or of their squares, in four vectors of sums. */
INLINE float norm_sum(const int squares, const float *x, int64_t n, float mean) {
    V sums[4] = {{0}};
    const V less = splat(mean);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL for (int v = 0; v < 4; v++) {
            const V d = load(x + i + v * LANES) - less;
            sums[v] = squares ? madd(d, d, sums[v]) : sums[v] + d;
        }
    for (; i < n; i += LANES) {
        const V d = load(x + i) - less, kept = keep_lanes(lanes_below(n - i < LANES ? (int)(n - i) : LANES), d);
        sums[0] = squares ? madd(kept, kept, sums[0]) : sums[0] + kept;
    }
    const V all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++) sum += all[lane];
    return sum;
}

/* y = x * scale + shift, plane by plane. */
INLINE void norm_scale(const norm_f32 *s, int64_t c, float mean, float scale) {
    const V weight = splat(scale * s->weight[c]), bias = splat(s->bias[c]), less = splat(mean);
    const float *x = s->x + c * s->x_pitch;
    float *y = s->y + c * s->y_pitch;
    for (int64_t i = 0; i < s->n; i += LANES) store(y + i, madd(load(x + i) - less, weight, bias));
}

static void norm_over_all(const norm_f32 *s, int64_t first) {
    const float share = 1.0f / ((float)s->planes * (float)s->n);
    float mean = 0.0f, square = 0.0f;
    for (int64_t c = first; c < first + s->planes; c++) mean += norm_sum(0, s->x + c * s->x_pitch, s->n, 0.0f);
    mean *= share;
    float rest = 0.0f; /* of the mean, which equal numbers must have to the last bit */
    for (int64_t c = first; c < first + s->planes; c++) rest += norm_sum(0, s->x + c * s->x_pitch, s->n, mean);
    mean += rest * share;
    for (int64_t c = first; c < first + s->planes; c++) square += norm_sum(1, s->x + c * s->x_pitch, s->n, mean);
    const V scale = splat(1.0f) / vsqrt(splat(square * share + s->eps));
    for (int64_t c = first; c < first + s->planes; c++) norm_scale(s, c, mean, scale[0]);
}

static void norm(const norm_f32 *s) {
    if (s->fn == NORM_PIXEL) norm_over_planes(1, s);
    if (s->fn == NORM_RMS) norm_over_planes(0, s);
    for (int64_t c = 0; s->fn == NORM_PLANES && c < s->c; c += s->planes) norm_over_all(s, c);
    for (int64_t c = 0; s->fn == NORM_AFFINE && c < s->c; c++) norm_scale(s, c, 0.0f, 1.0f);
}

/* Those of an instruction set that the table of `isa` names last. */
#define MAP_KERNELS unary, binary, pool, move, resize, softmax, norm
