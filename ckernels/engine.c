/* The engine: runs a packed network that check.c has passed, op by op over one arena. It allocates nothing. */
#include "engine.h"

/* There is no C library in a browser. */
static void copy(float *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

/* A map's planes, from and to whatever pitch. */
static void copy_planes(float *to, int64_t to_pitch, const float *from, int64_t from_pitch, const map *m) {
    for (uint32_t c = 0; c < m->c; c++) copy(to + c * to_pitch, from + c * from_pitch, (int64_t)m->h * m->w);
}

uint64_t engine_arena(const uint8_t *file) { return head(file)->arena; }
static uint64_t floats_of(const map *m) { return (uint64_t)m->c * m->h * m->w; }
static uint64_t floats_of_all(const uint8_t *file, const uint32_t *maps, uint32_t n) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += floats_of(map_of(file, maps[i]));
    return sum;
}
uint64_t engine_in(const uint8_t *file) { return floats_of_all(file, ends(file), head(file)->n_inputs); }
uint64_t engine_out(const uint8_t *file) {
    return floats_of_all(file, ends(file) + head(file)->n_inputs, head(file)->n_outputs);
}
int engine_ops(const uint8_t *file) { return (int)head(file)->n_ops; }


/* Rows from .. to - 1 of a rolling row buffer's map are in it, the first of them where the buffer begins. */
typedef struct {
    uint32_t from, to;
} row_window;

/* One run of an operator and of those whose rows it has made; the row window of op i's output is windows[i % CHAIN].
   standalone: no rows are made, the operator reads whatever lies in the buffers. */
enum { CHAIN = ENGINE_MAX_CHAIN };
typedef struct {
    const uint8_t *file;
    float *arena;
    const isa *kernels;
    int standalone;
    row_window windows[CHAIN];
} run;

static float *workspace_of(const run *r, const op *o) { return r->arena + o->work; }

void engine_put(const uint8_t *file, float *arena, const float *x) {
    for (uint32_t i = 0; i < head(file)->n_inputs; i++) {
        const map *m = map_of(file, ends(file)[i]);
        const int64_t pixels = (int64_t)m->h * m->w;
        if (m->interleaved) copy(arena + m->at, x, pixels * m->c);
        else copy_planes(arena + m->at, m->pitch, x, pixels, m);
        x += floats_of(m);
    }
}

void engine_get(const uint8_t *file, const float *arena, float *y) {
    for (uint32_t i = 0; i < head(file)->n_outputs; i++) {
        const map *m = map_of(file, ends(file)[head(file)->n_inputs + i]);
        copy_planes(y, (int64_t)m->h * m->w, arena + m->at, m->pitch, m);
        y += floats_of(m);
    }
}

/* What a product reads and writes: X (k, n) at x, rows `pitch` apart; Y (M, n) at y, which begins at pixel `at` of its map. */
typedef struct {
    const float *x;
    float *y;
    int64_t k, pitch, at, n;
} operands;

/* NaN in every channel of a pixel of Y that has one in X: a byte cannot be NaN. */
static void restore_nan(const operands *p, const spmm_u8s8 *s) {
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t c = 0; c < p->k; c++) {
            const float pixel = p->x[c * p->pitch + i];
            for (int64_t r = 0; pixel != pixel && r < 4 * s->groups; r++) s->y[r * s->y_pitch + i] = pixel;
        }
}

/* Y = W X in int8: X is quantised behind what else lies in the workspace. */
static void product_u8s8(const run *r, const op *o, const operands *p) {
    const uint8_t *file = r->file;
    const map *x = map_of(file, o->x), *y = map_of(file, o->y), *a = o->add == NONE ? NULL : map_of(file, o->add);
    const quantise_u8 q = {
        .c = (int32_t)p->k, .n = (int32_t)p->n, .zero = (int32_t)o->zero_point, .inv_scale = o->inv_scale,
        .x_pitch = p->pitch, .y_pitch = p->pitch, .x = p->x, .y = (uint8_t *)(workspace_of(r, o) + floats_before_u8(o, x)),
    };
    const spmm_u8s8 s = {
        .groups = (int32_t)ceil_div4(y->c), .k_tiles = (int32_t)((ceil_div4((uint64_t)p->k) + o->k_tile - 1) / o->k_tile),
        .k_tile = (int32_t)o->k_tile, .n = q.n, .zero = q.zero, .count = (const uint16_t *)(file + o->count),
        .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = (const int8_t *)(file + o->w),
        .sums = (const int32_t *)(file + o->sums), .scale = floats(file, o->scale), .bias = floats(file, o->bias),
        .x = q.y, .x_pitch = p->pitch, .y = p->y, .y_pitch = y->pitch, .add = a ? r->arena + a->at + p->at : NULL,
        .add_pitch = a ? a->pitch : 0, .lo = o->lo, .hi = o->hi,
    };
    const int nonfinite = r->kernels->quantise(&q);
    r->kernels->spmm_int8(&s);
    if (nonfinite) restore_nan(p, &s);
}

