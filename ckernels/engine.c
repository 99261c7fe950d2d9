/* The engine: runs a packed network that check.c has passed, op by op over one arena. It allocates nothing. */
#include "engine.h"

/* There is no C library in a browser. */
static void copy(float *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

/* n pixels of each plane, from and to whatever pitch. */
static void copy_planes(float *to, int64_t to_pitch, const float *from, int64_t from_pitch, uint32_t planes, int64_t n) {
    for (uint32_t c = 0; c < planes; c++) copy(to + c * to_pitch, from + c * from_pitch, n);
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
   standalone: no rows are made, the operator reads whatever lies in the buffers.
   Maps lie in the arena that all threads of a team share. Each has an arena of its own besides, `local`, for rolling row
   buffers and whatever else it alone works with. split: all threads make the same row tiles together, each some channels of
   what is laid out, which lies in the shared arena, and some rows of the product; else each makes rows of its own. */
enum { CHAIN = ENGINE_MAX_CHAIN };
typedef struct {
    const uint8_t *file;
    float *arena, *local;
    const isa *kernels;
    const team *team;
    int standalone, split;
    row_window windows[CHAIN];
} run;

static float *workspace_of(const run *r, const op *o) { return (r->split ? r->arena : r->local) + o->work; }

/* Which of n things this thread has, `step` at a time, where a tile is split; else all. */
static range split_of(const run *r, int64_t n, int64_t step) {
    return r->split ? share(r->team, n, step) : (range){0, n};
}

/* Some of the pixels of each plane of the inputs. */
static void put(const uint8_t *file, float *arena, const float *x, const team *t) {
    for (uint32_t i = 0; i < head(file)->n_inputs; i++) {
        const map *m = map_of(file, ends(file)[i]);
        const int64_t pixels = (int64_t)m->h * m->w;
        const range some = share(t, m->interleaved ? pixels * m->c : pixels, 16);
        if (m->interleaved) copy(arena + m->at + some.from, x + some.from, some.to - some.from);
        else copy_planes(arena + m->at + some.from, m->pitch, x + some.from, pixels, m->c, some.to - some.from);
        x += floats_of(m);
    }
}

static void get(const uint8_t *file, const float *arena, float *y, const team *t) {
    for (uint32_t i = 0; i < head(file)->n_outputs; i++) {
        const map *m = map_of(file, ends(file)[head(file)->n_inputs + i]);
        const int64_t pixels = (int64_t)m->h * m->w;
        const range some = share(t, pixels, 16);
        copy_planes(y + some.from, pixels, arena + m->at + some.from, m->pitch, m->c, some.to - some.from);
        y += floats_of(m);
    }
}

static const team alone = {.threads = 1};
void engine_put(const uint8_t *file, float *arena, const float *x) { put(file, arena, x, &alone); }
void engine_get(const uint8_t *file, const float *arena, float *y) { get(file, arena, y, &alone); }

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

/* X as uint8, behind what else lies in the workspace; whether some of it is not finite, in any thread's share. */
static int quantised(const run *r, const op *o, const operands *p, uint8_t *to) {
    const int64_t channels = map_of(r->file, o->x)->c, taps = p->k / channels;
    range some = split_of(r, channels, 4); /* of these this thread has laid out the taps */
    some.from *= taps, some.to *= taps;
    const quantise_u8 q = {
        .c = (int32_t)(some.to - some.from), .n = (int32_t)p->n, .zero = (int32_t)o->zero_point, .inv_scale = o->inv_scale,
        .x_pitch = p->pitch, .y_pitch = p->pitch, .x = p->x + some.from * p->pitch, .y = to + some.from * p->pitch,
    };
    const int nonfinite = some.from < some.to && r->kernels->quantise(&q);
    if (!r->split) return nonfinite;
    meeting *m = r->team->meeting;
    const uint32_t round = __atomic_load_n(&m->round, __ATOMIC_ACQUIRE);
    if (nonfinite) __atomic_store_n(&m->nonfinite, round + 1, __ATOMIC_RELAXED);
    meet(r->team);
    return __atomic_load_n(&m->nonfinite, __ATOMIC_RELAXED) == round + 1;
}

/* Y = W X in int8: some groups of W's rows. */
static void product_u8s8(const run *r, const op *o, const operands *p, range groups) {
    const uint8_t *file = r->file;
    const map *x = map_of(file, o->x), *y = map_of(file, o->y), *a = o->add == NONE ? NULL : map_of(file, o->add);
    uint8_t *u8 = (uint8_t *)(workspace_of(r, o) + floats_before_u8(o, x));
    const int nonfinite = quantised(r, o, p, u8);
    const int64_t row = 4 * groups.from;
    const spmm_u8s8 s = {
        .groups = (int32_t)(groups.to - groups.from), .before = (int32_t)groups.from,
        .behind = (int32_t)(ceil_div4(y->c) - (uint64_t)groups.to),
        .k_tiles = (int32_t)((ceil_div4((uint64_t)p->k) + o->k_tile - 1) / o->k_tile), .k_tile = (int32_t)o->k_tile,
        .n = (int32_t)p->n, .zero = (int32_t)o->zero_point, .count = (const uint16_t *)(file + o->count),
        .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = (const int8_t *)(file + o->w),
        .sums = (const int32_t *)(file + o->sums) + row, .scale = floats(file, o->scale) + row,
        .bias = floats(file, o->bias) + row, .x = u8, .x_pitch = p->pitch, .y = p->y + row * y->pitch, .y_pitch = y->pitch,
        .add = a ? r->arena + a->at + p->at + row * a->pitch : NULL, .add_pitch = a ? a->pitch : 0, .lo = o->lo, .hi = o->hi,
    };
    if (s.groups) r->kernels->spmm_int8(&s);
    if (nonfinite) restore_nan(p, &s);
}

/* Y = W X in fp32: some groups of W's rows. */
static void product_f32(const run *r, const op *o, const operands *p, range groups) {
    const uint8_t *file = r->file;
    const map *y = map_of(file, o->y), *a = o->add == NONE ? NULL : map_of(file, o->add);
    const int64_t row = o->block * groups.from;
    const spmm_f32 s = {
        .block = (int32_t)o->block, .groups = (int32_t)(groups.to - groups.from), .before = (int32_t)groups.from,
        .behind = (int32_t)((y->c + o->block - 1) / o->block - groups.to),
        .k_tiles = (int32_t)((p->k + o->k_tile - 1) / o->k_tile), .k_tile = (int32_t)o->k_tile, .n = (int32_t)p->n,
        .count = (const uint16_t *)(file + o->count),
        .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = floats(file, o->w),
        .bias = floats(file, o->bias) + row, .x = p->x, .x_pitch = p->pitch, .y = p->y + row * y->pitch,
        .y_pitch = y->pitch, .add = a ? r->arena + a->at + p->at + row * a->pitch : NULL, .add_pitch = a ? a->pitch : 0,
        .lo = o->lo, .hi = o->hi,
    };
    if (s.groups) r->kernels->spmm(&s);
}

/* Y = W X, in fp32 or in int8, and what stands behind it; where a tile is split, once all of X is laid out. */
static void product(const run *r, const op *o, const operands *p) {
    const map *y = map_of(r->file, o->y);
    const range groups = split_of(r, (y->c + o->block - 1) / o->block, 1);
    if (o->flags & U8S8) product_u8s8(r, o, p, groups);
    else {
        if (r->split && o->kind != POINTWISE) meet(r->team);
        product_f32(r, o, p, groups);
    }
    const range planes = {groups.from * o->block, (int64_t)min((uint64_t)groups.to * o->block, y->c)};
    finish(r->file, o, r->kernels, p->y, planes, p->n, 1);
}

/* Rows top .. bottom - 1 of the depthwise convolution of the map at x, to planes `pitch` apart; of some channels. */
static void depthwise_rows(const run *r, const op *o, row_window rows, const float *x, float *y, int64_t pitch) {
    const map *in = map_of(r->file, o->x), *out = map_of(r->file, o->y);
    const int is_last = o->kind == DEPTHWISE; /* else its clamp is the pair's inner one */
    const range some = split_of(r, in->c, 4);
    const depthwise_f32 s = {
        .c = (int32_t)(some.to - some.from), .h = (int32_t)in->h, .w = (int32_t)in->w, .k = (int32_t)o->k,
        .stride = (int32_t)o->stride, .pad = (int32_t)o->pad, .pad_w = (int32_t)o->pad_w, .out_w = (int32_t)out->w,
        .top = (int32_t)rows.from, .bottom = (int32_t)rows.to, .x_pitch = in->pitch, .y_pitch = pitch,
        .x = x + some.from * in->pitch, .weight = floats(r->file, o->dw_w) + some.from * o->k * o->k,
        .bias = floats(r->file, o->dw_bias) + some.from, .y = y + some.from * pitch,
        .workspace = r->local + o->work + (is_last ? 0 : (int64_t)in->c * o->pitch),
        .lo = is_last ? o->lo : o->dw_lo, .hi = is_last ? o->hi : o->dw_hi,
    };
    r->kernels->depthwise(&s);
}

/* The pixels that each tap of a convolution meets in the map at x, as rows in the workspace; of some channels. */
static void im2col_rows(const run *r, const op *o, row_window rows, const float *x) {
    const map *in = map_of(r->file, o->x);
    const range some = split_of(r, in->c, 4); /* by four: then int8 has whole quads of rows */
    const int64_t channel = in->interleaved ? 1 : in->pitch;
    const im2col_f32 s = {
        .c = (int32_t)(some.to - some.from), .h = (int32_t)in->h, .w = (int32_t)in->w, .k = (int32_t)o->k,
        .k_w = (int32_t)o->k_w, .stride = (int32_t)o->stride, .stride_w = (int32_t)o->stride_w, .pad = (int32_t)o->pad,
        .pad_w = (int32_t)o->pad_w, .dilation = (int32_t)o->dilation, .dilation_w = (int32_t)o->dilation_w,
        .out_w = (int32_t)map_of(r->file, o->y)->w, .top = (int32_t)rows.from, .bottom = (int32_t)rows.to,
        .x_channel = channel, .x_pixel = in->interleaved ? in->c : 1, .y_pitch = o->pitch, .x = x + some.from * channel,
        .y = workspace_of(r, o) + some.from * o->k * o->k_w * o->pitch,
    };
    r->kernels->im2col(&s);
}

/* Where row 0 of a map would lie. */
static float *row_0(const run *r, const map *m, const row_window *window) {
    return m->buffer_rows ? r->local + m->at - (int64_t)window->from * m->w : r->arena + m->at;
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
        if (window->from == window->to) *window = (row_window){first, first}; /* a thread's first row need not be the map's */
        else roll(r->local, x, window, first);
        make_rows(r, i - 1, row_below(x, (int64_t)(rows.to - 1) * o->stride + span - o->pad));
    }
}

/* The activation between the halves of a separable pair, on what its depthwise half has laid out; of some channels. */
static void activate_between(const run *r, const op *o, const operands *p) {
    const range some = split_of(r, p->k, 4);
    float *at = workspace_of(r, o) + some.from * p->pitch;
    const unary_f32 s = {.act = (int32_t)o->inner_act, .c = (int32_t)(some.to - some.from), .n = p->n, .x_pitch = p->pitch,
                         .y_pitch = p->pitch, .x = at, .y = at, .lo = -INFINITE, .hi = INFINITE};
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
            depthwise_rows(r, o, rows, in, workspace, o->pitch);
            activate_between(r, o, &p);
            break;
        default: depthwise_rows(r, o, rows, in, p.y, y->pitch);
    }
    if (o->kind == DEPTHWISE) finish(r->file, o, r->kernels, p.y, split_of(r, y->c, 4), p.n, 1);
    else product(r, o, &p);
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
        if (r->split && window->to < bottom) meet(r->team); /* what is laid out is written over by the next */
    }
}

