/* depthwise_f32: the rows that a band needs are copied once into a room with their zeros around them, even and odd
   columns apart for stride 2; then every tap is a plain vector load, shared by up to four output rows. */

/* Rows y0 .. y0 + rows - 1 of the plane into the room, `pitch` floats each (for stride 2: pitch / 2 even columns, then
   as many odd ones), zeros where the plane has no pixel. */
INLINE void depthwise_fill(const int stride, const depthwise_f32 *s, int y0, int rows, int pitch) {
    const int half = pitch / 2, pad = s->pad;
    for (int r = 0; r < rows; r++) {
        float *to = s->room + (ptrdiff_t)r * pitch;
        const int y = y0 + r, inside = y >= 0 && y < s->h;
        const float *from = s->x + (ptrdiff_t)y * s->w;
        if (stride == 1 && inside) {
            for (int x = 0; x < pad; x++) to[x] = 0.0f;
            for (int x = 0; x < s->w; x++) to[x + pad] = from[x];
            for (int x = pad + s->w; x < pitch; x++) to[x] = 0.0f;
            continue;
        }
        for (int x = 0; x < pitch; x++) to[x] = 0.0f;
        if (!inside) continue;
        float *first = to + pad % 2 * half + pad / 2, *second = to + (pad + 1) % 2 * half + (pad + 1) / 2;
        for (int x = 0; x < s->w / 2; x++) first[x] = from[2 * x];
        for (int x = 0; x < s->w / 2; x++) second[x] = from[2 * x + 1];
        if (s->w % 2) first[s->w / 2] = from[s->w - 1];
    }
}

/* `rows` output rows at once. The last vector of a row ends with it, over what the one before has written; where a row
   is shorter than a vector, what it spoils of the next row is written after it. */
INLINE void depthwise_rows(const int k, const int stride, const int rows, const depthwise_f32 *s, const float *in,
                           int pitch, float *y) {
    const V lo = splat(s->lo), hi = splat(s->hi);
    for (int next = 0; next < s->out_w; next += LANES) {
        const int x = next + LANES > s->out_w && next ? s->out_w - LANES : next;
        V acc[4];
        UNROLL for (int r = 0; r < rows; r++) acc[r] = splat(s->bias);
        UNROLL for (int line = 0; line < (rows - 1) * stride + k; line++)
            UNROLL for (int j = 0; j < k; j++) {
                const V v = load(in + line * pitch + x + (stride == 1 ? j : j % 2 * (pitch / 2) + j / 2));
                UNROLL for (int r = 0; r < rows; r++) {
                    const int i = line - r * stride;
                    if (i >= 0 && i < k) acc[r] = madd(splat(s->weight[i * k + j]), v, acc[r]);
                }
            }
        UNROLL for (int r = 0; r < rows; r++) store(y + (ptrdiff_t)r * s->out_w + x, clamp(acc[r], lo, hi));
    }
}

INLINE void depthwise_band(const int k, const int stride, const int together, const depthwise_f32 *s) {
    const int pitch = (int)(depthwise_room(s->w, k, stride, s->pad, 1) / k), rows = s->bottom - s->top;
    depthwise_fill(stride, s, s->top * stride - s->pad, (rows - 1) * stride + k, pitch);
    for (int r = 0; r < rows;) {
        const float *in = s->room + (ptrdiff_t)r * stride * pitch;
        float *y = s->y + (ptrdiff_t)r * s->out_w;
        if (r + together <= rows) {
            depthwise_rows(k, stride, together, s, in, pitch, y);
            r += together;
        } else
            depthwise_rows(k, stride, 1, s, in, pitch, y), r++;
    }
}

static void depthwise(const depthwise_f32 *s) {
    switch (2 * s->k + s->stride) {
        case 7: depthwise_band(3, 1, 4, s); break;
        case 8: depthwise_band(3, 2, 2, s); break;
        case 11: depthwise_band(5, 1, 2, s); break;
        case 12: depthwise_band(5, 2, 1, s); break;
    }
}
