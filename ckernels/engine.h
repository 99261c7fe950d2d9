/* A packed network as it lies in a file (lab/sparsebytenn/packed.py describes it): its records, and where they are.
   check.c asks whether one may be run, engine.c runs it, operators.c has those operators that are no convolution. */
#include <stddef.h>
#include <stdint.h>
#include "kernels.h"

enum { HEADER = 16, MAP = 8, OP = 40, NONE = 0xffffffffu, MAGIC = 0x4e4e4253, VERSION = 3, MAX_SIDE = 1 << 20 };
enum { CONV = 1, POINTWISE, DEPTHWISE, SEPARABLE, MEAN, LINEAR, BINARY, UNARY, POOL, MOVE, RESIZE, SOFTMAX, NORM, MATMUL };
enum { CONST = 15 };
enum { INDEXED = 1, U8S8 = 2 };                   /* of op.flags */
enum { U8S8_MAX_COLUMNS = 1 << 16 };              /* 2^16 * 255 * 128 < 2^31: so many products an int32 can sum */
enum { MAX_OPS = 1 << 12, MAX_FLOATS = 1 << 30 }; /* of a file; of an arena, 4 GiB */
#define INFINITE __builtin_inff()
enum { MAX_WINDOW = 1 << 10, MAX_ENDS = 256 };    /* of a window's sides, stride, zeros, dilation; inputs, and outputs */

/* A map with `buffer_rows` is a rolling row buffer: it never holds more than that many of its rows. The operator behind its
   writer alone reads it, and has rows made when it needs them: so large maps stay in the cache. */
typedef struct {
    uint32_t magic, version, size, crc, n_maps, n_ops, maps, ops, arena, unused[2], ends;
    uint16_t n_inputs, n_outputs; /* the maps' numbers, inputs first, are at `ends` */
    uint32_t meta, meta_size, zero;
} header;
typedef struct {
    uint32_t c, h, w, pitch, at, interleaved, buffer_rows, zero;
} map;
typedef struct {
    uint32_t kind, x, add, y, k, stride, pad, tile_rows, k_tile, flags, blocks, w, col, count, bias;
    float lo, hi;
    uint32_t dw_w, dw_bias;
    float dw_lo, dw_hi;
    uint32_t pitch;  /* of the workspace's rows, where a convolution or a separable pair lays out a row tile */
    float inv_scale; /* with U8S8: X as uint8 is x * inv_scale + zero_point */
    uint32_t zero_point, scale, sums, k_w, stride_w, pad_w, dilation, dilation_w, act, slopes, inner_act, fn, planes;
    uint32_t args, n_args; /* the table of operators that have one: so many words from byte `args` on */
    uint32_t block;        /* rows of a block of a product's weights */
    uint32_t work;         /* where in the arena the operator's workspace begins */
} op;

/* A piece of a move, as its table has it. */
typedef struct {
    uint32_t x, x_at, y_at, sizes[6];
    int32_t x_strides[6], y_strides[6];
} piece;
enum { PIECE = sizeof(piece) / 4, MOVE_HEAD = 2 }; /* words; before the pieces: whether there is a fill, and which */

/* The table of a product of two maps. */
typedef struct {
    uint32_t batch[2], m, k, n, a_at, a_strides[4], b_at, b_strides[3];
    float scale;
} matmul_table;

static inline const header *head(const uint8_t *file) { return (const header *)file; }
static inline const map *map_of(const uint8_t *file, uint32_t i) { return (const map *)(file + head(file)->maps) + i; }
static inline const op *op_of(const uint8_t *file, uint32_t i) { return (const op *)(file + head(file)->ops) + i; }
static inline const float *floats(const uint8_t *file, uint32_t at) { return (const float *)(file + at); }
static inline const uint32_t *words(const uint8_t *file, uint32_t at) { return (const uint32_t *)(file + at); }
static inline uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }
static inline uint64_t ceil_div4(uint64_t n) { return (n + 3) / 4; }
static inline uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t max(uint64_t a, uint64_t b) { return a > b ? a : b; }

static inline const piece *pieces(const uint8_t *file, const op *o) {
    return (const piece *)(words(file, o->args) + MOVE_HEAD);
}
static inline uint32_t n_pieces(const op *o) { return (o->n_args - MOVE_HEAD) / PIECE; }