/* How many rows of y, or a multiple of them, a thread may have: kernels write whole vectors, and none may reach into the rows
   of another thread. So its row tiles end with a cache line; all of y, where they don't, or where a depthwise kernel's vectors
   reach beyond a row that is shorter. */
static int64_t rows_apart(const op *o, const map *x, const map *y) {
    int64_t rows = 1;
    while (rows * y->w % 16) rows++;
    const int all_at_once = o->kind == POINTWISE && !x->buffer_rows;
    return (!all_at_once && o->tile_rows % rows) || (o->kind == DEPTHWISE && y->w < 16) ? y->h : rows;
}

/* Whether the threads split row tiles, instead of making rows of their own. They do where rows can't be dealt out evenly, and
   where W is larger than what it is multiplied by: then each reads its part of W alone. */
static int splits(const run *r, const op *o) {
    const map *x = map_of(r->file, o->x), *y = map_of(r->file, o->y);
    if (r->team->threads == 1 || x->buffer_rows) return 0;
    if (o->kind == DEPTHWISE) return 1;
    const int64_t step = rows_apart(o, x, y), rows = ((y->h + step - 1) / step + r->team->threads - 1) / r->team->threads * step;
    const uint64_t columns = (uint64_t)x->c * (o->kind == CONV ? o->k * o->k_w : 1);
    const uint64_t weights = (uint64_t)o->blocks * o->block * (o->flags & U8S8 ? 4 : 1);
    return 16 * rows * r->team->threads > 17 * (int64_t)y->h || weights > columns * y->h * y->w;
}

