/* depthwise_f32, in two ways.

   Any window: the rows that a row tile reads are copied once into the workspace, each with its zeros around it and, for
   stride 2, its even and odd columns apart; then every tap is a plain vector load, shared by up to four output rows.
   3 x 3 with zeros one deep all around, further below: no workspace, each input row is read once as three shifted vectors.

   A padded row of the workspace is 16 floats that end in the zeros to the left, the pixels from a cache line's start on,
   and 16 floats that begin with the zeros to the right. Vectors may copy more than a row: what that spoils is written after
   it, or lies in lanes that nobody keeps. */
#define LEFT_MARGIN 16

/* As many zeros on both sides as any window of k columns reaches. */
INLINE void depthwise_zeros(float *line, ptrdiff_t n, int k) {
    for (int p = 1; p <= k; p++) line[LEFT_MARGIN - p] = line[LEFT_MARGIN + n + p - 1] = 0.0f;
}

/* One row of w pixels into a padded row; at stride 2 its even columns into one, its odd ones `half` floats on. */
INLINE void depthwise_line(const int stride, const float *from, ptrdiff_t w, int k, float *line, ptrdiff_t half) {
    if (stride == 1) {
        for (ptrdiff_t x = 0; x < w; x += LANES) store(line + LEFT_MARGIN + x, load(from + x));
        depthwise_zeros(line, w, k);
        return;
    }
    ptrdiff_t x = 0;
    for (; x + LANES < w; x += 2 * LANES) {
        const V a = load(from + x), b = load(from + x + LANES);
        store(line + LEFT_MARGIN + x / 2, EVEN(a, b));
        store(line + half + LEFT_MARGIN + x / 2, ODD(a, b));
    }
    if (x < w) { /* a last vector alone: the floats behind it may not be ours to read */
        const V a = load(from + x);
        store(line + LEFT_MARGIN + x / 2, EVEN(a, a));
        store(line + half + LEFT_MARGIN + x / 2, ODD(a, a));
    }
    depthwise_zeros(line, (w + 1) / 2, k);
    depthwise_zeros(line + half, w / 2, k);
}

/* All rows that output rows top .. bottom - 1 of a channel read, those outside the map as zeros. */
INLINE void depthwise_fill_workspace(const int stride, const depthwise_f32 *s, const float *plane, ptrdiff_t pitch) {
    const int first = s->top * stride - s->pad, rows = (s->bottom - s->top - 1) * stride + s->k;
    float *line = s->workspace;
    for (int y = first; y < first + rows; y++, line += pitch) {
        if (y >= 0 && y < s->h) depthwise_line(stride, plane + (ptrdiff_t)y * s->w, s->w, s->k, line, pitch / 2);
        else
            for (ptrdiff_t x = 0; x < pitch; x += LANES) store(line + x, (V){0});
    }
}

/* `rows` output rows at once; `in` is where tap (0, 0) of output (0, 0) stands. Input row l is loaded once and meets tap row
   l - r * stride of every output row r: four rows of 3 x 3 take 18 loads a vector, one by one they would take 36. The last
   vector of a row ends with it, over what the one before has written; where a row is shorter than a vector, what it spoils
   of the next is written after it. */
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
                PIN_VECTOR(v);
                UNROLL for (int r = 0; r < rows; r++) {
                    const int i = l - r * stride;
                    if (i >= 0 && i < k) acc[r] = madd(taps[i * k + j], v, acc[r]);
                }
            }
        UNROLL for (int r = 0; r < rows; r++) store(y + r * out_w + x, clamp(acc[r], lo, hi));
    }
}

/* Channel by channel, so that the rows of one plane stay in the first-level cache; k, stride, odd and rows_at_once are
   constants of every call. `odd`: whether the zeros to the left make the first column an odd one, at stride 2. */
INLINE void depthwise_row_tile(const int k, const int stride, const int odd, const int rows_at_once,
                               const depthwise_f32 *s) {
    const ptrdiff_t pitch = depthwise_pitch(s->w, stride);
    const float *in = s->workspace + LEFT_MARGIN - (stride == 1 ? s->pad_w : (s->pad_w + odd) / 2);
    const int rows = s->bottom - s->top;
    for (int c = 0; c < s->c; c++) {
        const float *weight = s->weight + c * k * k;
        float *y = s->y + c * s->y_pitch;
        const V bias = splat(s->bias[c]);
        V taps[49];
        UNROLL for (int t = 0; t < k * k; t++) taps[t] = splat(weight[t]);
        depthwise_fill_workspace(stride, s, s->x + c * s->x_pitch, pitch);
        int r = 0;
        for (; r + rows_at_once <= rows; r += rows_at_once)
            depthwise_rows(k, stride, odd, rows_at_once, s, taps, bias, in + r * stride * pitch, pitch,
                           y + (ptrdiff_t)r * s->out_w);
        for (; rows_at_once > 2 && r + 2 <= rows; r += 2)
            depthwise_rows(k, stride, odd, 2, s, taps, bias, in + r * stride * pitch, pitch, y + (ptrdiff_t)r * s->out_w);
        for (; r < rows; r++)
            depthwise_rows(k, stride, odd, 1, s, taps, bias, in + r * stride * pitch, pitch, y + (ptrdiff_t)r * s->out_w);
    }
}

