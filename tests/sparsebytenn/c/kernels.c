/* kernels [isa] [seed] [rounds]: every kernel of an instruction set against the reference over random shapes that hurt.

   All memory is cut to the size that kernels.h promises to be enough, so an address sanitizer sees a step too far; what
   a kernel may read but must not use (behind a plane's last pixel) is NaN. Prints what was compared; ends with 1 and a
   line for each kernel that is wrong. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sbnn.h"

enum { SPMM, DEPTHWISE, IM2COL, GEMV, MEAN, QUANTISE, SPMM_INT8, UNARY, BINARY, POOL, MOVE, RESIZE, SOFTMAX, NORM, KINDS };
static const char *const NAMES[KINDS] = {"spmm", "depthwise", "im2col", "gemv", "mean", "quantise", "spmm_int8", "unary",
                                         "binary", "pool", "move", "resize", "softmax", "norm"};

typedef struct {
    uint64_t state;
    const isa *kernels, *ref;
    int poison; /* one input number is NaN: the output must have a NaN wherever the reference has one, and some */
    long compared[KINDS], nans[KINDS], wrong[KINDS];
} test;

static uint32_t random32(test *t) {
    t->state = t->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(t->state >> 33);
}
static int between(test *t, int low, int high) { return low + (int)(random32(t) % (uint32_t)(high - low + 1)); }
static float number(test *t) { return (float)between(t, -1000, 1000) / 500.0f; }
static int64_t round_up(int64_t n) { return (n + 15) / 16 * 16; }
static int64_t pitch(test *t, int64_t pixels) { return round_up(pixels) + 16 + 16 * between(t, 0, 1); }

static float *numbers(test *t, int64_t n) {
    float *made = malloc((size_t)n * sizeof(float) + !n);
    for (int64_t i = 0; i < n; i++) made[i] = number(t);
    return made;
}

/* c planes of n pixels, NaN behind each. */
static float *planes(test *t, int64_t c, int64_t n, int64_t pitch) {
    float *made = numbers(t, c * pitch);
    for (int64_t p = 0; p < c; p++)
        for (int64_t i = n; i < pitch; i++) made[p * pitch + i] = NAN;
    return made;
}

static void bounds(test *t, float *lo, float *hi) {
    *lo = between(t, 0, 1) ? 0.0f : -INFINITY;
    *hi = between(t, 0, 1) ? 6.0f : INFINITY;
}

/* The first n pixels of c planes beside those of the reference. */
static void compare(test *t, int kind, const float *a, const float *b, int64_t c, int64_t n, int64_t pitch) {
    int wrong = 0;
    for (int64_t p = 0; p < c; p++)
        for (int64_t i = 0; i < n; i++) {
            const float x = a[p * pitch + i], y = b[p * pitch + i];
            t->nans[kind] += isnan(y) != 0;
            if (isnan(x) != isnan(y) || (!isnan(x) && !(x == y || fabsf(x - y) <= 2e-4f * (1 + fabsf(y))))) wrong = 1;
        }
    t->compared[kind]++;
    t->wrong[kind] += wrong;
}

/* count and col of a random matrix; returns how many blocks it has. `share` in percent of all, 100 is dense. */
static int64_t blocks(test *t, int groups, int columns, int k_tile, int share, uint16_t **count, uint16_t **col) {
    const int k_tiles = (columns + k_tile - 1) / k_tile;
    *count = malloc(sizeof(uint16_t) * (size_t)(k_tiles * groups));
    uint16_t *every = malloc(sizeof(uint16_t) * (size_t)(groups * columns));
    int64_t n = 0;
    for (int c = 0; c < k_tiles; c++)
        for (int g = 0; g < groups; g++) {
            const int64_t before = n;
            for (int i = 0; i < k_tile && c * k_tile + i < columns; i++)
                if (between(t, 1, 100) <= share) every[n++] = (uint16_t)i;
            (*count)[c * groups + g] = (uint16_t)(n - before);
        }
    *col = malloc(sizeof(uint16_t) * (size_t)n + !n);
    memcpy(*col, every, sizeof(uint16_t) * (size_t)n);
    free(every);
    return n;
}