/* How many maps an operator reads, and the i-th of them; its x is the first. */
static inline uint32_t n_reads(const op *o) {
    return o->kind == CONST ? 0 : o->kind == MOVE ? n_pieces(o) : o->add == NONE ? 1 : 2;
}
static inline uint32_t read_of(const uint8_t *file, const op *o, uint32_t i) {
    return o->kind == MOVE ? pieces(file, o)[i].x : i ? o->add : o->x;
}

/* The maps' numbers of all inputs, then all outputs. */
static inline const uint32_t *ends(const uint8_t *file) { return words(file, head(file)->ends); }

/* Floats of the arena that a map takes. */
static inline uint64_t extent(const map *m) {
    return m->interleaved ? round_up((uint64_t)m->h * m->w * m->c, 16) + 16 : round_up(m->c, 4) * m->pitch;
}

/* Floats that a depthwise operator, or the depthwise half of a separable pair, works in; 0 for all others. */
static inline uint64_t depthwise_floats(const op *o, const map *x) {
    if (o->kind != DEPTHWISE && o->kind != SEPARABLE) return 0;
    return (uint64_t)depthwise_workspace((int)x->w, (int)o->k, (int)o->stride, (int)o->tile_rows);
}

/* Floats of the workspace before X as uint8: the rows that a product reads, then what a depthwise half works in. */
static inline uint64_t floats_before_u8(const op *o, const map *x) {
    const uint64_t rows = o->kind == CONV ? (uint64_t)x->c * o->k * o->k_w : o->kind == SEPARABLE ? x->c : 0;
    return rows * o->pitch + depthwise_floats(o, x);
}

/* Floats of an operator's workspace, of a kind whose other numbers have been checked. */
static inline uint64_t work_floats(const uint8_t *file, const op *o) {
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    const matmul_table *t = (const matmul_table *)words(file, o->args);
    if (o->kind == MATMUL) return (uint64_t)matmul_workspace((int)t->m, (int)t->k, (int)t->n);
    if (o->kind == POOL || o->kind == RESIZE) return (uint64_t)line_workspace((int)x->w, (int)y->w);
    const int product = o->kind == CONV || o->kind == POINTWISE || o->kind == SEPARABLE;
    if (!product || !(o->flags & U8S8)) return floats_before_u8(o, x);
    const uint64_t columns = (uint64_t)x->c * (o->kind == CONV ? o->k * o->k_w : 1);
    return floats_before_u8(o, x) + ceil_div4(columns) * (o->kind == POINTWISE ? x->pitch : o->pitch);
}

/* How the second map of a binary operator meets y: pixel by pixel, a number a plane, a number a pixel, or one number. */
enum { MISFIT, EVERY, PLANEWISE, PIXELWISE, SINGLE };
static inline int spread(const map *y, const map *b) {
    if (b->c == y->c && b->h == y->h && b->w == y->w && b->pitch == y->pitch) return EVERY;
    if (y->c > 1 && ((b->c == y->c && b->h == 1 && b->w == 1) || (b->c == 1 && b->h == 1 && b->w == y->c))) return PLANEWISE;
    if (b->c == 1 && b->h == y->h && b->w == y->w) return PIXELWISE;
    return b->c == 1 && b->h == 1 && b->w == 1 ? SINGLE : MISFIT;
}

/* Between the files of the engine. */
enum { TRUNCATED = 1, NOT_OURS, OTHER_VERSION, CHANGED, BAD_MAP, BAD_OP, BAD_SHAPE, BAD_SECTION, BAD_BLOCKS, BAD_ARENA };
enum { LARGE_ARENA = 11, STALE, BAD_SUMS, BAD_TEXT, BAD_TABLE };
int section(const header *h, uint64_t at, uint64_t bytes);
int leaves_arena(const header *h, const op *o, uint64_t floats);
int check_table_op(const uint8_t *file, const op *o);
int check_text(const uint8_t *file);

/* What one of several threads has of n things, `step` at a time: from .. to - 1. */
typedef struct {
    int64_t from, to;
} range;
static inline range share(const team *t, int64_t n, int64_t step) {
    const int64_t steps = (n + step - 1) / step;
    const int64_t from = steps * t->rank / t->threads * step, to = steps * (t->rank + 1) / t->threads * step;
    return (range){from < n ? from : n, to < n ? to : n};
}
void meet(const team *t);

/* All that an operator which is no convolution is run with; `local` is the thread's arena, for its workspace. */
typedef struct {
    const uint8_t *file;
    const op *o;
    const isa *kernels;
    float *arena, *local;
    const team *team;
} task;
void finish(const uint8_t *file, const op *o, const isa *kernels, float *y, range planes, int64_t n, int clamped);
void run_table_op(const task *t);
