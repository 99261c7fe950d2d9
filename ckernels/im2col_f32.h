/* im2col_f32: x (c, h, w) -> Y (c * k * k_w, rows * out_w), so that a convolution is a product W (M, c * k * k_w) Y. A row
   of Y is a plane shifted by its tap, with zeros where the window reaches beyond the map; a copy where neither the stride nor the
   layout spreads it, which is why steps 1 and 2 are compiled by themselves. */
INLINE void im2col_copy(const int64_t step, float *to, const float *from, int n) {
    for (int x = 0; x < n; x++) to[x] = from[x * step];
}

/* Row (i, j) of one channel: output column x meets input column x * stride_w + right. */
INLINE void im2col_tap(const im2col_f32 *s, const float *plane, int i, int j, float *to) {
    const int right = j * s->dilation_w - s->pad_w;
    const int first = right < 0 ? (s->stride_w - 1 - right) / s->stride_w : 0; /* output columns first .. past - 1 */
    const int reach = s->w - 1 - right;                                        /* meet a pixel of the plane */
    const int past = reach < 0 ? 0 : reach / s->stride_w + 1 < s->out_w ? reach / s->stride_w + 1 : s->out_w;
    const int64_t step = s->stride_w * s->x_pixel;
    for (int y = s->top; y < s->bottom; y++, to += s->out_w) {
        const int from_y = y * s->stride + i * s->dilation - s->pad;
        if (from_y < 0 || from_y >= s->h || past <= first) {
            for (int x = 0; x < s->out_w; x++) to[x] = 0.0f;
            continue;
        }
        const float *from = plane + ((int64_t)from_y * s->w + first * s->stride_w + right) * s->x_pixel;
        for (int x = 0; x < first; x++) to[x] = 0.0f;
        if (step == 1) im2col_copy(1, to + first, from, past - first);
        else if (step == 2) im2col_copy(2, to + first, from, past - first);
        else im2col_copy(step, to + first, from, past - first);
        for (int x = past; x < s->out_w; x++) to[x] = 0.0f;
    }
}

static void im2col(const im2col_f32 *s) {
    float *to = s->y;
    for (int c = 0; c < s->c; c++)
        for (int i = 0; i < s->k; i++)
            for (int j = 0; j < s->k_w; j++, to += s->y_pitch) im2col_tap(s, s->x + c * s->x_channel, i, j, to);
}