static void test_spmm(test *t) {
    const int rows_of_one[] = {1, 4, 4, 8, 16}, block = rows_of_one[between(t, 0, 4)];
    const int columns = between(t, 1, 40), k_tile = block == 16 ? columns : between(t, 1, columns);
    const int every = between(t, 0, 2) == 0 || t->poison; /* a column that no block reads gives no NaN */
    const int share = every ? 100 : between(t, 0, 99), indexed = !every || block == 1 || between(t, 0, 1);
    const int sizes[] = {between(t, 1, 40), between(t, 1, 300), 16 * between(t, 1, 9) + 1}, n = sizes[between(t, 0, 2)];
    spmm_f32 s = {.block = block, .groups = between(t, 1, 6), .k_tile = k_tile, .n = n};
    uint16_t *count, *col;
    const int64_t made = blocks(t, s.groups, columns, k_tile, share, &count, &col), rows = block * s.groups;
    s.k_tiles = (columns + k_tile - 1) / k_tile, s.x_pitch = pitch(t, n), s.y_pitch = s.add_pitch = pitch(t, n);
    float *w = numbers(t, block * made), *bias = numbers(t, rows), *x = planes(t, columns, n, s.x_pitch);
    float *more = planes(t, rows, n, s.y_pitch), *y = planes(t, rows, n, s.y_pitch), *z = planes(t, rows, n, s.y_pitch);
    if (t->poison) x[between(t, 0, columns - 1) * s.x_pitch + (between(t, 0, 1) ? between(t, 0, n - 1) : n - 1)] = NAN;
    bounds(t, &s.lo, &s.hi);
    s.count = count, s.col = indexed ? col : NULL, s.w = w, s.bias = bias, s.x = x;
    s.add = between(t, 0, 1) ? more : NULL;
    s.y = y, t->kernels->spmm(&s);
    s.y = z, t->ref->spmm(&s);
    compare(t, SPMM, y, z, rows, n, s.y_pitch);
    free(count), free(col), free(w), free(bias), free(x), free(more), free(y), free(z);
}

static void test_depthwise(test *t) {
    const int k = 3 + 2 * between(t, 0, 2), even = between(t, 0, 1), pad = between(t, 0, k - 1);
    depthwise_f32 s = {.c = between(t, 1, 3), .k = k, .stride = between(t, 1, 2), .pad = pad};
    s.pad_w = even ? pad : between(t, 0, k - 1);
    s.h = 1 + between(t, 0, 12), s.w = 1 + (between(t, 0, 1) ? between(t, 0, 20) : between(t, 0, 80));
    int out_h = (s.h - 1 + s.pad) / s.stride + 1; /* the most that may be: the last window begins in x */
    s.out_w = (s.w - 1 + s.pad_w) / s.stride + 1;
    if (even && s.h + 2 * pad >= k && s.w + 2 * pad >= k) {
        out_h = (s.h + 2 * pad - k) / s.stride + 1, s.out_w = (s.w + 2 * pad - k) / s.stride + 1;
    } else
        out_h = between(t, 1, out_h), s.out_w = between(t, 1, s.out_w);
    s.top = between(t, 0, out_h - 1), s.bottom = between(t, s.top + 1, out_h);
    const int64_t n = (int64_t)s.h * s.w, made = (int64_t)(s.bottom - s.top) * s.out_w;
    s.x_pitch = pitch(t, n), s.y_pitch = made + 16;
    float *x = planes(t, s.c, n, s.x_pitch), *weight = numbers(t, s.c * k * k), *bias = numbers(t, s.c);
    float *workspace = planes(t, 1, 0, depthwise_workspace(s.w, k, s.stride, s.bottom - s.top));
    float *y = planes(t, s.c, 0, s.y_pitch), *z = planes(t, s.c, 0, s.y_pitch);
    if (t->poison) x[between(t, 0, s.c - 1) * s.x_pitch + between(t, 0, (int)n - 1)] = NAN;
    bounds(t, &s.lo, &s.hi);
    s.x = x, s.weight = weight, s.bias = bias, s.workspace = workspace;
    s.y = y, t->kernels->depthwise(&s);
    s.y = z, t->ref->depthwise(&s);
    compare(t, DEPTHWISE, y, z, s.c, made, s.y_pitch);
    free(x), free(weight), free(bias), free(workspace), free(y), free(z);
}