/* Y = W X, in fp32 or in int8. */
static void product(const run *r, const op *o, const operands *p) {
    if (o->flags & U8S8) {
        product_u8s8(r, o, p);
        return;
    }
    const uint8_t *file = r->file;
    const map *y = map_of(file, o->y), *a = o->add == NONE ? NULL : map_of(file, o->add);
    const spmm_f32 s = {
        .block = (int32_t)o->block, .groups = (int32_t)((y->c + o->block - 1) / o->block),
        .k_tiles = (int32_t)((p->k + o->k_tile - 1) / o->k_tile), .k_tile = (int32_t)o->k_tile, .n = (int32_t)p->n,
        .count = (const uint16_t *)(file + o->count), .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = floats(file, o->w),
        .bias = floats(file, o->bias), .x = p->x, .x_pitch = p->pitch, .y = p->y, .y_pitch = y->pitch,
        .add = a ? r->arena + a->at + p->at : NULL, .add_pitch = a ? a->pitch : 0, .lo = o->lo, .hi = o->hi,
    };
    r->kernels->spmm(&s);
}

/* Rows top .. bottom - 1 of the depthwise convolution of the map at x, to planes `pitch` apart. */
static void depthwise_rows(const run *r, const op *o, row_window rows, const float *x, float *workspace, float *y,
                           int64_t pitch) {
    const map *in = map_of(r->file, o->x), *out = map_of(r->file, o->y);
    const int is_last = o->kind == DEPTHWISE; /* else its clamp is the pair's inner one */
    const depthwise_f32 s = {
        .c = (int32_t)in->c, .h = (int32_t)in->h, .w = (int32_t)in->w, .k = (int32_t)o->k, .stride = (int32_t)o->stride,
        .pad = (int32_t)o->pad, .pad_w = (int32_t)o->pad_w, .out_w = (int32_t)out->w, .top = (int32_t)rows.from,
        .bottom = (int32_t)rows.to,
        .x_pitch = in->pitch, .y_pitch = pitch, .x = x, .weight = floats(r->file, o->dw_w),
        .bias = floats(r->file, o->dw_bias), .y = y, .workspace = workspace, .lo = is_last ? o->lo : o->dw_lo,
        .hi = is_last ? o->hi : o->dw_hi,
    };
    r->kernels->depthwise(&s);
}

/* The pixels that each tap of a convolution meets in the map at x, as rows in the workspace. */
static void im2col_rows(const run *r, const op *o, row_window rows, const float *x) {
    const map *in = map_of(r->file, o->x);
    const im2col_f32 s = {
        .c = (int32_t)in->c, .h = (int32_t)in->h, .w = (int32_t)in->w, .k = (int32_t)o->k, .k_w = (int32_t)o->k_w,
        .stride = (int32_t)o->stride, .stride_w = (int32_t)o->stride_w, .pad = (int32_t)o->pad, .pad_w = (int32_t)o->pad_w,
        .dilation = (int32_t)o->dilation, .dilation_w = (int32_t)o->dilation_w,
        .out_w = (int32_t)map_of(r->file, o->y)->w, .top = (int32_t)rows.from,
        .bottom = (int32_t)rows.to, .x_channel = in->interleaved ? 1 : in->pitch, .x_pixel = in->interleaved ? in->c : 1,
        .y_pitch = o->pitch, .x = x, .y = workspace_of(r, o),
    };
    r->kernels->im2col(&s);
}

/* Where row 0 of a map would lie. */
static float *row_0(const run *r, const map *m, const row_window *window) {
    return r->arena + m->at - (m->buffer_rows ? (int64_t)window->from * m->w : 0);
}

/* A rolling row buffer rolls on: rows before `first` give way to those that come next. */
static void roll(float *arena, const map *m, row_window *window, uint32_t first) {
    first = (uint32_t)min(first, window->to);
    if (first == window->from) return;
    float *plane = arena + m->at;
    const int64_t gone = (int64_t)(first - window->from) * m->w, kept = (int64_t)(window->to - first) * m->w;
    for (uint32_t c = 0; c < m->c; c++, plane += m->pitch) copy(plane, plane + gone, kept);
    window->from = first;
}

static void make_rows(run *r, uint32_t i, uint32_t bottom);

/* A row that a window reaches, within 0 and the height of x: outside of it are zeros. */
static uint32_t row_below(const map *x, int64_t row) { return row < 0 ? 0 : (uint32_t)min((uint64_t)row, x->h); }

