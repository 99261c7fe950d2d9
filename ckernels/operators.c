/* The operators that are no convolution: each fills in its kernel's arguments from its table, and has it run. */
#include "engine.h"

/* What stands behind every operator, on n pixels of some planes of y: its clamp, where the kernel has not done that, and its
   activation. */
void finish(const uint8_t *file, const op *o, const isa *kernels, float *y, range planes, int64_t n, int clamped) {
    const map *m = map_of(file, o->y);
    const int clamps = !clamped && (o->lo > -INFINITE || o->hi < INFINITE);
    float *at = y + planes.from * m->pitch;
    const unary_f32 s = {
        .act = (int32_t)o->act, .c = (int32_t)(planes.to - planes.from), .n = n, .x_pitch = m->pitch, .y_pitch = m->pitch,
        .x = at, .y = at, .slopes = o->act == ACT_PRELU ? floats(file, o->slopes) + planes.from : NULL,
        .lo = clamps ? o->lo : -INFINITE, .hi = clamps ? o->hi : INFINITE,
    };
    if (clamps || o->act) kernels->unary(&s);
}

static const map *x_of(const task *t) { return map_of(t->file, t->o->x); }
static const map *y_of(const task *t) { return map_of(t->file, t->o->y); }
static float *floats_at(const task *t, const map *m) { return t->arena + m->at; }
static float *workspace_of(const task *t) { return t->local + t->o->work; }
static int64_t pixels(const map *m) { return (int64_t)m->h * m->w; }

/* What this thread has of y: some planes, or where there are too few some pixels of each, in whole vectors. */
typedef struct {
    range planes, pixels;
} portion;

/* A portion of whole groups of `planes` planes, which may be cut into pixels where each pixel stands for itself. */
static portion portion_of(const task *t, int64_t planes, int by_pixels) {
    const map *y = y_of(t);
    if (by_pixels && y->c / planes < 2 * t->team->threads) return (portion){{0, y->c}, share(t->team, pixels(y), 16)};
    return (portion){share(t->team, y->c, planes), {0, pixels(y)}};
}

static int32_t planes_in(portion p) { return (int32_t)(p.planes.to - p.planes.from); }
static int64_t pixels_in(portion p) { return p.pixels.to - p.pixels.from; }

/* Where it begins in a map of y's shape. */
static float *begin_in(const task *t, const map *m, portion p) {
    return floats_at(t, m) + p.planes.from * m->pitch + p.pixels.from;
}

static void finish_portion(const task *t, portion p, int clamped) {
    finish(t->file, t->o, t->kernels, floats_at(t, y_of(t)) + p.pixels.from, p.planes, pixels_in(p), clamped);
}

static void run_mean(const task *t) {
    const map *x = x_of(t), *y = y_of(t);
    const range some = share(t->team, x->c, 16); /* as many numbers of y's only plane */
    const mean_f32 s = {.c = (int32_t)(some.to - some.from), .n = (int32_t)pixels(x), .x_pitch = x->pitch,
                        .x = floats_at(t, x) + some.from * x->pitch, .y = floats_at(t, y) + some.from};
    t->kernels->mean(&s);
    finish(t->file, t->o, t->kernels, s.y, (range){0, 1}, s.c, 0);
}

static void run_unary(const task *t) {
    const op *o = t->o;
    const portion p = portion_of(t, 1, 1);
    const unary_f32 s = {
        .act = (int32_t)o->act, .c = planes_in(p), .n = pixels_in(p), .x_pitch = x_of(t)->pitch, .y_pitch = y_of(t)->pitch,
        .x = begin_in(t, x_of(t), p), .y = begin_in(t, y_of(t), p), .lo = o->lo, .hi = o->hi,
        .slopes = o->act == ACT_PRELU ? floats(t->file, o->slopes) + p.planes.from : NULL,
    };
    t->kernels->unary(&s);
}