static void test_im2col(test *t) {
    im2col_f32 s = {.c = between(t, 1, 4), .k = between(t, 1, 7), .k_w = between(t, 1, 7), .stride = between(t, 1, 4)};
    s.stride_w = between(t, 1, 4), s.pad = between(t, 0, 9), s.pad_w = between(t, 0, 9);
    s.dilation = between(t, 1, 3), s.dilation_w = between(t, 1, 3);
    s.h = 1 + between(t, 0, 12), s.w = 1 + between(t, 0, 40);
    const int out_h = between(t, 1, 14), interleaved = between(t, 0, 1);
    s.out_w = between(t, 1, 40);
    s.top = between(t, 0, out_h - 1), s.bottom = between(t, s.top + 1, out_h);
    const int64_t n = (int64_t)s.h * s.w, made = (int64_t)(s.bottom - s.top) * s.out_w;
    const int64_t plane = pitch(t, n), rows = (int64_t)s.c * s.k * s.k_w;
    s.x_channel = interleaved ? 1 : plane, s.x_pixel = interleaved ? s.c : 1, s.y_pitch = pitch(t, made);
    float *x = interleaved ? planes(t, 1, n * s.c, round_up(n * s.c) + 16) : planes(t, s.c, n, plane);
    float *y = planes(t, rows, 0, s.y_pitch), *z = planes(t, rows, 0, s.y_pitch);
    if (t->poison) x[between(t, 0, (int)n - 1)] = NAN;
    s.x = x;
    s.y = y, t->kernels->im2col(&s);
    s.y = z, t->ref->im2col(&s);
    compare(t, IM2COL, y, z, rows, made, s.y_pitch);
    free(x), free(y), free(z);
}

static void test_gemv(test *t) {
    const int share = between(t, 0, 2) ? between(t, 0, 99) : 100;
    gemv_f32 s = {.groups = between(t, 1, 5), .n = between(t, 1, 300)};
    uint16_t *count, *col;
    const int64_t made = blocks(t, s.groups, s.n, s.n, share, &count, &col), rows = 16 * s.groups;
    float *w = numbers(t, 16 * made), *bias = numbers(t, rows), *x = numbers(t, s.n);
    float *y = numbers(t, rows), *z = numbers(t, rows);
    if (t->poison) x[between(t, 0, s.n - 1)] = NAN;
    bounds(t, &s.lo, &s.hi);
    s.count = count, s.col = share == 100 ? NULL : col, s.w = w, s.bias = bias, s.x = x;
    s.y = y, t->kernels->gemv(&s);
    s.y = z, t->ref->gemv(&s);
    compare(t, GEMV, y, z, 1, rows, rows);
    free(count), free(col), free(w), free(bias), free(x), free(y), free(z);
}

static void test_mean(test *t) {
    mean_f32 s = {.c = between(t, 1, 9), .n = between(t, 1, 200)};
    s.x_pitch = pitch(t, s.n);
    float *x = planes(t, s.c, s.n, s.x_pitch), *y = numbers(t, s.c), *z = numbers(t, s.c);
    if (t->poison) x[between(t, 0, s.n - 1)] = NAN;
    s.x = x;
    s.y = y, t->kernels->mean(&s);
    s.y = z, t->ref->mean(&s);
    compare(t, MEAN, y, z, 1, s.c, s.c);
    free(x), free(y), free(z);
}

