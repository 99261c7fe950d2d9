/* pool_f32: the rows of a window first, for whole rows at a time, into a line that stays in the first-level cache; then
   the line's columns. Windows of one size and stride 1 or 2, which is nearly all there is, take their columns as shifted
   vectors; a line's margins then hold what changes nothing, -infinity or 0, for windows that reach beyond it. */
INLINE V pool_of(const int fn, V a, V b) { return fn == POOL_MAX ? greater(a, b) : a + b; }
INLINE float pool_of1(const int fn, float a, float b) {
    return fn == POOL_MEAN ? a + b : b > a || b != b ? b : a; /* of a NaN there is nothing greater */
}

/* Windows of `span` columns from column stride * j - pad on, cut off where x ends; span is 0 where they are not so. */
typedef struct {
    int stride, pad, span;
} Windows;

static Windows pool_windows(const pool_f32 *s) {
    const uint32_t *columns = s->columns;
    const int n = s->out_w, none = n < 2 || s->step_w != 1;
    Windows w = {none ? 0 : (int)(columns[2 * n - 2] - columns[2 * n - 4]), 0, 0};
    w.pad = w.stride * (n - 1) - (int)columns[2 * n - 2];
    w.span = (int)columns[1] + w.pad;
    int is_regular = (w.stride == 1 || w.stride == 2) && w.pad >= 0 && w.pad <= LINE_MARGIN && w.span <= s->w + 2 * LINE_MARGIN;
    for (int j = 0; is_regular && j < n; j++) {
        const int from = w.stride * j - w.pad, to = from + w.span;
        is_regular = (int)columns[2 * j] == (from < 0 ? 0 : from) && (int)columns[2 * j + 1] == (to < s->w ? to : s->w) &&
                     to <= s->w + LINE_MARGIN;
    }
    if (!is_regular) w.span = 0;
    return w;
}

/* Rows from .. to of a plane, each `step` behind the one before, as one line, and its right margin. */
INLINE void pool_rows(const int fn, const pool_f32 *s, const float *plane, const uint32_t *rows, float *line) {
    const int64_t first = (int64_t)rows[0] * s->w, past = (int64_t)rows[1] * s->w, step = (int64_t)s->step * s->w;
    for (int x = 0; x < s->w; x += LANES) {
        V acc = load(plane + first + x);
        for (int64_t row = first + step; row < past; row += step) acc = pool_of(fn, acc, load(plane + row + x));
        store(line + x, acc);
    }
    const V nothing = splat(fn == POOL_MAX ? -__builtin_inff() : 0.0f);
    for (int x = 0; x < LINE_MARGIN; x += LANES) store(line + s->w + x, nothing);
}

/* Output columns of regular windows: at stride 2 two taps come out of two vectors. */
INLINE void pool_columns(const int fn, const int stride, const pool_f32 *s, Windows w, const float *line, float row_scale,
                         const float *scale, float *y) {
    for (int j = 0; j < s->out_w; j += LANES) {
        const float *from = line + stride * j - w.pad;
        V acc = splat(fn == POOL_MAX ? -__builtin_inff() : 0.0f);
        int t = 0;
        for (; stride == 2 && t + 1 < w.span; t += 2) {
            const V a = load(from + t), b = load(from + t + LANES);
            acc = pool_of(fn, pool_of(fn, acc, EVEN(a, b)), ODD(a, b));
        }
        for (; t < w.span; t++)
            acc = pool_of(fn, acc, stride == 1 ? load(from + t) : EVEN(load(from + t), load(from + t + LANES)));
        store(y + j, fn == POOL_MAX ? acc : acc * (splat(row_scale) * load(scale + j)));
    }
}

/* Output columns of any windows. */
INLINE void pool_any_columns(const int fn, const pool_f32 *s, const float *line, float row_scale, const float *scale,
                             float *y) {
    for (int j = 0; j < s->out_w; j++) {
        uint32_t x = s->columns[2 * j];
        float acc = line[x];
        for (x += (uint32_t)s->step_w; x < s->columns[2 * j + 1]; x += (uint32_t)s->step_w) acc = pool_of1(fn, acc, line[x]);
        y[j] = fn == POOL_MAX ? acc : acc * (row_scale * scale[j]);
    }
}

INLINE void pool_planes(const int fn, const pool_f32 *s) {
    const Windows windows = pool_windows(s);
    float *line = s->workspace + LINE_MARGIN, *scale = line + (s->w + 15) / 16 * 16 + 96 - LINE_MARGIN;
    for (int x = 0; x < LINE_MARGIN; x++) s->workspace[x] = fn == POOL_MAX ? -__builtin_inff() : 0.0f;
    for (int j = 0; j < s->out_w; j++) scale[j] = s->column_scale[j]; /* here a vector may read beyond the last */
    for (int c = 0; c < s->c; c++) {
        float *y = s->y + c * s->y_pitch;
        for (int i = 0; i < s->out_h; i++, y += s->out_w) {
            pool_rows(fn, s, s->x + c * s->x_pitch, s->rows + 2 * i, line);
            if (!windows.span) pool_any_columns(fn, s, line, s->row_scale[i], scale, y);
            else if (windows.stride == 1) pool_columns(fn, 1, s, windows, line, s->row_scale[i], scale, y);
            else pool_columns(fn, 2, s, windows, line, s->row_scale[i], scale, y);
        }
    }
}

static void pool(const pool_f32 *s) {
    if (s->fn == POOL_MAX) pool_planes(POOL_MAX, s);
    else pool_planes(POOL_MEAN, s);
}
