/* depthwise_f32: the rows that a band needs are copied once into a room, each with its zeros around it and, for stride
   2, its even and odd columns apart; then every tap is a plain vector load, shared by up to four output rows. A line of
   the room is 16 floats that end in the zeros to the left, the pixels from a cache line's start on, 16 floats that begin
   with the zeros to the right. Vectors may copy more than a row: what that spoils is written after it, or lies in lanes
   that nobody keeps. */
#define BEFORE 16

INLINE void depthwise_zeros(float *line, ptrdiff_t n, int pad) {
    for (int p = 1; p <= pad; p++) line[BEFORE - p] = line[BEFORE + n + p - 1] = 0.0f;
}

/* One row of w pixels into a line. */
INLINE void depthwise_line(const int stride, const float *from, ptrdiff_t w, int pad, float *line, ptrdiff_t half) {
    if (stride == 1) {
        for (ptrdiff_t x = 0; x < w; x += LANES) store(line + BEFORE + x, load(from + x));
        depthwise_zeros(line, w, pad);
        return;
    }
    ptrdiff_t x = 0;
    for (; x + LANES < w; x += 2 * LANES) {
        const V a = load(from + x), b = load(from + x + LANES);
        store(line + BEFORE + x / 2, EVEN(a, b));
        store(line + half + BEFORE + x / 2, ODD(a, b));
    }
    if (x < w) { /* a last vector alone: the floats behind it may not be ours to read */
        const V a = load(from + x);
        store(line + BEFORE + x / 2, EVEN(a, a));
        store(line + half + BEFORE + x / 2, ODD(a, a));
    }
    depthwise_zeros(line, (w + 1) / 2, pad);
    depthwise_zeros(line + half, w / 2, pad);
}

INLINE void depthwise_fill(const int stride, const depthwise_f32 *s, const float *plane, ptrdiff_t pitch) {
    const int first = s->top * stride - s->pad, rows = (s->bottom - s->top - 1) * stride + s->k;
    float *line = s->room;
    for (int y = first; y < first + rows; y++, line += pitch) {
        if (y >= 0 && y < s->h) depthwise_line(stride, plane + (ptrdiff_t)y * s->w, s->w, s->pad, line, pitch / 2);
        else
            for (ptrdiff_t x = 0; x < pitch; x += LANES) store(line + x, (V){0});
    }
}

/* `rows` output rows at once; `in` is where tap 0 of output 0 stands. The last vector of a row ends with it, over what
   the one before has written; where a row is shorter than a vector, what it spoils of the next is written after it. */
INLINE void depthwise_rows(const int k, const int stride, const int odd, const int rows, const depthwise_f32 *s,
                           const V *taps, V bias, const float *in, ptrdiff_t pitch, float *y) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    const ptrdiff_t out_w = s->out_w, half = pitch / 2;
    for (ptrdiff_t next = 0; next < out_w; next += LANES) {
        const ptrdiff_t x = next + LANES > out_w && next ? out_w - LANES : next;
        V acc[4];
        UNROLL for (int r = 0; r < rows; r++) acc[r] = bias;
        const float *line = in + x;
        UNROLL for (int l = 0; l < (rows - 1) * stride + k; l++, line += pitch)
            UNROLL for (int j = 0; j < k; j++) {
                V v = load(stride == 1 ? line + j : line + (j + odd) / 2 + ((j + odd) % 2 ? half : 0));
                KEEP(v);
                UNROLL for (int r = 0; r < rows; r++) {
                    const int i = l - r * stride;
                    if (i >= 0 && i < k) acc[r] = madd(taps[i * k + j], v, acc[r]);
                }
            }
        UNROLL for (int r = 0; r < rows; r++) store(y + r * out_w + x, clamp(acc[r], lo, hi));
    }
}

INLINE void depthwise_band(const int k, const int stride, const int odd, const int together, const depthwise_f32 *s) {
    const ptrdiff_t pitch = depthwise_pitch(s->w, stride);
    const float *in = s->room + BEFORE - (stride == 1 ? s->pad : (s->pad + odd) / 2);
    const int rows = s->bottom - s->top;
    for (int c = 0; c < s->c; c++) {
        const float *weight = s->weight + c * k * k;
        float *y = s->y + c * s->y_pitch;
        const V bias = splat(s->bias[c]);
        V taps[25];
        UNROLL for (int t = 0; t < k * k; t++) taps[t] = splat(weight[t]);
        depthwise_fill(stride, s, s->x + c * s->x_pitch, pitch);
        int r = 0;
        for (; r + together <= rows; r += together)
            depthwise_rows(k, stride, odd, together, s, taps, bias, in + r * stride * pitch, pitch, y + (ptrdiff_t)r * s->out_w);
        for (; r < rows; r++)
            depthwise_rows(k, stride, odd, 1, s, taps, bias, in + r * stride * pitch, pitch, y + (ptrdiff_t)r * s->out_w);
    }
}

/* -- 3 x 3 with zeros one deep, which is nearly all there is: no room; down a column of vectors, each row read once ---- */

typedef struct {
    V left, mid, right;
} Three;