/* An int8 product of numbers, some of them halfway between two bytes. Each set reads its own bytes: no other does. */
static void test_int8(test *t) {
    const int columns = between(t, 1, 70), n = between(t, 0, 1) ? between(t, 1, 40) : between(t, 1, 300);
    const int quads = (columns + 3) / 4, k_tile = between(t, 1, quads);
    const int share = between(t, 0, 2) ? between(t, 0, 99) : 100;
    spmm_u8s8 s = {.groups = between(t, 1, 6), .k_tiles = (quads + k_tile - 1) / k_tile, .k_tile = k_tile, .n = n};
    quantise_u8 q = {.c = columns, .n = n, .inv_scale = (float)between(t, 1, 250) / 2.0f};
    s.zero = q.zero = between(t, 0, 1) ? 0 : between(t, 1, 255);
    uint16_t *count, *col;
    const int64_t made = blocks(t, s.groups, quads, k_tile, share, &count, &col), rows = 4 * s.groups;
    q.x_pitch = pitch(t, n), q.y_pitch = s.x_pitch = pitch(t, n), s.y_pitch = s.add_pitch = pitch(t, n);
    int8_t *w = malloc((size_t)(16 * made) + !made);
    for (int64_t i = 0; i < 16 * made; i++) w[i] = (int8_t)between(t, -128, 127);
    int32_t *sums = calloc((size_t)rows, sizeof(int32_t));
    for (int64_t i = 0, block = 0; i < s.k_tiles * s.groups; block += count[i++])
        for (int64_t j = 16 * block; j < 16 * (block + count[i]); j++) sums[4 * (i % s.groups) + j / 4 % 4] += w[j];
    float *bias = numbers(t, rows), *scale = numbers(t, rows), *x = planes(t, columns, n, q.x_pitch);
    float *more = planes(t, rows, n, s.y_pitch), *y = planes(t, rows, n, s.y_pitch), *z = planes(t, rows, n, s.y_pitch);
    uint8_t *quantised = malloc((size_t)(4 * quads * q.y_pitch)), *expected = malloc((size_t)(4 * quads * q.y_pitch));
    for (int64_t i = 0; i < rows; i++) scale[i] /= 1 << 12;
    if (t->poison) x[between(t, 0, columns - 1) * q.x_pitch + between(t, 0, n - 1)] = between(t, 0, 1) ? NAN : INFINITY;
    bounds(t, &s.lo, &s.hi);
    q.x = x;
    s.count = count, s.col = share == 100 ? NULL : col, s.w = w, s.sums = sums, s.scale = scale, s.bias = bias;
    s.add = between(t, 0, 1) ? more : NULL;
    q.y = quantised;
    const int nonfinite = t->kernels->quantise(&q);
    s.x = quantised, s.y = y, t->kernels->spmm_int8(&s);
    q.y = expected;
    const int is_nonfinite = t->ref->quantise(&q);
    s.x = expected, s.y = z, t->ref->spmm_int8(&s);
    t->wrong[QUANTISE] += nonfinite != t->poison || is_nonfinite != t->poison;
    t->compared[QUANTISE]++;
    t->nans[QUANTISE] += is_nonfinite;
    compare(t, SPMM_INT8, y, z, rows, t->poison ? 0 : n, s.y_pitch);
    free(count), free(col), free(w), free(sums), free(bias), free(scale), free(x), free(more), free(y), free(z);
    free(quantised), free(expected);
}

/* What a test of whole maps needs: x (c, n) and two places for y (c, out_n), planes of their pitches. */
typedef struct {
    float *x, *y, *z;
    int64_t x_pitch, y_pitch;
} maps;

static maps make_maps(test *t, int64_t c, int64_t n, int64_t out_n) {
    maps m = {.x_pitch = pitch(t, n), .y_pitch = pitch(t, out_n)};
    m.x = planes(t, c, n, m.x_pitch), m.y = planes(t, c, 0, m.y_pitch), m.z = planes(t, c, 0, m.y_pitch);
    if (t->poison) m.x[between(t, 0, (int)c - 1) * m.x_pitch + between(t, 0, (int)n - 1)] = between(t, 0, 2) ? NAN : INFINITY;
    return m;
}

static void free_maps(maps m) { free(m.x), free(m.y), free(m.z); }

static void test_unary(test *t) {
    unary_f32 s = {.act = between(t, 0, ACT_PRELU), .c = between(t, 1, 4), .n = between(t, 1, 100)};
    const maps m = make_maps(t, s.c, s.n, s.n);
    float *slopes = numbers(t, s.c);
    for (int64_t i = 0; i < s.c * m.x_pitch; i++) m.x[i] *= (float)between(t, 1, 8);
    bounds(t, &s.lo, &s.hi);
    s.x = m.x, s.x_pitch = m.x_pitch, s.y_pitch = m.y_pitch, s.slopes = s.act == ACT_PRELU ? slopes : NULL;
    s.y = m.y, t->kernels->unary(&s);
    s.y = m.z, t->ref->unary(&s);
    compare(t, UNARY, m.y, m.z, s.c, s.n, m.y_pitch);
    free_maps(m), free(slopes);
}

static void test_binary(test *t) {
    binary_f32 s = {.fn = between(t, BINARY_ADD, BINARY_RDIV), .c = between(t, 1, 4), .n = between(t, 1, 100)};
    const maps m = make_maps(t, s.c, s.n, s.n);
    const int full = between(t, 0, 1);
    s.b_is_one = between(t, 0, 1);
    const int64_t floats = s.b_is_one ? 1 : round_up(s.n) + 16; /* of a plane of b */
    float *b = numbers(t, floats * s.c);
    bounds(t, &s.lo, &s.hi);
    s.a = m.x, s.a_pitch = m.x_pitch, s.b = b, s.b_pitch = full ? floats : 0, s.y_pitch = m.y_pitch;
    s.y = m.y, t->kernels->binary(&s);
    s.y = m.z, t->ref->binary(&s);
    compare(t, BINARY, m.y, m.z, s.c, s.n, m.y_pitch);
    free_maps(m), free(b);
}

