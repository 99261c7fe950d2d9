/* move_f32: copies along the axis whose floats lie side by side in y. Axes of one step go; two that both maps run through
   as one become one; they stand by the length of their steps in y, the shortest first. Then that axis is copied row by row,
   or, where another axis is the one that lies side by side in x, both are taken at once, in squares of 4 x 4. */
typedef struct {
    int64_t size, x, y; /* steps, and the length of one in each map */
} Axis;

static int64_t move_length(Axis a) { return a.y < 0 ? -a.y : a.y; }

/* The axes that are left; how many they are. */
static int move_axes(const move_f32 *s, Axis *axes) {
    Axis sorted[6] = {{0, 0, 0}};
    int n = 0, kept = 0;
    for (int i = 0; i < 6; i++) {
        const Axis axis = {s->sizes[i], s->x_strides[i], s->y_strides[i]};
        if (axis.size == 1) continue;
        int at = n++;
        for (; at && move_length(sorted[at - 1]) > move_length(axis); at--) sorted[at] = sorted[at - 1];
        sorted[at] = axis;
    }
    for (int i = 0; i < n; i++) {
        Axis *last = axes + (kept ? kept - 1 : 0);
        if (kept && sorted[i].x == last->x * last->size && sorted[i].y == last->y * last->size) last->size *= sorted[i].size;
        else axes[kept++] = sorted[i]; /* it does not go on, in both maps, where the one before ends */
    }
    return kept;
}

/* One row: y by y_step, x by x_step. */
INLINE void move_row(const float *x, float *y, Axis axis) {
    int64_t i = 0;
    if (axis.y == 1 && axis.x == 1)
        for (; i + LANES <= axis.size; i += LANES) store(y + i, load(x + i));
    if (axis.y == 1 && axis.x == 0)
        for (const V v = splat(*x); i + LANES <= axis.size; i += LANES) store(y + i, v);
    if (axis.y == 1 && axis.x == 2)
        for (; i + 2 * LANES <= axis.size; i += LANES) { /* the last vectors would reach beyond the last float */
            const V a = load(x + 2 * i), b = load(x + 2 * i + LANES);
            store(y + i, EVEN(a, b));
        }
    for (; i < axis.size; i++) y[i * axis.y] = x[i * axis.x];
}

#define LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
INLINE void store4(float *p, V4 v) { *(Unaligned4 *)p = v; }

/* y[i * y_pitch + j] = x[j * x_pitch + i], i and j below 4. */
INLINE void move_square(const float *x, int64_t x_pitch, float *y, int64_t y_pitch) {
    const V4 a = load4(x), b = load4(x + x_pitch), c = load4(x + 2 * x_pitch), d = load4(x + 3 * x_pitch);
    const V4 ac = LOW(a, c), bd = LOW(b, d), ac2 = HIGH(a, c), bd2 = HIGH(b, d);
    store4(y, LOW(ac, bd));
    store4(y + y_pitch, HIGH(ac, bd));
    store4(y + 2 * y_pitch, LOW(ac2, bd2));
    store4(y + 3 * y_pitch, HIGH(ac2, bd2));
}

/* An axis side by side in x and one side by side in y, 16 steps of the first at a time: a cache line of each row of x. */
static void move_transposed(const float *x, float *y, Axis in, Axis out) {
    for (int64_t first = 0; first < in.size; first += 16) {
        const int64_t past = first + 16 < in.size ? first + 16 : in.size;
        int64_t j = 0;
        for (; j + 4 <= out.size; j += 4) {
            int64_t i = first;
            for (; i + 4 <= past; i += 4) move_square(x + j * out.x + i, out.x, y + i * in.y + j, in.y);
            for (; i < past; i++)
                for (int64_t r = j; r < j + 4; r++) y[i * in.y + r] = x[r * out.x + i];
        }
        for (; j < out.size; j++)
            for (int64_t i = first; i < past; i++) y[i * in.y + j] = x[j * out.x + i];
    }
}

static void move(const move_f32 *s) {
    Axis axes[6] = {{0, 0, 0}};
    int n = move_axes(s, axes), across = 1;
    const Axis out = n ? axes[0] : (Axis){1, 1, 1};
    while (across < n && axes[across].x != 1) across++; /* the axis that lies side by side in x */
    const int transposed = out.y == 1 && out.x != 1 && across < n;
    const Axis in = axes[transposed ? across : 0];
    if (transposed) axes[across] = axes[--n];
    int64_t at[6] = {0}, x = 0, y = 0;
    for (int axis = 0; axis < n || !axis;) { /* the other axes count like the digits of a number */
        if (transposed) move_transposed(s->x + x, s->y + y, in, out);
        else move_row(s->x + x, s->y + y, out);
        for (axis = 1; axis < n; axis++) {
            x += axes[axis].x, y += axes[axis].y;
            if (++at[axis] < axes[axis].size) break;
            x -= at[axis] * axes[axis].x, y -= at[axis] * axes[axis].y;
            at[axis] = 0;
        }
    }
}
