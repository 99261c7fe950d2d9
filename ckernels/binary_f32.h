/* binary_f32: sums, products, ... of two maps; fn and is_one are constants of every call. */
INLINE V binary_of(const int fn, V a, V b) {
    switch (fn) {
        case BINARY_SUB: return a - b;
        case BINARY_MUL: return a * b;
        case BINARY_DIV: return a / b;
        case BINARY_MAX: return greater(a, b);
        case BINARY_MIN: return less(a, b);
        case BINARY_RSUB: return b - a;
        case BINARY_RDIV: return b / a;
    }
    return a + b;
}

INLINE void binary_planes(const int fn, const int is_one, const binary_f32 *s) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    for (int c = 0; c < s->c; c++) {
        const float *a = s->a + c * s->a_pitch, *b = s->b + c * s->b_pitch;
        float *y = s->y + c * s->y_pitch;
        const V one = splat(*b);
        for (int64_t i = 0; i < s->n; i += LANES)
            store(y + i, clamp(binary_of(fn, load(a + i), is_one ? one : load(b + i)), lo, hi));
    }
}

#define BINARY_CASE(fn)                                  \
    case 2 * (fn): binary_planes(fn, 0, s); break;        \
    case 2 * (fn) + 1: binary_planes(fn, 1, s); break;
static void binary(const binary_f32 *s) {
    switch (2 * s->fn + s->b_is_one) {
        BINARY_CASE(BINARY_ADD)
        BINARY_CASE(BINARY_SUB)
        BINARY_CASE(BINARY_MUL)
        BINARY_CASE(BINARY_DIV)
        BINARY_CASE(BINARY_MAX)
        BINARY_CASE(BINARY_MIN)
        BINARY_CASE(BINARY_RSUB)
        BINARY_CASE(BINARY_RDIV)
    }
}