/* n ranges in a side: those of a window of one size, stride and zeros before it, or any. */
static uint32_t *ranges(test *t, int side, int n, int regular) {
    uint32_t *made = malloc(2 * sizeof(uint32_t) * (size_t)n);
    const int k = between(t, 1, 7), stride = between(t, 1, 3), pad = between(t, 0, k - 1);
    for (int i = 0; i < n; i++) {
        const int from = i * stride - pad, to = from + k, first = between(t, 0, side - 1);
        const int fits = regular && from < side && to > 0;
        made[2 * i] = (uint32_t)(fits ? (from < 0 ? 0 : from) : first);
        made[2 * i + 1] = (uint32_t)(fits ? (to < side ? to : side) : between(t, first + 1, side));
    }
    return made;
}

static void test_pool(test *t) {
    pool_f32 s = {.fn = between(t, POOL_MAX, POOL_MEAN), .c = between(t, 1, 3), .h = between(t, 1, 12), .w = between(t, 1, 70)};
    const int regular = between(t, 0, 3);
    s.out_h = between(t, 1, 12), s.out_w = between(t, 1, s.w + 3);
    s.step = regular ? 1 : between(t, 1, 3), s.step_w = regular ? 1 : between(t, 1, 3);
    const maps m = make_maps(t, s.c, (int64_t)s.h * s.w, (int64_t)s.out_h * s.out_w);
    uint32_t *rows = ranges(t, s.h, s.out_h, regular), *columns = ranges(t, s.w, s.out_w, regular);
    float *row_scale = numbers(t, s.out_h), *column_scale = numbers(t, s.out_w);
    float *workspace = planes(t, 1, 0, line_workspace(s.w, s.out_w));
    s.x = m.x, s.x_pitch = m.x_pitch, s.y_pitch = m.y_pitch, s.rows = rows, s.columns = columns;
    s.row_scale = row_scale, s.column_scale = column_scale, s.workspace = workspace;
    s.y = m.y, t->kernels->pool(&s);
    s.y = m.z, t->ref->pool(&s);
    compare(t, POOL, m.y, m.z, s.c, (int64_t)s.out_h * s.out_w, m.y_pitch);
    free_maps(m), free(rows), free(columns), free(row_scale), free(column_scale), free(workspace);
}

/* A box of up to four axes, which lie in x in any order, turned back at times, or not at all. */
static void test_move(test *t) {
    move_f32 s = {0};
    int64_t x_floats = 1, y_floats = 1, from = 0;
    int order[4] = {0, 1, 2, 3};
    for (int i = 0; i < 6; i++) s.sizes[i] = i < 2 ? 1 : between(t, 1, between(t, 0, 1) ? 9 : 20);
    for (int i = 3; i > 0; i--) {
        const int j = between(t, 0, between(t, 0, 1) ? i : 0), kept = order[i];
        order[i] = order[j], order[j] = kept;
    }
    for (int i = 3; i >= 0; i--) {
        const int axis = 2 + order[i], none = !between(t, 0, 7), back = !between(t, 0, 7);
        const int64_t gap = between(t, 0, 3) ? 0 : between(t, 0, 2), step = none ? 0 : x_floats * (between(t, 0, 7) ? 1 : 2);
        s.x_strides[axis] = back ? -step : step;
        if (back) from += step * (s.sizes[axis] - 1);
        x_floats = (none ? x_floats : step * s.sizes[axis]) + gap;
        s.y_strides[2 + i] = y_floats;
        y_floats = y_floats * s.sizes[2 + i] + (between(t, 0, 3) ? 0 : between(t, 0, 2));
    }
    float *x = numbers(t, x_floats), *y = numbers(t, y_floats), *z = malloc(sizeof(float) * (size_t)y_floats);
    memcpy(z, y, sizeof(float) * (size_t)y_floats);
    if (t->poison) x[from] = NAN;
    s.x = x + from;
    s.y = y, t->kernels->move(&s);
    s.y = z, t->ref->move(&s);
    compare(t, MOVE, y, z, 1, y_floats, y_floats);
    free(x), free(y), free(z);
}