/* Columns x * stride + {-1, 0, 1} of a row of w pixels for outputs x .. x + LANES - 1; `begins` and `ends` say whether
   they are the row's first and last. */
INLINE Three depthwise_three(const int stride, const int begins, const int ends, const float *at, ptrdiff_t left, V edge) {
    V a = load(at);
    KEEP(a);
    if (stride == 1) {
        Three in = {begins ? AFTER_ZERO(a) : load(at - 1), a, load(at + 1)};
        if (ends) in.right = only(edge, in.right);
        KEEP(in.left);
        KEEP(in.right);
        return in;
    }
    const int two = !ends || left > LANES; /* else a second vector holds nothing of this row, and may not be ours to read */
    V b = two ? load(at + LANES) : a;
    KEEP(b);
    const V odd = ODD(a, b);
    const V before = begins ? AFTER_ZERO(odd) : EVEN(load(at - 1), two ? load(at + LANES - 1) : a);
    return (Three){before, EVEN(a, b), ends ? only(edge, odd) : odd};
}

INLINE V depthwise_dot(V acc, Three in, const V *taps) {
    return madd(taps[2], in.right, madd(taps[1], in.mid, madd(taps[0], in.left, acc)));
}

/* Outputs x .. x + LANES - 1 of the band's rows: row r sums input rows stride * r + {-1, 0, 1}, the last of which begins
   the next one too. */
INLINE void depthwise_column(const int stride, const int begins, const int ends, const depthwise_f32 *s, const float *plane,
                             const V *taps, V bias, ptrdiff_t x, float *y) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    const ptrdiff_t w = s->w, left = w - stride * x, out_w = s->out_w, next_plane = s->x_pitch;
    const int bottom = s->bottom, whole = bottom * stride - stride + 1 < s->h ? bottom : bottom - 1;
    const V edge = lanes_below((int)((stride == 1 ? w - 1 : w / 2) - x)); /* outputs that have a right neighbour */
    const float *row = plane + (stride * (ptrdiff_t)s->top - 1) * w + stride * x;
    V now = bias, next = bias;
    if (s->top > 0) now = depthwise_dot(bias, depthwise_three(stride, begins, ends, row, left, edge), taps);
    row += w;
    if (stride == 1) { /* rows overlap by two: the middle of the first one begins the second */
        const Three in = depthwise_three(1, begins, ends, row, left, edge);
        now = depthwise_dot(now, in, taps + 3);
        next = depthwise_dot(bias, in, taps);
        row += w;
    }
    for (int r = s->top; r < whole; r++, y += out_w) {
        if (stride == 2) {
            now = depthwise_dot(now, depthwise_three(2, begins, ends, row, left, edge), taps + 3);
            row += w;
        }
        const Three in = depthwise_three(stride, begins, ends, row, left, edge);
        PREFETCH(row + next_plane); /* the next channel's */
        now = depthwise_dot(now, in, taps + 6);
        if (stride == 1) next = depthwise_dot(next, in, taps + 3);
        const V after = depthwise_dot(bias, in, taps);
        row += w;
        store(y, clamp(now, lo, hi));
        now = stride == 1 ? next : after;
        next = after;
    }
    if (whole < bottom) { /* a last row with nothing below it */
        if (stride == 2) now = depthwise_dot(now, depthwise_three(2, begins, ends, row, left, edge), taps + 3);
        store(y, clamp(now, lo, hi));
    }
}

INLINE void depthwise_columns(const int stride, const depthwise_f32 *s) {
    const ptrdiff_t out_w = s->out_w;
    for (int c = 0; c < s->c; c++) {
        const float *x = s->x + c * s->x_pitch;
        float *y = s->y + c * s->y_pitch;
        const V bias = splat(s->bias[c]);
        V taps[9];
        UNROLL for (int t = 0; t < 9; t++) taps[t] = splat(s->weight[9 * c + t]);
        if (out_w <= LANES) {
            depthwise_column(stride, 1, 1, s, x, taps, bias, 0, y);
            continue;
        }
        depthwise_column(stride, 1, 0, s, x, taps, bias, 0, y);
        ptrdiff_t at = LANES;
        for (; at + LANES < out_w; at += LANES) depthwise_column(stride, 0, 0, s, x, taps, bias, at, y + at);
        depthwise_column(stride, 0, 1, s, x, taps, bias, out_w - LANES, y + out_w - LANES);
    }
}

static void depthwise(const depthwise_f32 *s) {
    if (s->k == 3 && s->pad == 1) {
        if (s->stride == 1) depthwise_columns(1, s);
        else depthwise_columns(2, s);
        return;
    }
    switch (4 * s->k + 2 * (s->stride - 1) + s->pad % 2 * (s->stride - 1)) {
        case 12: depthwise_band(3, 1, 0, 4, s); break;
        case 14: depthwise_band(3, 2, 0, 2, s); break;
        case 15: depthwise_band(3, 2, 1, 2, s); break;
        case 20: depthwise_band(5, 1, 0, 2, s); break;
        case 22: depthwise_band(5, 2, 0, 1, s); break;
        case 23: depthwise_band(5, 2, 1, 1, s); break;
    }
}