/* Two maps of one shape are one long plane. Where an activation follows, plane by plane: each is still in the cache. */
static void run_binary(const task *t) {
    const op *o = t->o;
    const map *y = y_of(t), *b = map_of(t->file, o->add);
    const int meets = spread(y, b);
    const portion p = portion_of(t, 1, 1);
    binary_f32 s = {
        .fn = (int32_t)o->fn, .c = planes_in(p), .n = pixels_in(p), .a_pitch = y->pitch, .y_pitch = y->pitch, .lo = o->lo,
        .hi = o->hi, .a = begin_in(t, x_of(t), p), .y = begin_in(t, y, p), .b_is_one = meets == PLANEWISE || meets == SINGLE,
        .b_pitch = meets == EVERY ? y->pitch : meets == PLANEWISE ? (b->c == 1 ? 1 : b->pitch) : 0,
    };
    s.b = floats_at(t, b) + p.planes.from * s.b_pitch + (s.b_is_one ? 0 : p.pixels.from);
    if (!s.c || !s.n) return;
    if (meets == EVERY && !o->act && s.n == pixels(y)) s.n = (int64_t)s.c * y->pitch, s.c = 1;
    unary_f32 after = {
        .act = (int32_t)o->act, .c = 1, .n = s.n, .lo = -INFINITE, .hi = INFINITE,
        .slopes = o->act == ACT_PRELU ? floats(t->file, o->slopes) + p.planes.from : NULL,
    };
    if (!o->act) {
        t->kernels->binary(&s);
        return;
    }
    s.c = 1;
    for (int32_t c = planes_in(p); c; c--, s.a += y->pitch, s.b += s.b_pitch, s.y += y->pitch) {
        t->kernels->binary(&s);
        after.x = after.y = s.y;
        t->kernels->unary(&after);
        if (after.slopes) after.slopes++;
    }
}

static void run_pool(const task *t) {
    const map *x = x_of(t), *y = y_of(t);
    const uint32_t *rows = words(t->file, t->o->args), *columns = rows + 2 * y->h, *step = columns + 2 * y->w;
    const portion p = portion_of(t, 1, 0);
    const pool_f32 s = {
        .fn = (int32_t)t->o->fn, .c = planes_in(p), .h = (int32_t)x->h, .w = (int32_t)x->w, .out_h = (int32_t)y->h,
        .out_w = (int32_t)y->w, .step = (int32_t)step[0], .step_w = (int32_t)step[1], .x_pitch = x->pitch,
        .y_pitch = y->pitch, .rows = rows, .columns = columns, .row_scale = (const float *)step + 2,
        .column_scale = (const float *)step + 2 + y->h, .x = begin_in(t, x, p), .y = begin_in(t, y, p),
        .workspace = workspace_of(t),
    };
    t->kernels->pool(&s);
    finish_portion(t, p, 0);
}

/* This thread's part of a piece: of the axis with the longest steps through y that it can deal out. */
static range deal(const task *t, move_f32 *s) {
    int longest = 0;
    for (int axis = 1; axis < 6; axis++) {
        const int64_t step = s->y_strides[axis] < 0 ? -s->y_strides[axis] : s->y_strides[axis];
        const int64_t most = s->y_strides[longest] < 0 ? -s->y_strides[longest] : s->y_strides[longest];
        if (s->sizes[axis] >= 2 * t->team->threads && (step > most || s->sizes[longest] < 2 * t->team->threads)) longest = axis;
    }
    const range some = share(t->team, s->sizes[longest], 1);
    s->x += some.from * s->x_strides[longest], s->y += some.from * s->y_strides[longest];
    s->sizes[longest] = some.to - some.from;
    return some;
}

static void run_move(const task *t) {
    const uint32_t *table = words(t->file, t->o->args);
    const map *to = y_of(t);
    const portion p = portion_of(t, 1, 0);
    float *y = floats_at(t, to), fill = *(const float *)(table + 1);
    for (int64_t i = p.planes.from * to->pitch; *table && i < p.planes.to * to->pitch; i++) y[i] = fill;
    if (*table) meet(t->team);
    for (uint32_t i = 0; i < n_pieces(t->o); i++) {
        const piece *from = pieces(t->file, t->o) + i;
        move_f32 s = {.x = floats_at(t, map_of(t->file, from->x)) + from->x_at, .y = y + from->y_at};
        for (int axis = 0; axis < 6; axis++) {
            s.sizes[axis] = from->sizes[axis];
            s.x_strides[axis] = from->x_strides[axis];
            s.y_strides[axis] = from->y_strides[axis];
        }
        const range some = deal(t, &s);
        if (some.from < some.to) t->kernels->move(&s);
    }
    if (t->o->act || t->o->lo > -INFINITE || t->o->hi < INFINITE) meet(t->team);
    finish_portion(t, p, 0);
}

