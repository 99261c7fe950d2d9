/* The operators that are no convolution: each fills in its kernel's arguments from its table, and has it run. */
#include "engine.h"

/* What stands behind every operator, on n pixels of each plane of y: its clamp, where the kernel has not done that, and its
   activation. */
void finish(const uint8_t *file, const op *o, const isa *kernels, float *y, int64_t n, int clamped) {
    const map *m = map_of(file, o->y);
    const int clamps = !clamped && (o->lo > -INFINITE || o->hi < INFINITE);
    const unary_f32 s = {
        .act = (int32_t)o->act, .c = (int32_t)m->c, .n = n, .x_pitch = m->pitch, .y_pitch = m->pitch, .x = y, .y = y,
        .slopes = o->act == ACT_PRELU ? floats(file, o->slopes) : NULL, .lo = clamps ? o->lo : -INFINITE,
        .hi = clamps ? o->hi : INFINITE,
    };
    if (clamps || o->act) kernels->unary(&s);
}

/* What an operator works with. */
typedef struct {
    const uint8_t *file;
    const op *o;
    const isa *kernels;
    float *arena;
    const map *x, *y;
} turn;

static float *floats_at(const turn *t, const map *m) { return t->arena + m->at; }
static float *workspace_of(const turn *t) { return t->arena + t->o->work; }
static int64_t pixels(const map *m) { return (int64_t)m->h * m->w; }

static void run_mean(const turn *t) {
    const mean_f32 s = {.c = (int32_t)t->x->c, .n = (int32_t)pixels(t->x), .x_pitch = t->x->pitch,
                        .x = floats_at(t, t->x), .y = floats_at(t, t->y)};
    t->kernels->mean(&s);
}

static void run_unary(const turn *t) {
    const op *o = t->o;
    const unary_f32 s = {
        .act = (int32_t)o->act, .c = (int32_t)t->y->c, .n = pixels(t->y), .x_pitch = t->x->pitch, .y_pitch = t->y->pitch,
        .x = floats_at(t, t->x), .y = floats_at(t, t->y), .lo = o->lo, .hi = o->hi,
        .slopes = o->act == ACT_PRELU ? floats(t->file, o->slopes) : NULL,
    };
    t->kernels->unary(&s);
}

/* Two maps of one shape are one long plane. Where an activation follows, plane by plane: each is still in the cache. */
static void run_binary(const turn *t) {
    const op *o = t->o;
    const map *y = t->y, *b = map_of(t->file, o->add);
    const int meets = spread(y, b);
    binary_f32 s = {
        .fn = (int32_t)o->fn, .c = (int32_t)y->c, .n = pixels(y), .a_pitch = y->pitch, .y_pitch = y->pitch, .lo = o->lo,
        .hi = o->hi, .a = floats_at(t, t->x), .b = floats_at(t, b), .y = floats_at(t, y),
        .b_is_one = meets == PLANEWISE || meets == SINGLE,
        .b_pitch = meets == EVERY ? y->pitch : meets == PLANEWISE ? (b->c == 1 ? 1 : b->pitch) : 0,
    };
    if (meets == EVERY && !o->act) s.n = (int64_t)s.c * y->pitch, s.c = 1;
    unary_f32 after = {
        .act = (int32_t)o->act, .c = 1, .n = s.n, .lo = -INFINITE, .hi = INFINITE,
        .slopes = o->act == ACT_PRELU ? floats(t->file, o->slopes) : NULL,
    };
    if (!o->act) {
        t->kernels->binary(&s);
        return;
    }
    for (s.c = 1; s.y < floats_at(t, y) + (int64_t)y->c * y->pitch; s.a += y->pitch, s.b += s.b_pitch, s.y += y->pitch) {
        t->kernels->binary(&s);
        after.x = after.y = s.y;
        t->kernels->unary(&after);
        if (after.slopes) after.slopes++;
    }
}

static void run_pool(const turn *t) {
    const map *x = t->x, *y = t->y;
    const uint32_t *rows = words(t->file, t->o->args), *columns = rows + 2 * y->h, *step = columns + 2 * y->w;
    const pool_f32 s = {
        .fn = (int32_t)t->o->fn, .c = (int32_t)x->c, .h = (int32_t)x->h, .w = (int32_t)x->w, .out_h = (int32_t)y->h,
        .out_w = (int32_t)y->w, .step = (int32_t)step[0], .step_w = (int32_t)step[1], .x_pitch = x->pitch,
        .y_pitch = y->pitch, .rows = rows, .columns = columns, .row_scale = (const float *)step + 2,
        .column_scale = (const float *)step + 2 + y->h, .x = floats_at(t, x), .y = floats_at(t, y),
        .workspace = workspace_of(t),
    };
    t->kernels->pool(&s);
}

