/* resize_f32: the two rows of an output row become one line, for whole rows at a time; then each output column takes its two
   of the line. */
static void resize(const resize_f32 *s) {
    for (int c = 0; c < s->c; c++) {
        const float *plane = s->x + c * s->x_pitch;
        float *y = s->y + c * s->y_pitch;
        for (int i = 0; i < s->out_h; i++, y += s->out_w) {
            const float *a = plane + (int64_t)s->rows[2 * i] * s->w, *b = plane + (int64_t)s->rows[2 * i + 1] * s->w;
            const float *line = a;
            const V weight = splat(s->row_weight[i]);
            if (s->row_weight[i] != 0.0f) {
                line = s->workspace;
                for (int x = 0; x < s->w; x += LANES) {
                    const V first = load(a + x);
                    store(s->workspace + x, madd(weight, load(b + x) - first, first));
                }
            }
            for (int j = 0; j < s->out_w; j++) {
                const float first = line[s->columns[2 * j]], w = s->column_weight[j];
                y[j] = w == 0.0f ? first : first + w * (line[s->columns[2 * j + 1]] - first);
            }
        }
    }
}