static void run_resize(const task *t) {
    const map *x = x_of(t), *y = y_of(t);
    const uint32_t *rows = words(t->file, t->o->args), *columns = rows + 3 * y->h;
    const portion p = portion_of(t, 1, 0);
    const resize_f32 s = {
        .c = planes_in(p), .w = (int32_t)x->w, .out_h = (int32_t)y->h, .out_w = (int32_t)y->w, .x_pitch = x->pitch,
        .y_pitch = y->pitch, .rows = rows, .columns = columns, .row_weight = (const float *)rows + 2 * y->h,
        .column_weight = (const float *)columns + 2 * y->w, .x = begin_in(t, x, p), .y = begin_in(t, y, p),
        .workspace = workspace_of(t),
    };
    t->kernels->resize(&s);
    finish_portion(t, p, 0);
}

static void run_softmax(const task *t) {
    const map *x = x_of(t), *y = y_of(t);
    const portion p = portion_of(t, t->o->planes, 1);
    const softmax_f32 s = {.c = planes_in(p), .planes = (int32_t)t->o->planes, .n = pixels_in(p), .x_pitch = x->pitch,
                           .y_pitch = y->pitch, .x = begin_in(t, x, p), .y = begin_in(t, y, p)};
    t->kernels->softmax(&s);
    finish_portion(t, p, 0);
}

static void run_norm(const task *t) {
    const float *table = floats(t->file, t->o->args);
    const map *x = x_of(t), *y = y_of(t);
    const portion p = portion_of(t, t->o->planes, t->o->fn == NORM_PIXEL || t->o->fn == NORM_RMS);
    const norm_f32 s = {
        .fn = (int32_t)t->o->fn, .c = planes_in(p), .planes = (int32_t)t->o->planes, .n = pixels_in(p), .x_pitch = x->pitch,
        .y_pitch = y->pitch, .x = begin_in(t, x, p), .y = begin_in(t, y, p), .eps = table[0],
        .weight = table + 1 + p.planes.from, .bias = table + 1 + x->c + p.planes.from,
    };
    if (s.n) t->kernels->norm(&s);
    finish_portion(t, p, 0);
}

static void run_const(const task *t) {
    const map *y = y_of(t);
    const portion p = portion_of(t, 1, 0);
    for (int64_t c = p.planes.from; c < p.planes.to; c++)
        for (int64_t i = 0; i < pixels(y); i++)
            floats_at(t, y)[c * y->pitch + i] = floats(t->file, t->o->args)[c * pixels(y) + i];
    finish_portion(t, p, 0);
}

/* -- products of two maps ------------------------------------------------------------------------------------------- */

/* Where a matrix product keeps what it works with: see matmul_workspace. */
typedef struct {
    float *blocks, *zeros, *rest;
    uint16_t *count;
    int64_t groups, k_tiles;
} matmul_workplace;

/* The rows of a, times scale, in blocks of 4 rows x 1 column, k-tile by k-tile, group by group; rows beyond m are zeros. */
static void pack_rows(const matmul_table *m, const float *a, const matmul_workplace *w) {
    float *to = w->blocks;
    for (int64_t first = 0; first < m->k; first += MATMUL_K_TILE)
        for (int64_t row = 0; row < 4 * w->groups; row += 4)
            for (int64_t k = first; k < (int64_t)min((uint64_t)first + MATMUL_K_TILE, m->k); k++, to += 4)
                for (int64_t r = row; r < row + 4; r++)
                    to[r - row] = r < m->m ? m->scale * a[r * m->a_strides[2] + k * m->a_strides[3]] : 0.0f;
}

/* Blocks and counts of the first `groups` of all groups follow each other only if these are all: a last group that is not
   full is multiplied alone, into the workspace, and its rows are copied from there. So a's full groups are packed as one
   matrix, and the last one behind them as another. */