/* The rows of x that a row tile of op i reads are in its rolling row buffer: what lacks is made by the operator before. */
static void make_input(run *r, uint32_t i, row_window rows) {
    const op *o = op_of(r->file, i);
    const map *x = map_of(r->file, o->x);
    row_window *window = &r->windows[(i + CHAIN - 1) % CHAIN];
    const uint32_t span = (o->k - 1) * o->dilation + 1;
    const uint32_t first = row_below(x, (int64_t)rows.from * o->stride - o->pad);
    if (r->standalone) window->from = first;
    else {
        roll(r->arena, x, window, first);
        make_rows(r, i - 1, row_below(x, (int64_t)(rows.to - 1) * o->stride + span - o->pad));
    }
}

/* The activation between the halves of a separable pair, on what its depthwise half has laid out. */
static void activate_between(const run *r, const op *o, const operands *p) {
    const unary_f32 s = {.act = (int32_t)o->inner_act, .c = (int32_t)p->k, .n = p->n, .x_pitch = p->pitch,
                         .y_pitch = p->pitch, .x = p->x, .y = workspace_of(r, o), .lo = -INFINITE, .hi = INFINITE};
    if (o->inner_act) r->kernels->unary(&s);
}

/* One row tile of op i, a convolution of any kind: what it lays out, and a depthwise half, stays in the cache for the
   product that reads it. */
static void run_tile(run *r, uint32_t i, row_window rows) {
    const op *o = op_of(r->file, i);
    const map *x = map_of(r->file, o->x), *y = map_of(r->file, o->y);
    if (x->buffer_rows) make_input(r, i, rows);
    const float *in = row_0(r, x, &r->windows[(i + CHAIN - 1) % CHAIN]);
    float *workspace = workspace_of(r, o);
    operands p = {.x = workspace, .k = x->c, .pitch = o->pitch, .at = (int64_t)rows.from * y->w,
                  .n = (int64_t)(rows.to - rows.from) * y->w};
    p.y = row_0(r, y, &r->windows[i % CHAIN]) + p.at;
    switch (o->kind) {
        case CONV:
            im2col_rows(r, o, rows, in);
            p.k *= (int64_t)o->k * o->k_w;
            break;
        case POINTWISE:
            p.x = in + p.at;
            p.pitch = x->pitch;
            break;
        case SEPARABLE:
            depthwise_rows(r, o, rows, in, workspace + (int64_t)x->c * o->pitch, workspace, o->pitch);
            activate_between(r, o, &p);
            break;
        default: depthwise_rows(r, o, rows, in, workspace, p.y, y->pitch);
    }
    if (o->kind != DEPTHWISE) product(r, o, &p);
    finish(r->file, o, r->kernels, p.y, p.n, 1);
}

/* The rows of op i before `bottom` that are not made yet, row tile by row tile; of a plain matrix product all at once. */
static void make_rows(run *r, uint32_t i, uint32_t bottom) {
    const op *o = op_of(r->file, i);
    const int is_plain = o->kind == POINTWISE && !map_of(r->file, o->x)->buffer_rows && !map_of(r->file, o->y)->buffer_rows;
    row_window *window = &r->windows[i % CHAIN];
    while (window->to < bottom) {
        const uint32_t left = bottom - window->to, n = is_plain || left <= o->tile_rows ? left : o->tile_rows;
        if (r->standalone) window->from = window->to;
        run_tile(r, i, (row_window){window->to, window->to + n});
        window->to += n;
    }
}

static void linear(const run *r, const op *o) {
    const uint8_t *file = r->file;
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    const gemv_f32 s = {
        .groups = (int32_t)(round_up(y->w, 16) / 16), .n = (int32_t)x->w, .count = (const uint16_t *)(file + o->count),
        .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = floats(file, o->w),
        .bias = floats(file, o->bias), .x = r->arena + x->at, .y = r->arena + y->at, .lo = o->lo, .hi = o->hi,
    };
    r->kernels->gemv(&s);
    finish(file, o, r->kernels, r->arena + y->at, y->w, 1);
}

/* One operator, with all its rows. */
static void run_op(run *r, int index) {
    const op *o = op_of(r->file, (uint32_t)index);
    if (o->kind <= SEPARABLE) make_rows(r, (uint32_t)index, map_of(r->file, o->y)->h);
    else if (o->kind == LINEAR) linear(r, o);
    else run_table_op(r->file, o, r->kernels, r->arena);
}

void engine_step(const uint8_t *file, float *arena, const isa *kernels, int index) {
    run r = {.file = file, .arena = arena, .kernels = kernels, .standalone = 1};
    run_op(&r, index);
}

void engine_run(const uint8_t *file, float *arena, const isa *kernels, const float *x, float *y) {
    engine_put(file, arena, x);
    for (int i = 0; i < engine_ops(file); i++) {
        run r = {.file = file, .arena = arena, .kernels = kernels};
        if (!map_of(file, op_of(file, (uint32_t)i)->y)->buffer_rows) run_op(&r, i); /* else its reader has its rows made */
    }
    engine_get(file, arena, y);
}
