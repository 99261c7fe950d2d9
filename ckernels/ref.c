/* The reference: every kernel in plain C, one output after the other, as the equation in kernels.h reads. The fast ones are
   tested against it; it is also what a machine without any of their instruction sets runs. */
#include "isa.h"

static float clamped(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Y[r, p], row r of group r / block: the blocks of the other groups are counted past. */
static void spmm_ref(const spmm_f32 *s) {
    for (int r = 0; r < s->block * s->groups; r++) {
        for (int p = 0; p < s->n; p++) {
            float sum = s->bias[r];
            int64_t block = 0;
            const int all = s->before + s->groups + s->behind;
            for (int c = 0; c < s->k_tiles; c++)
                for (int g = 0; g < all; g++) {
                    const int n = s->count[c * all + g];
                    for (int i = 0; g - s->before == r / s->block && i < n; i++) {
                        const int64_t column = (int64_t)c * s->k_tile + (s->col ? s->col[block + i] : i);
                        sum += s->w[s->block * (block + i) + r % s->block] * s->x[column * s->x_pitch + p];
                    }
                    block += n;
                }
            if (s->add) sum += s->add[r * s->add_pitch + p];
            s->y[r * s->y_pitch + p] = clamped(sum, s->lo, s->hi);
        }
    }
}

/* y[c, y, x] = the sum over taps (i, j) of weight[c, i, j] * x[c, y * stride + i - pad, x * stride + j - pad_w]. */
static void depthwise_ref(const depthwise_f32 *s) {
    for (int c = 0; c < s->c; c++)
        for (int y = s->top; y < s->bottom; y++)
            for (int x = 0; x < s->out_w; x++) {
                float sum = s->bias[c];
                for (int i = 0; i < s->k; i++)
                    for (int j = 0; j < s->k; j++) {
                        const int from_y = y * s->stride + i - s->pad, from_x = x * s->stride + j - s->pad_w;
                        const int inside = from_y >= 0 && from_y < s->h && from_x >= 0 && from_x < s->w;
                        const float pixel = inside ? s->x[c * s->x_pitch + (int64_t)from_y * s->w + from_x] : 0.0f;
                        sum += s->weight[(c * s->k + i) * s->k + j] * pixel;
                    }
                s->y[c * s->y_pitch + (int64_t)(y - s->top) * s->out_w + x] = clamped(sum, s->lo, s->hi);
            }
}

/* y[(c, i, j), (y, x)] = x[c, y * stride + i * dilation - pad, x * stride_w + j * dilation_w - pad_w]. */
static void im2col_ref(const im2col_f32 *s) {
    for (int row = 0; row < s->c * s->k * s->k_w; row++) {
        const int c = row / (s->k * s->k_w), i = row / s->k_w % s->k, j = row % s->k_w;
        float *to = s->y + row * s->y_pitch;
        for (int y = s->top; y < s->bottom; y++)
            for (int x = 0; x < s->out_w; x++) {
                const int from_y = y * s->stride + i * s->dilation - s->pad;
                const int from_x = x * s->stride_w + j * s->dilation_w - s->pad_w;
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

/* -- functions of one number, in fp64, by their series --------------------------------------------------------------- */

/* exp(n ln 2 + r) = 2^n exp(r); beyond what floats hold it is 0 or infinity. */
static double exp_ref(double v) {
    if (v != v) return v;
    if (v < -200.0) return 0.0;
    if (v > 200.0) return (double)__builtin_inff();
    const int n = (int)(v * 1.4426950408889634 + (v < 0.0 ? -0.5 : 0.5));
    const double r = v - n * 0.6931471805599453;
    double sum = 1.0, term = 1.0;
    for (int i = 1; i < 18; i++) term *= r / i, sum += term;
    for (int i = 0; i < n; i++) sum *= 2.0;
    for (int i = 0; i > n; i--) sum *= 0.5;
    return sum;
}

/* 2 / sqrt(pi) times the sum of (-1)^i v^(2 i + 1) / (i! (2 i + 1)). */
static double erf_ref(double v) {
    if (v > 5.0 || v < -5.0) return v > 0.0 ? 1.0 : -1.0;
    double sum = v, power = v;
    for (int i = 1; i < 120; i++) power *= -v * v / i, sum += power / (2 * i + 1);
    return 1.1283791670955126 * sum;
}

static double tanh_ref(double v) {
    if (v > 20.0 || v < -20.0) return v > 0.0 ? 1.0 : -1.0;
    const double size = v < 0.0 ? -v : v;
    if (size < 1e-4) return v;
    const double e = exp_ref(2.0 * v);
    return (e - 1.0) / (e + 1.0);
}

/* log(1 + exp(v)) = v + log(1 + exp(-v)), and log(1 + u) as twice the area tangent of u / (2 + u). */
static double softplus_ref(double v) {
    const double u = exp_ref(v > 0.0 ? -v : v), s = u / (2.0 + u);
    double sum = 0.0, power = s;
    for (int i = 1; i < 60; i += 2, power *= s * s) sum += power / i;
    return (v > 0.0 ? v : 0.0) + 2.0 * sum;
}

/* Newton's steps from above, which end where they no longer go down. */
static double sqrt_ref(double v) {
    if (!(v > 0.0) || v - v != 0.0) return v < 0.0 ? (double)__builtin_nanf("") : v;
    double root = v > 1.0 ? v : 1.0;
    for (double next = (root + v / root) / 2.0; next < root; next = (root + v / root) / 2.0) root = next;
    return root;
}

/* The nearest integer, halves to even. */
static double round_ref(double v) {
    const double large = 4503599627370496.0; /* 2^52: from here on every number is one */
    if (!(v < large && v > -large)) return v;
    return v < 0.0 ? -(large - v - large) : v + large - large;
}

static double hard(double v) { return (v + 3.0 < 0.0 ? 0.0 : v + 3.0 > 6.0 ? 6.0 : v + 3.0) / 6.0; }

static double activation_ref(int act, double x, double slope) {
    const double u = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    switch (act) {
        case ACT_SIGMOID: return 1.0 / (1.0 + exp_ref(-x));
        case ACT_SILU: return x / (1.0 + exp_ref(-x));
        case ACT_HARDSIGMOID: return hard(x);
        case ACT_HARDSWISH: return x * hard(x);
        case ACT_GELU: return x * 0.5 * (1.0 + erf_ref(x * 0.7071067811865476));
        case ACT_GELU_TANH: return x * 0.5 * (1.0 + tanh_ref(u));
        case ACT_TANH: return tanh_ref(x);
        case ACT_ELU: return x > 0.0 ? x : exp_ref(x) - 1.0;
        case ACT_MISH: return x * tanh_ref(softplus_ref(x));
        case ACT_SOFTPLUS: return x > 20.0 ? x : softplus_ref(x);
        case ACT_EXP: return exp_ref(x);
        case ACT_SQRT: return sqrt_ref(x);
        case ACT_ROUND: return round_ref(x);
        case ACT_PRELU: return x < 0.0 ? x * slope : x;
    }
    return x;
}

static void unary_ref(const unary_f32 *s) {
    for (int c = 0; c < s->c; c++)
        for (int64_t i = 0; i < s->n; i++) {
            const float x = clamped(s->x[c * s->x_pitch + i], s->lo, s->hi);
            const double slope = s->act == ACT_PRELU ? (double)s->slopes[c] : 0.0;
            s->y[c * s->y_pitch + i] = s->act ? (float)activation_ref(s->act, (double)x, slope) : x;
        }
}

/* -- whole maps ----------------------------------------------------------------------------------------------------- */

static float greater_ref(float a, float b) { return b > a || b != b ? b : a; }
static float less_ref(float a, float b) { return b < a || b != b ? b : a; }

static float binary_of_ref(int fn, float a, float b) {
    switch (fn) {
        case BINARY_SUB: return a - b;
        case BINARY_MUL: return a * b;
        case BINARY_DIV: return a / b;
        case BINARY_MAX: return greater_ref(a, b);
        case BINARY_MIN: return less_ref(a, b);
        case BINARY_RSUB: return b - a;
        case BINARY_RDIV: return b / a;
    }
    return a + b;
}

static void binary_ref(const binary_f32 *s) {
    for (int c = 0; c < s->c; c++)
        for (int64_t i = 0; i < s->n; i++) {
            const float b = s->b[c * s->b_pitch + (s->b_is_one ? 0 : i)];
            s->y[c * s->y_pitch + i] = clamped(binary_of_ref(s->fn, s->a[c * s->a_pitch + i], b), s->lo, s->hi);
        }
}

static float window_ref(const pool_f32 *s, const float *plane, int i, int j) {
    const uint32_t *rows = s->rows + 2 * i, *columns = s->columns + 2 * j;
    float all = s->fn == POOL_MAX ? -__builtin_inff() : 0.0f;
    for (uint32_t y = rows[0]; y < rows[1]; y += (uint32_t)s->step)
        for (uint32_t x = columns[0]; x < columns[1]; x += (uint32_t)s->step_w) {
            const float v = plane[(int64_t)y * s->w + x];
            all = s->fn == POOL_MAX ? greater_ref(all, v) : all + v;
        }
    return s->fn == POOL_MAX ? all : all * (s->row_scale[i] * s->column_scale[j]);
}

static void pool_ref(const pool_f32 *s) {
    for (int c = 0; c < s->c; c++)
        for (int i = 0; i < s->out_h; i++)
            for (int j = 0; j < s->out_w; j++)
                s->y[c * s->y_pitch + (int64_t)i * s->out_w + j] = window_ref(s, s->x + c * s->x_pitch, i, j);
}

static void move_ref(const move_f32 *s) {
    int64_t at[6] = {0}, n = 1;
    for (int axis = 0; axis < 6; axis++) n *= s->sizes[axis];
    for (; n; n--) {
        int64_t x = 0, y = 0;
        for (int axis = 0; axis < 6; axis++) x += at[axis] * s->x_strides[axis], y += at[axis] * s->y_strides[axis];
        s->y[y] = s->x[x];
        for (int axis = 5; axis >= 0 && ++at[axis] == s->sizes[axis]; axis--) at[axis] = 0;
    }
}

static float between_ref(float a, float b, float weight) { return weight == 0.0f ? a : a + weight * (b - a); }

static void resize_ref(const resize_f32 *s) {
    for (int c = 0; c < s->c; c++)
        for (int i = 0; i < s->out_h; i++)
            for (int j = 0; j < s->out_w; j++) {
                const float *plane = s->x + c * s->x_pitch, weight = s->row_weight[i];
                const float *a = plane + (int64_t)s->rows[2 * i] * s->w, *b = plane + (int64_t)s->rows[2 * i + 1] * s->w;
                const uint32_t left = s->columns[2 * j], right = s->columns[2 * j + 1];
                const float from = between_ref(a[left], b[left], weight), to = between_ref(a[right], b[right], weight);
                s->y[c * s->y_pitch + (int64_t)i * s->out_w + j] = between_ref(from, to, s->column_weight[j]);
            }
}

static void softmax_ref(const softmax_f32 *s) {
    for (int64_t first = 0; first < s->c; first += s->planes)
        for (int64_t i = 0; i < s->n; i++) {
            const float *x = s->x + first * s->x_pitch + i;
            float *y = s->y + first * s->y_pitch + i, greatest = *x;
            double sum = 0.0;
            for (int c = 1; c < s->planes; c++) greatest = greater_ref(greatest, x[c * s->x_pitch]);
            for (int c = 0; c < s->planes; c++) sum += exp_ref((double)(x[c * s->x_pitch] - greatest));
            for (int c = 0; c < s->planes; c++)
                y[c * s->y_pitch] = (float)(exp_ref((double)(x[c * s->x_pitch] - greatest)) / sum);
        }
}

/* Planes first .. first + planes - 1 at pixels from .. to - 1. */
static void normalise_ref(const norm_f32 *s, int64_t first, int64_t from, int64_t to) {
    const double n = (double)s->planes * (double)(to - from);
    double mean = 0.0, square = 0.0;
    for (int64_t c = first; c < first + s->planes && s->fn != NORM_RMS; c++)
        for (int64_t i = from; i < to; i++) mean += (double)s->x[c * s->x_pitch + i] / n;
    for (int64_t c = first; c < first + s->planes; c++)
        for (int64_t i = from; i < to; i++) {
            const double d = (double)s->x[c * s->x_pitch + i] - mean;
            square += d * d / n;
        }
    const double scale = 1.0 / sqrt_ref(square + (double)s->eps);
    for (int64_t c = first; c < first + s->planes; c++)
        for (int64_t i = from; i < to; i++) {
            const double d = ((double)s->x[c * s->x_pitch + i] - mean) * scale;
            s->y[c * s->y_pitch + i] = (float)(d * (double)s->weight[c] + (double)s->bias[c]);
        }
}

static void norm_ref(const norm_f32 *s) {
    for (int64_t c = 0; c < s->c; c++)
        for (int64_t i = 0; s->fn == NORM_AFFINE && i < s->n; i++)
            s->y[c * s->y_pitch + i] = s->x[c * s->x_pitch + i] * s->weight[c] + s->bias[c];
    if (s->fn == NORM_AFFINE) return;
    for (int64_t c = 0; c < s->c; c += s->planes)
        if (s->fn == NORM_PLANES) normalise_ref(s, c, 0, s->n);
        else
            for (int64_t i = 0; i < s->n; i++) normalise_ref(s, c, i, i + 1);
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
            const int all = s->before + s->groups + s->behind;
            for (int c = 0; c < s->k_tiles; c++)
                for (int g = 0; g < all; g++) {
                    const int n = s->count[c * all + g];
                    for (int i = 0; g - s->before == r / 4 && i < n; i++) {
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

const isa isa_ref = {"ref", 1, spmm_ref, depthwise_ref, im2col_ref, gemv_ref, mean_ref, peak_ref, quantise_ref,
                     spmm_int8_ref, unary_ref, binary_ref, pool_ref, move_ref, resize_ref, softmax_ref, norm_ref};
