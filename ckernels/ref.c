/* The reference: every kernel in plain C, one output after the other, as the equation in kernels.h reads. The fast ones are
   tested against it; it is also what a machine without any of their instruction sets runs. */
#include "isa.h"

static float clamped(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Y[r, p], row r of group r / 4: the blocks of the other groups are counted past. */
static void spmm_ref(const spmm_f32 *s) {
    for (int r = 0; r < 4 * s->groups; r++) {
        for (int p = 0; p < s->n; p++) {
            float sum = s->bias[r];
            int64_t block = 0;
            for (int c = 0; c < s->k_tiles; c++)
                for (int g = 0; g < s->groups; g++) {
                    const int n = s->count[c * s->groups + g];
                    for (int i = 0; g == r / 4 && i < n; i++) {
                        const int64_t column = (int64_t)c * s->k_tile + (s->col ? s->col[block + i] : i);
                        sum += s->w[4 * (block + i) + r % 4] * s->x[column * s->x_pitch + p];
                    }
                    block += n;
                }
            if (s->add) sum += s->add[r * s->add_pitch + p];
            s->y[r * s->y_pitch + p] = clamped(sum, s->lo, s->hi);
        }
    }
}

/* y[c, y, x] = the sum over taps (i, j) of weight[c, i, j] * x[c, y * stride + i - pad, x * stride + j - pad]. */
static void depthwise_ref(const depthwise_f32 *s) {
    for (int c = 0; c < s->c; c++)
        for (int y = s->top; y < s->bottom; y++)
            for (int x = 0; x < s->out_w; x++) {
                float sum = s->bias[c];
                for (int i = 0; i < s->k; i++)
                    for (int j = 0; j < s->k; j++) {
                        const int from_y = y * s->stride + i - s->pad, from_x = x * s->stride + j - s->pad;
                        const int inside = from_y >= 0 && from_y < s->h && from_x >= 0 && from_x < s->w;
                        const float pixel = inside ? s->x[c * s->x_pitch + (int64_t)from_y * s->w + from_x] : 0.0f;
                        sum += s->weight[(c * s->k + i) * s->k + j] * pixel;
                    }
                s->y[c * s->y_pitch + (int64_t)(y - s->top) * s->out_w + x] = clamped(sum, s->lo, s->hi);
            }
}

/* y[(c, i, j), (y, x)] = x[c, y * stride + i - pad, x * stride + j - pad]. */
static void im2col_ref(const im2col_f32 *s) {
    for (int row = 0; row < s->c * s->k * s->k; row++) {
        const int c = row / (s->k * s->k), i = row / s->k % s->k, j = row % s->k;
        float *to = s->y + row * s->y_pitch;
        for (int y = s->top; y < s->bottom; y++)
            for (int x = 0; x < s->out_w; x++) {
                const int from_y = y * s->stride + i - s->pad, from_x = x * s->stride + j - s->pad;
                const int inside = from_y >= 0 && from_y < s->h && from_x >= 0 && from_x < s->w;
                const int64_t pixel = (int64_t)from_y * s->w + from_x;
                *to++ = inside ? s->x[c * s->x_channel + pixel * s->x_pixel] : 0.0f;
            }
    }
}

static void gemv_ref(const gemv_f32 *s) {
    const float *w = s->w;
    const uint16_t *col = s->col;
    for (int g = 0; g < s->groups; g++) {
        for (int r = 0; r < 16; r++) {
            float sum = s->bias[16 * g + r];
            for (int i = 0; i < s->count[g]; i++) sum += w[16 * i + r] * s->x[col ? col[i] : i];
            s->y[16 * g + r] = clamped(sum, s->lo, s->hi);
        }
        w += 16 * (ptrdiff_t)s->count[g];
        if (col) col += s->count[g];
    }
}

static void mean_ref(const mean_f32 *s) {
    for (int c = 0; c < s->c; c++) {
        const float *x = s->x + c * s->x_pitch;
        float sum[4] = {0}; /* four lanes, as the smallest vectors have: their results are the same to the bit */
        for (int p = 0; p < s->n; p++) sum[p % 4] += x[p];
        s->y[c] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)s->n;
    }
}

static void add_ref(const add_f32 *s) {
    for (int64_t i = 0; i < s->n; i++) s->y[i] = clamped(s->a[i] + s->b[i], s->lo, s->hi);
}

static float peak_ref(int64_t rounds) {
    float sums[16] = {0}, sum = 0.0f;
    const volatile float a = 0.5f;
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < 16; i++) sums[i] = sums[i] * a + (float)i;
    for (int i = 0; i < 16; i++) sum += sums[i];
    return sum;
}

static int quantise_ref(const quantise_u8 *s) {
    int nonfinite = 0;
    for (int c = 0; c < (s->c + 3) / 4 * 4; c++)
        for (int p = 0; p < s->n; p++) {
            const float x = s->x[(c < s->c ? c : s->c - 1) * s->x_pitch + p];
            /* the clamp keeps the product and the sum apart: fused, they would round differently */
            const float scaled = clamped(x * s->inv_scale, (float)-s->zero, (float)(255 - s->zero));
            const float rounded = scaled + (float)(ROUND_MAGIC + s->zero); /* its low byte is the integer */
            nonfinite |= x - x != 0.0f;
            s->y[4 * (c / 4 * s->y_pitch + p) + c % 4] = (uint8_t)(int32_t)(rounded == rounded ? rounded : 0.0f);
        }
    return nonfinite;
}

/* As spmm_ref, four columns at a time: y = scale * (sum of w x - zero * sum of w) + bias. */
static void spmm_int8_ref(const spmm_u8s8 *s) {
    for (int r = 0; r < 4 * s->groups; r++) {
        for (int p = 0; p < s->n; p++) {
            uint32_t sum = (uint32_t)-s->zero * (uint32_t)s->sums[r]; /* unsigned: it may wrap, as in all other sets */
            int64_t block = 0;
            for (int c = 0; c < s->k_tiles; c++)
                for (int g = 0; g < s->groups; g++) {
                    const int n = s->count[c * s->groups + g];
                    for (int i = 0; g == r / 4 && i < n; i++) {
                        const int64_t column = (int64_t)c * s->k_tile + (s->col ? s->col[block + i] : i);
                        const int8_t *w = s->w + 16 * (block + i) + 4 * (r % 4);
                        const uint8_t *x = s->x + 4 * (column * s->x_pitch + p);
                        for (int j = 0; j < 4; j++) sum += (uint32_t)(w[j] * x[j]);
                    }
                    block += n;
                }
            float y = (float)(int32_t)sum * s->scale[r] + s->bias[r];
            if (s->add) y += s->add[r * s->add_pitch + p];
            s->y[r * s->y_pitch + p] = clamped(y, s->lo, s->hi);
        }
    }
}

const isa isa_ref = {"ref", 1, spmm_ref, depthwise_ref, im2col_ref, gemv_ref, mean_ref, add_ref, peak_ref,
                     quantise_ref, spmm_int8_ref};