/* Op i, a convolution of any kind, and those whose rows it has made: this thread's part. */
static void run_convolution(run *r, uint32_t i) {
    const op *o = op_of(r->file, i);
    const map *x = map_of(r->file, o->x), *y = map_of(r->file, o->y);
    r->split = splits(r, o);
    const range rows = r->split ? (range){0, y->h} : share(r->team, y->h, rows_apart(o, x, y));
    r->windows[i % CHAIN] = (row_window){(uint32_t)rows.from, (uint32_t)rows.from};
    make_rows(r, i, (uint32_t)rows.to);
}

/* y = W x: some groups of 16 rows. */
static void linear(const run *r, const op *o) {
    const uint8_t *file = r->file;
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    const range groups = share(r->team, (int64_t)(round_up(y->w, 16) / 16), 1);
    const uint16_t *count = (const uint16_t *)(file + o->count);
    int64_t before = 0;
    for (int64_t g = 0; g < groups.from; g++) before += count[g];
    const int64_t row = 16 * groups.from;
    const gemv_f32 s = {
        .groups = (int32_t)(groups.to - groups.from), .n = (int32_t)x->w, .count = count + groups.from,
        .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) + before : NULL, .w = floats(file, o->w) + 16 * before,
        .bias = floats(file, o->bias) + row, .x = r->arena + x->at, .y = r->arena + y->at + row, .lo = o->lo, .hi = o->hi,
    };
    if (!s.groups) return;
    r->kernels->gemv(&s);
    finish(file, o, r->kernels, s.y, (range){0, 1}, (int64_t)min(16 * (uint64_t)groups.to, y->w) - row, 1);
}