static void run_move(const turn *t) {
    const uint32_t *table = words(t->file, t->o->args);
    float *y = floats_at(t, t->y), fill = *(const float *)(table + 1);
    for (int64_t i = 0; *table && i < (int64_t)t->y->c * t->y->pitch; i++) y[i] = fill;
    for (uint32_t i = 0; i < n_pieces(t->o); i++) {
        const piece *p = pieces(t->file, t->o) + i;
        move_f32 s = {.x = floats_at(t, map_of(t->file, p->x)) + p->x_at, .y = y + p->y_at};
        for (int axis = 0; axis < 6; axis++) {
            s.sizes[axis] = p->sizes[axis];
            s.x_strides[axis] = p->x_strides[axis];
            s.y_strides[axis] = p->y_strides[axis];
        }
        t->kernels->move(&s);
    }
}

static void run_resize(const turn *t) {
    const map *x = t->x, *y = t->y;
    const uint32_t *rows = words(t->file, t->o->args), *columns = rows + 3 * y->h;
    const resize_f32 s = {
        .c = (int32_t)x->c, .w = (int32_t)x->w, .out_h = (int32_t)y->h, .out_w = (int32_t)y->w, .x_pitch = x->pitch,
        .y_pitch = y->pitch, .rows = rows, .columns = columns, .row_weight = (const float *)rows + 2 * y->h,
        .column_weight = (const float *)columns + 2 * y->w, .x = floats_at(t, x), .y = floats_at(t, y),
        .workspace = workspace_of(t),
    };
    t->kernels->resize(&s);
}

static void run_softmax(const turn *t) {
    const softmax_f32 s = {.c = (int32_t)t->x->c, .planes = (int32_t)t->o->planes, .n = pixels(t->x),
                           .x_pitch = t->x->pitch, .y_pitch = t->y->pitch, .x = floats_at(t, t->x), .y = floats_at(t, t->y)};
    t->kernels->softmax(&s);
}

static void run_norm(const turn *t) {
    const float *table = floats(t->file, t->o->args);
    const norm_f32 s = {
        .fn = (int32_t)t->o->fn, .c = (int32_t)t->x->c, .planes = (int32_t)t->o->planes, .n = pixels(t->x),
        .x_pitch = t->x->pitch, .y_pitch = t->y->pitch, .x = floats_at(t, t->x), .y = floats_at(t, t->y),
        .eps = table[0], .weight = table + 1, .bias = table + 1 + t->x->c,
    };
    t->kernels->norm(&s);
}

static void run_const(const turn *t) {
    const float *values = floats(t->file, t->o->args);
    for (uint32_t c = 0; c < t->y->c; c++)
        for (int64_t i = 0; i < pixels(t->y); i++) floats_at(t, t->y)[(int64_t)c * t->y->pitch + i] = *values++;
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
static void multiply(const turn *t, const matmul_table *m, const float *b, float *y, const matmul_workplace *w) {
    const int64_t pitch = t->y->pitch, n = m->n, full = m->m / 4, left = m->m % 4;
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

static void multiply_rows(const turn *t, const matmul_table *whole, const float *a, const float *b, float *y) {
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
        multiply(t, &m, b, y + done * t->y->pitch, &w);
    }
}

static void run_matmul(const turn *t) {
    const matmul_table *m = (const matmul_table *)words(t->file, t->o->args);
    const float *a = floats_at(t, t->x) + m->a_at, *b = floats_at(t, map_of(t->file, t->o->add)) + m->b_at;
    float *y = floats_at(t, t->y);
    for (int64_t i = 0; i < m->batch[0]; i++)
        for (int64_t j = 0; j < m->batch[1]; j++, y += (int64_t)m->m * t->y->pitch)
            multiply_rows(t, m, a + i * m->a_strides[0] + j * m->a_strides[1],
                          b + i * m->b_strides[0] + j * m->b_strides[1], y);
}

void run_table_op(const uint8_t *file, const op *o, const isa *kernels, float *arena) {
    const turn t = {file, o, kernels, arena, map_of(file, o->x), map_of(file, o->y)};
    switch (o->kind) {
        case MEAN: run_mean(&t); break;
        case BINARY: run_binary(&t); return;
        case UNARY: run_unary(&t); return;
        case POOL: run_pool(&t); break;
        case MOVE: run_move(&t); break;
        case RESIZE: run_resize(&t); break;
        case SOFTMAX: run_softmax(&t); break;
        case NORM: run_norm(&t); break;
        case MATMUL: run_matmul(&t); break;
        case CONST: run_const(&t); break;
    }
    finish(file, o, kernels, floats_at(&t, t.y), pixels(t.y), o->kind == MATMUL);
}