static void test_resize(test *t) {
    const int h = between(t, 1, 9);
    resize_f32 s = {.c = between(t, 1, 3), .w = between(t, 1, 40), .out_h = between(t, 1, 9), .out_w = between(t, 1, 40)};
    const maps m = make_maps(t, s.c, (int64_t)h * s.w, (int64_t)s.out_h * s.out_w);
    uint32_t *rows = malloc(8u * (size_t)s.out_h), *columns = malloc(8u * (size_t)s.out_w);
    float *row_weight = numbers(t, s.out_h), *column_weight = numbers(t, s.out_w);
    float *workspace = planes(t, 1, 0, line_workspace(s.w, s.out_w));
    for (int i = 0; i < 2 * s.out_h; i++) rows[i] = (uint32_t)between(t, 0, h - 1);
    for (int i = 0; i < 2 * s.out_w; i++) columns[i] = (uint32_t)between(t, 0, s.w - 1);
    for (int i = 0; i < s.out_h; i++) row_weight[i] = between(t, 0, 2) ? row_weight[i] : 0.0f;
    for (int i = 0; i < s.out_w; i++) column_weight[i] = between(t, 0, 2) ? column_weight[i] : 0.0f;
    s.x = m.x, s.x_pitch = m.x_pitch, s.y_pitch = m.y_pitch, s.rows = rows, s.columns = columns;
    s.row_weight = row_weight, s.column_weight = column_weight, s.workspace = workspace;
    s.y = m.y, t->kernels->resize(&s);
    s.y = m.z, t->ref->resize(&s);
    compare(t, RESIZE, m.y, m.z, s.c, (int64_t)s.out_h * s.out_w, m.y_pitch);
    free_maps(m), free(rows), free(columns), free(row_weight), free(column_weight), free(workspace);
}

static void test_softmax(test *t) {
    softmax_f32 s = {.planes = between(t, 1, 20), .n = between(t, 1, 150)};
    s.c = s.planes * between(t, 1, 3);
    const maps m = make_maps(t, s.c, s.n, s.n);
    s.x = m.x, s.x_pitch = m.x_pitch, s.y_pitch = m.y_pitch;
    s.y = m.y, t->kernels->softmax(&s);
    s.y = m.z, t->ref->softmax(&s);
    compare(t, SOFTMAX, m.y, m.z, s.c, s.n, m.y_pitch);
    free_maps(m);
}

static void test_norm(test *t) {
    norm_f32 s = {.fn = between(t, NORM_PIXEL, NORM_AFFINE), .planes = between(t, 1, 20), .n = between(t, 1, 150), .eps = 1e-2f};
    s.c = s.planes * between(t, 1, 3);
    const maps m = make_maps(t, s.c, s.n, s.n);
    float *weight = numbers(t, s.c), *bias = numbers(t, s.c);
    s.x = m.x, s.x_pitch = m.x_pitch, s.y_pitch = m.y_pitch, s.weight = weight, s.bias = bias;
    s.y = m.y, t->kernels->norm(&s);
    s.y = m.z, t->ref->norm(&s);
    compare(t, NORM, m.y, m.z, s.c, s.n, m.y_pitch);
    free_maps(m), free(weight), free(bias);
}

static void (*const TESTS[])(test *) = {test_spmm,   test_depthwise, test_im2col, test_gemv,   test_mean,    test_int8, test_unary,
                                        test_binary, test_pool,      test_move,   test_resize, test_softmax, test_norm};

static long rounds;

static void *run(void *made) {
    test *t = made;
    for (long i = 0; i < rounds; i++)
        for (int kind = 0; kind < (int)(sizeof TESTS / sizeof *TESTS); kind++) {
            t->poison = i % 4 == 3;
            TESTS[kind](t);
        }
    return NULL;
}

int main(int argc, char **argv) {
    enum { THREADS = 3 };
    test tests[THREADS] = {0};
    pthread_t threads[THREADS];
    int wrong = 0;
    rounds = argc > 3 ? atol(argv[3]) : 100;
    for (int i = 0; i < THREADS; i++) {
        tests[i].state = 7919u * (uint64_t)(argc > 2 ? atol(argv[2]) : 0) + (uint64_t)i;
        tests[i].kernels = isa_named(argc > 1 ? argv[1] : ""), tests[i].ref = isa_named("ref");
        if (!tests[i].kernels) return puts("absent"), 0;
        if (pthread_create(&threads[i], NULL, run, &tests[i])) return puts("no threads"), 2;
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int kind = 0; kind < KINDS; kind++) {
        long sums[3] = {0};
        for (int i = 0; i < THREADS; i++) {
            sums[0] += tests[i].compared[kind], sums[1] += tests[i].wrong[kind], sums[2] += tests[i].nans[kind];
        }
        printf("%s %s compared %ld wrong %ld nan %ld\n", tests[0].kernels->name, NAMES[kind], sums[0], sums[1], sums[2]);
        wrong |= sums[1] > 0;
    }
    return wrong;
}