static void multiply(const task *t, const matmul_table *m, const float *b, float *y, const matmul_workplace *w) {
    const int64_t pitch = y_of(t)->pitch, n = m->n, full = m->m / 4, left = m->m % 4;
    spmm_f32 s = {
        .block = 4, .groups = (int32_t)w->groups, .k_tiles = (int32_t)w->k_tiles, .k_tile = MATMUL_K_TILE,
        .n = (int32_t)n, .count = w->count, .w = w->blocks, .bias = w->zeros, .x = b, .x_pitch = m->b_strides[2], .y = y, .y_pitch = pitch,
        .lo = t->o->lo, .hi = t->o->hi,
    };
    if (w->groups == full) {
        t->kernels->spmm(&s);
        return;
    }
    s.y = w->rest, s.y_pitch = (int64_t)round_up((uint64_t)n, 16) + 16;
    t->kernels->spmm(&s);
    for (int64_t r = 0; r < left; r++)
        for (int64_t i = 0; i < n; i++) y[r * pitch + i] = w->rest[r * s.y_pitch + i];
}

static void multiply_rows(const task *t, const matmul_table *whole, const float *a, const float *b, float *y) {
    const int64_t groups = (int64_t)ceil_div4(whole->m), k_tiles = (whole->k + MATMUL_K_TILE - 1) / MATMUL_K_TILE;
    matmul_workplace w = {.blocks = workspace_of(t), .k_tiles = k_tiles};
    w.zeros = w.blocks + 4 * groups * whole->k;
    w.rest = w.zeros + 4 * groups;
    w.count = (uint16_t *)(w.rest + 4 * (round_up(whole->n, 16) + 16));
    for (int64_t i = 0; i < 4 * groups; i++) w.zeros[i] = 0.0f;
    const uint32_t rows[2] = {whole->m / 4 * 4, whole->m % 4};
    for (int i = 0; i < 2; i++) {
        if (!rows[i]) continue;
        matmul_table m = *whole;
        m.m = rows[i];
        w.groups = (int64_t)ceil_div4(m.m);
        const int64_t done = i ? rows[0] : 0;
        for (int64_t tile = 0; tile < k_tiles; tile++) {
            const uint64_t width = min(MATMUL_K_TILE, m.k - (uint64_t)tile * MATMUL_K_TILE);
            for (int64_t g = 0; g < w.groups; g++) w.count[tile * w.groups + g] = (uint16_t)width;
        }
        pack_rows(&m, a + done * whole->a_strides[2], &w);
        multiply(t, &m, b, y + done * y_of(t)->pitch, &w);
    }
}

/* Each thread multiplies some of the matrices. */
static void run_matmul(const task *t) {
    const matmul_table *m = (const matmul_table *)words(t->file, t->o->args);
    const float *a = floats_at(t, x_of(t)) + m->a_at, *b = floats_at(t, map_of(t->file, t->o->add)) + m->b_at;
    const range some = share(t->team, (int64_t)m->batch[0] * m->batch[1], 1);
    for (int64_t n = some.from; n < some.to; n++) {
        const int64_t i = n / m->batch[1], j = n % m->batch[1];
        multiply_rows(t, m, a + i * m->a_strides[0] + j * m->a_strides[1], b + i * m->b_strides[0] + j * m->b_strides[1],
                      floats_at(t, y_of(t)) + n * m->m * y_of(t)->pitch);
    }
    finish_portion(t, (portion){{some.from * m->m, some.to * m->m}, {0, pixels(y_of(t))}}, 1);
}

void run_table_op(const task *t) {
    switch (t->o->kind) {
        case MEAN: run_mean(t); break;
        case BINARY: run_binary(t); break;
        case UNARY: run_unary(t); break;
        case POOL: run_pool(t); break;
        case MOVE: run_move(t); break;
        case RESIZE: run_resize(t); break;
        case SOFTMAX: run_softmax(t); break;
        case NORM: run_norm(t); break;
        case MATMUL: run_matmul(t); break;
        case CONST: run_const(t); break;
    }
}