/* -- 3 x 3 with zeros one deep all around, which is nearly all there is: down a column of vectors, each row read once */

typedef struct {
    V left, mid, right;
} Neighbours;

/* Columns x * stride + {-1, 0, 1} of a row of w pixels for outputs x .. x + LANES - 1, whose column x * stride is at `at`;
   `is_left` and `is_right` say whether they are the row's first and last. */
INLINE Neighbours depthwise_load3(const int stride, const int is_left, const int is_right, const float *at, ptrdiff_t left,
                                  V edge) {
    V a = load(at);
    PIN_VECTOR(a);
    if (stride == 1) {
        Neighbours in = {is_left ? SHIFT_IN_ZERO(a) : load(at - 1), a, load(at + 1)};
        if (is_right) in.right = keep_lanes(edge, in.right);
        PIN_VECTOR(in.left);
        PIN_VECTOR(in.right);
        return in;
    }
    const int two = !is_right || left > LANES; /* else a second vector may not be ours to read */
    V b = two ? load(at + LANES) : a;
    PIN_VECTOR(b);
    const V odd = ODD(a, b);
    const V before = is_left ? SHIFT_IN_ZERO(odd) : EVEN(load(at - 1), two ? load(at + LANES - 1) : a);
    return (Neighbours){before, EVEN(a, b), is_right ? keep_lanes(edge, odd) : odd};
}

/* acc + a row of taps (3) times its three shifted vectors. */
INLINE V depthwise_dot(V acc, Neighbours in, const V *taps) {
    return madd(taps[2], in.right, madd(taps[1], in.mid, madd(taps[0], in.left, acc)));
}

/* Outputs x .. x + LANES - 1 of the row tile's rows: row r sums input rows stride * r + {-1, 0, 1}, the last of which begins
   the next one too. At stride 1 two sums are under way: an input row is the bottom of `now`, the middle of `next`, and the
   top of the one after. */
INLINE void depthwise_column(const int stride, const int is_left, const int is_right, const depthwise_f32 *s,
                             const float *plane, const V *taps, V bias, ptrdiff_t x, float *y) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    const ptrdiff_t w = s->w, left = w - stride * x, out_w = s->out_w, next_plane = s->x_pitch;
    const int bottom = s->bottom, full = bottom * stride - stride + 1 < s->h ? bottom : bottom - 1;
    const V edge = lanes_below((int)((stride == 1 ? w - 1 : w / 2) - x)); /* outputs that have a right neighbour */
    const float *row = plane + (stride * (ptrdiff_t)s->top - 1) * w + stride * x;
    V now = bias, next = bias;
    if (s->top > 0) now = depthwise_dot(bias, depthwise_load3(stride, is_left, is_right, row, left, edge), taps);
    row += w;
    if (stride == 1) { /* rows overlap by two: the middle of the first one begins the second */
        const Neighbours in = depthwise_load3(1, is_left, is_right, row, left, edge);
        now = depthwise_dot(now, in, taps + 3);
        next = depthwise_dot(bias, in, taps);
        row += w;
    }
    for (int r = s->top; r < full; r++, y += out_w) {
        if (stride == 2) {
            now = depthwise_dot(now, depthwise_load3(2, is_left, is_right, row, left, edge), taps + 3);
            row += w;
        }
        const Neighbours in = depthwise_load3(stride, is_left, is_right, row, left, edge);
        PREFETCH(row + next_plane); /* the next channel's plane */
        now = depthwise_dot(now, in, taps + 6);
        if (stride == 1) next = depthwise_dot(next, in, taps + 3);
        const V after = depthwise_dot(bias, in, taps);
        row += w;
        store(y, clamp(now, lo, hi));
        now = stride == 1 ? next : after;
        next = after;
    }
    if (full < bottom) { /* a last row with nothing below it */
        if (stride == 2) now = depthwise_dot(now, depthwise_load3(2, is_left, is_right, row, left, edge), taps + 3);
        store(y, clamp(now, lo, hi));
    }
}

/* The columns of a channel: the first with its zero to the left, the last with that to the right, which ends with the row
   over what the one before has written; a row of no more than one vector is both. */
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
    const int is_wide = s->out_w == (s->w - 1) / s->stride + 1 && (s->bottom - 1) * s->stride < s->h;
    if (s->k == 3 && s->pad == 1 && s->pad_w == 1 && is_wide) {
        if (s->stride == 1) depthwise_columns(1, s);
        else depthwise_columns(2, s);
        return;
    }
    switch (4 * s->k + 2 * (s->stride - 1) + s->pad_w % 2 * (s->stride - 1)) {
        case 12: depthwise_row_tile(3, 1, 0, 4, s); break;
        case 14: depthwise_row_tile(3, 2, 0, 2, s); break;
        case 15: depthwise_row_tile(3, 2, 1, 2, s); break;
        case 20: depthwise_row_tile(5, 1, 0, 2, s); break;
        case 22: depthwise_row_tile(5, 2, 0, 1, s); break;
        case 23: depthwise_row_tile(5, 2, 1, 1, s); break;
        case 28: depthwise_row_tile(7, 1, 0, 4, s); break;
        case 30: depthwise_row_tile(7, 2, 0, 2, s); break;
        case 31: depthwise_row_tile(7, 2, 1, 2, s); break;
    }
}