/* One operator, with all its rows; or this thread's part of them. */
static void run_op(run *r, int index) {
    const op *o = op_of(r->file, (uint32_t)index);
    const task t = {r->file, o, r->kernels, r->arena, r->local, r->team};
    if (o->kind <= SEPARABLE) run_convolution(r, (uint32_t)index);
    else if (o->kind == LINEAR) linear(r, o);
    else run_table_op(&t);
}

void engine_step(const uint8_t *file, float *arena, const isa *kernels, int index) {
    run r = {.file = file, .arena = arena, .local = arena, .kernels = kernels, .team = &alone, .standalone = 1};
    run_op(&r, index);
}

void engine_run_part(const uint8_t *file, float *arena, float *local, const isa *kernels, const team *team, const float *x,
                     float *y) {
    put(file, arena, x, team);
    for (int i = 0; i < engine_ops(file); i++) {
        run r = {.file = file, .arena = arena, .local = local, .kernels = kernels, .team = team};
        if (map_of(file, op_of(file, (uint32_t)i)->y)->buffer_rows) continue; /* its reader has its rows made */
        meet(team); /* what it reads is whole */
        run_op(&r, i);
    }
    meet(team);
    get(file, arena, y, team);
}

void engine_run(const uint8_t *file, float *arena, const isa *kernels, const float *x, float *y) {
    engine_run_part(file, arena, arena, kernels, &alone, x, y);
}

/* -- threads --------------------------------------------------------------------------------------------------------- */

#if defined __linux__ || defined __APPLE__
#include <sched.h>
#else
static void sched_yield(void) {} /* in a browser there is nothing to give the processor away to */
#endif
enum { SPINS = 1 << 12 }; /* some tens of microseconds: longer than threads with equal parts wait */

static void pause_spinning(void) {
#if defined __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

/* Wait for all threads of a team; or no longer, where they have been stopped. */
void meet(const team *t) {
    if (t->threads == 1) return;
    meeting *m = t->meeting;
    const uint32_t round = __atomic_load_n(&m->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&m->arrived, 1, __ATOMIC_ACQ_REL) == t->threads) {
        __atomic_store_n(&m->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&m->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (uint32_t spins = 0; __atomic_load_n(&m->round, __ATOMIC_ACQUIRE) == round; spins++) {
        if (__atomic_load_n(&m->stopped, __ATOMIC_ACQUIRE)) return;
        if (spins < SPINS) pause_spinning();
        else sched_yield();
    }
}

void engine_stop(meeting *m) { __atomic_store_n(&m->stopped, 1, __ATOMIC_RELEASE); }
