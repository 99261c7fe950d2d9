/* The engine: reads a packed network (lab/sparsebytenn/packed.py writes it and describes the format), checks every
   number in it that could lead out of bounds, and runs it op by op over one arena. It allocates nothing. */
#include "isa.h"
#include <float.h>

enum { HEADER = 16, MAP = 8, OP = 32, NONE = 0xffffffffu, MAGIC = 0x4e4e4253, VERSION = 1, MAX_SIDE = 1 << 20 };
enum { CONV = 1, POINTWISE, DEPTHWISE, SEPARABLE, MEAN, LINEAR, ADD };
enum { INDEXED = 1, U8S8 = 2 };                   /* of op.flags */
enum { U8S8_MAX_COLUMNS = 1 << 16 };              /* 2^16 * 255 * 128 < 2^31: so many products an int32 can sum */
enum { MAX_OPS = 1 << 12, MAX_FLOATS = 1 << 30 }; /* of a file; of an arena, 4 GiB */

/* A map with `buffer_rows` is a rolling row buffer: it never holds more than that many of its rows. The operator behind its
   writer alone reads it, and has rows made when it needs them: so large maps stay in the cache. */
typedef struct {
    uint32_t magic, version, size, crc, n_maps, n_ops, maps, ops, arena, workspace, workspace_floats, input, output;
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
    uint32_t zero_point, scale, sums, zero[6];
} op;

static const header *head(const uint8_t *file) { return (const header *)file; }
static const map *map_of(const uint8_t *file, uint32_t i) { return (const map *)(file + head(file)->maps) + i; }
static const op *op_of(const uint8_t *file, uint32_t i) { return (const op *)(file + head(file)->ops) + i; }
static const float *floats(const uint8_t *file, uint32_t at) { return (const float *)(file + at); }
static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }
static uint64_t ceil_div4(uint64_t n) { return (n + 3) / 4; }
static uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t max(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Floats that a depthwise operator, or the depthwise half of a separable pair, works in; 0 for all others. */
static uint64_t depthwise_floats(const op *o, const map *x) {
    if (o->kind != DEPTHWISE && o->kind != SEPARABLE) return 0;
    return (uint64_t)depthwise_workspace((int)x->w, (int)o->k, (int)o->stride, (int)o->tile_rows);
}

/* Floats of the workspace before X as uint8: the rows that a product reads, then what a depthwise half works in. */
static uint64_t floats_before_u8(const op *o, const map *x) {
    const uint64_t rows = o->kind == CONV ? (uint64_t)x->c * o->k * o->k : o->kind == SEPARABLE ? x->c : 0;
    return rows * o->pitch + depthwise_floats(o, x);
}

/* -- what may be wrong with a file: the number of the first thing, or 0 ---------------------------------------------- */

enum { TRUNCATED = 1, NOT_OURS, OTHER_VERSION, CHANGED, BAD_MAP, BAD_OP, BAD_SHAPE, BAD_SECTION, BAD_BLOCKS, BAD_ARENA };
enum { LARGE_ARENA = 11, STALE, BAD_SUMS, BAD_TEXT };

/* CRC-32 as zlib has it, bytes in order, least bit first. */
static uint32_t crc32(const uint8_t *p, uint64_t n) {
    uint32_t crc = ~0u, table[256];
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
    }
    for (; n; n--) crc = crc >> 8 ^ table[(crc ^ *p++) & 255];
    return ~crc;
}

/* Whether so many bytes from `at` on lie in the file, behind its header, on a border of 4. */
static int section(const header *h, uint64_t at, uint64_t bytes) {
    return at % 4 == 0 && at >= 4 * HEADER && at <= h->size && bytes <= h->size - at;
}

/* Floats of the arena that a map takes. */
static uint64_t extent(const map *m) {
    return m->interleaved ? round_up((uint64_t)m->h * m->w * m->c, 16) + 16 : round_up(m->c, 4) * m->pitch;
}

/* Whether a map has a shape that can be, and lies in the arena, apart from the workspace. */
static int check_map(const header *h, const map *m) {
    const uint64_t pixels = (uint64_t)(m->buffer_rows ? m->buffer_rows : m->h) * m->w;
    if (!m->c || !m->h || !m->w || m->c > MAX_SIDE || m->h > MAX_SIDE || m->w > MAX_SIDE) return BAD_MAP;
    if (m->interleaved > 1) return BAD_MAP;
    if (m->buffer_rows && (m->buffer_rows > m->h || m->interleaved)) return BAD_MAP;
    if ((uint64_t)m->h * m->w > 1u << 28 || m->at % 16 || m->pitch % 16) return BAD_MAP;
    if (!m->interleaved && m->pitch < round_up(pixels, 16) + 16) return BAD_MAP;
    const uint64_t size = extent(m);
    if (size > h->arena || m->at > h->arena - size) return BAD_ARENA;
    return m->at + size <= h->workspace || m->at >= (uint64_t)h->workspace + h->workspace_floats ? 0 : BAD_ARENA;
}

/* Whether the arena is no larger than what lies in it. */
static int check_arena(const uint8_t *file) {
    const header *h = head(file);
    uint64_t end = (uint64_t)h->workspace + h->workspace_floats;
    for (uint32_t i = 0; i < h->n_maps; i++) end = max(end, map_of(file, i)->at + extent(map_of(file, i)));
    return h->arena > round_up(end, 16) ? LARGE_ARENA : 0;
}

/* Whether the stored sums of an int8 product, whose blocks have been checked, are those of its weights. */
static int check_sums(const uint8_t *file, const op *o, uint64_t groups, uint64_t k_tiles) {
    enum { AT_ONCE = 256 }; /* groups of rows summed in one pass over the counts */
    const int32_t *stored = (const int32_t *)(file + o->sums);
    for (uint64_t first = 0; first < groups; first += AT_ONCE) {
        int32_t sums[4 * AT_ONCE] = {0};
        const uint16_t *count = (const uint16_t *)(file + o->count);
        const int8_t *w = (const int8_t *)(file + o->w);
        for (uint64_t i = 0; i < k_tiles * groups; w += 16 * (uint64_t)count[i++]) {
            const uint64_t g = i % groups;
            if (g < first || g >= first + AT_ONCE) continue;
            for (uint64_t j = 0; j < 16 * (uint64_t)count[i]; j++) sums[4 * (g - first) + j % 16 / 4] += w[j];
        }
        for (uint64_t r = 4 * first; r < 4 * min(groups, first + AT_ONCE); r++)
            if (stored[r] != sums[r - 4 * first]) return BAD_SUMS;
    }
    return 0;
}

/* Whether the blocks of an op, `groups` groups of `rows` rows, go with its counts and stay within `columns` of X. */
static int check_blocks(const uint8_t *file, const op *o, uint64_t groups, uint64_t rows, uint64_t columns) {
    const header *h = head(file);
    if (o->flags & U8S8) {
        if (rows != 4 || columns > U8S8_MAX_COLUMNS || o->zero_point > 255) return BAD_OP;
        if (!(o->inv_scale > 0 && o->inv_scale <= FLT_MAX)) return BAD_OP;
        if (!section(h, o->scale, 16 * groups) || !section(h, o->sums, 16 * groups)) return BAD_SECTION;
        columns = ceil_div4(columns); /* a block is 4 columns wide */
    }
    if (!o->k_tile || o->k_tile > 65535 || o->flags > (INDEXED | U8S8)) return BAD_BLOCKS;
    if (o->flags == INDEXED && rows == 4 && o->k_tile > SPMM_MAX_K_TILE) return BAD_BLOCKS;
    const uint64_t k_tiles = (columns + o->k_tile - 1) / o->k_tile;
    if (!section(h, o->count, 2 * k_tiles * groups) || !section(h, o->bias, 4 * rows * groups)) return BAD_SECTION;
    if (!section(h, o->w, 4 * rows * o->blocks)) return BAD_SECTION;
    if ((o->flags & INDEXED) && !section(h, o->col, 2 * (uint64_t)o->blocks)) return BAD_SECTION;
    const uint16_t *count = (const uint16_t *)(file + o->count), *col = (const uint16_t *)(file + o->col);
    uint64_t block = 0;
    for (uint64_t c = 0; c < k_tiles; c++) {
        const uint64_t width = c + 1 < k_tiles ? o->k_tile : columns - c * o->k_tile;
        for (uint64_t g = 0; g < groups; g++) {
            const uint64_t n = *count++;
            if (n > o->blocks - block || (!(o->flags & INDEXED) && n != width)) return BAD_BLOCKS;
            for (uint64_t i = 0; (o->flags & INDEXED) && i < n; i++)
                if (col[block + i] >= width || (i && col[block + i] <= col[block + i - 1])) return BAD_BLOCKS;
            block += n;
        }
    }
    if (block != o->blocks) return BAD_BLOCKS;
    return o->flags & U8S8 ? check_sums(file, o, groups, k_tiles) : 0;
}

/* Whether a window of k, stride and pad leads from x to y's height and width, and a row tile of it fits the workspace. */
static int check_window(const header *h, const op *o, const map *x, const map *y, uint64_t rows) {
    if (!o->k || o->k > 64 || !o->stride || o->stride > 64 || o->pad >= o->k) return BAD_OP;
    if (!o->tile_rows || o->tile_rows > y->h) return BAD_OP;
    const uint64_t tall = (uint64_t)x->h + 2 * o->pad, wide = (uint64_t)x->w + 2 * o->pad;
    if (tall < o->k || wide < o->k) return BAD_SHAPE;
    if ((tall - o->k) / o->stride + 1 != y->h || (wide - o->k) / o->stride + 1 != y->w) return BAD_SHAPE;
    if (rows && (o->pitch % 16 || o->pitch < round_up((uint64_t)o->tile_rows * y->w, 16) + 16)) return BAD_OP;
    const int depthwise = o->kind == DEPTHWISE || o->kind == SEPARABLE;
    if (depthwise && (x->interleaved || (o->k != 3 && o->k != 5) || o->stride > 2)) return BAD_OP;
    return rows * o->pitch + depthwise_floats(o, x) > h->workspace_floats ? BAD_ARENA : 0;
}

/* The blocks that multiply `columns` of what is laid out of x, and in int8 whether x as uint8 fits the workspace. */
static int check_product(const uint8_t *file, const op *o, const map *x, const map *y, uint64_t columns) {
    const uint64_t pitch = o->kind == POINTWISE ? x->pitch : o->pitch;
    const uint64_t end = floats_before_u8(o, x) + ceil_div4(columns) * pitch;
    if (o->flags & U8S8 && end > head(file)->workspace_floats) return BAD_ARENA;
    return check_blocks(file, o, round_up(y->c, 4) / 4, 4, columns);
}

/* Whether the rolling row buffers that op i reads and writes go with its neighbours, and hold what a row tile reads. */
static int check_buffers(const uint8_t *file, uint32_t i) {
    const header *h = head(file);
    const op *o = op_of(file, i);
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    if (o->add != NONE && map_of(file, o->add)->buffer_rows) return BAD_SHAPE;
    if (!x->buffer_rows && !y->buffer_rows) return 0;
    if (o->kind > SEPARABLE || !o->tile_rows || o->tile_rows > y->h) return BAD_OP;
    if (o->kind == POINTWISE && (o->k != 1 || o->stride != 1 || o->pad)) return BAD_OP;
    const int has_reader = i + 1 < h->n_ops && op_of(file, i + 1)->x == o->y;
    if (y->buffer_rows && (y->buffer_rows < o->tile_rows || !has_reader)) return BAD_SHAPE;
    if (!x->buffer_rows) return 0;
    uint32_t links = 1;
    while (links < ENGINE_MAX_CHAIN && links <= i && map_of(file, op_of(file, i - links)->x)->buffer_rows) links++;
    if (i == 0 || links == ENGINE_MAX_CHAIN || op_of(file, i - 1)->y != o->x) return BAD_SHAPE;
    const uint64_t read = (uint64_t)(o->tile_rows - 1) * o->stride + max(o->k, o->stride); /* rows, by a row tile */
    return x->buffer_rows < min(read, x->h) ? BAD_SHAPE : 0;
}

/* Whether an operator's maps have the shapes that it asks for, and all that it reads lies in the file. */
static int check_op(const uint8_t *file, const op *o) {
    const header *h = head(file);
    if (o->x >= h->n_maps || o->y >= h->n_maps || o->x == o->y) return BAD_OP;
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    const int has_add = o->add != NONE;
    if (has_add && o->add >= h->n_maps) return BAD_OP;
    const map *a = has_add ? map_of(file, o->add) : y;
    if (y->interleaved || a->interleaved || a->c != y->c || a->h != y->h || a->w != y->w) return BAD_SHAPE;
    if (has_add && a->pitch != y->pitch) return BAD_SHAPE;
    if (x->interleaved && o->kind != CONV) return BAD_SHAPE;
    const int product = o->kind == CONV || o->kind == POINTWISE || o->kind == SEPARABLE; /* what can take a sum in */
    if (has_add && !product && o->kind != ADD) return BAD_OP;
    if (!(o->lo <= o->hi) || (o->kind == SEPARABLE && !(o->dw_lo <= o->dw_hi))) return BAD_OP;
    int wrong = 0;
    switch (o->kind) {
        case CONV: {
            if (!o->k || o->k > 64) return BAD_OP;
            const uint64_t columns = (uint64_t)x->c * o->k * o->k;
            wrong = check_window(h, o, x, y, columns);
            return wrong ? wrong : check_product(file, o, x, y, columns);
        }
        case POINTWISE:
            if (x->h != y->h || x->w != y->w) return BAD_SHAPE;
            return check_product(file, o, x, y, x->c);
        case DEPTHWISE:
        case SEPARABLE:
            if (!section(h, o->dw_w, 4 * (uint64_t)x->c * o->k * o->k) || o->k > 64) return BAD_SECTION;
            if (!section(h, o->dw_bias, 4 * (uint64_t)x->c)) return BAD_SECTION;
            if (o->kind == DEPTHWISE && x->c != y->c) return BAD_SHAPE;
            wrong = check_window(h, o, x, y, o->kind == SEPARABLE ? x->c : 0);
            return wrong || o->kind == DEPTHWISE ? wrong : check_product(file, o, x, y, x->c);
        case MEAN: return y->c == 1 && y->h == 1 && y->w == x->c ? 0 : BAD_SHAPE;
        case LINEAR:
            if (x->c != 1 || x->h != 1 || y->c != 1 || y->h != 1) return BAD_SHAPE;
            if (o->k_tile < x->w) return BAD_OP; /* one k-tile */
            return check_blocks(file, o, round_up(y->w, 16) / 16, 16, x->w);
        case ADD: return has_add && x->c == y->c && x->h == y->h && x->w == y->w && x->pitch == y->pitch ? 0 : BAD_SHAPE;
    }
    return BAD_OP;
}

/* Lifetimes: a map is written by one operator, read by those behind, and its floats may then be another's.
   The operator in whose turn op i runs: itself, or that of the first behind it to write a whole map. */
static uint32_t turn(const uint8_t *file, uint32_t i) {
    while (map_of(file, op_of(file, i)->y)->buffer_rows) i++;
    return i;
}

/* Whether map number `read` holds what was written to it when the operators i .. last run, which read it. */
static int is_fresh(const uint8_t *file, uint32_t read, uint32_t i, uint32_t last) {
    const header *h = head(file);
    const map *m = map_of(file, read);
    uint32_t since = i; /* the first operator behind the one that wrote the map */
    while (since && op_of(file, since - 1)->y != read) since--;
    if (!since && read != h->input) return 0;
    for (uint32_t j = since; j < h->n_ops && j <= last; j++) {
        const map *y = map_of(file, op_of(file, j)->y);
        if (y->at < m->at + extent(m) && m->at < y->at + extent(y)) return 0;
    }
    return 1;
}

/* Whether every map is written before it is read, and nothing is written over it in between. */
static int check_order(const uint8_t *file) {
    const header *h = head(file);
    for (uint32_t i = 0; i < h->n_ops; i++) {
        const op *o = op_of(file, i);
        if (!is_fresh(file, o->x, i, turn(file, i))) return STALE;
        if (o->add != NONE && !is_fresh(file, o->add, i, turn(file, i))) return STALE;
    }
    return is_fresh(file, h->output, h->n_ops, h->n_ops) ? 0 : STALE;
}

/* -- its description: one JSON object of integers, strings and lists of them, as packed.py writes it --------------- */

typedef struct {
    const uint8_t *at, *end; /* what is left to read */
} text;

static int next(text *t, char c) { return t->at < t->end && *t->at == (uint8_t)c ? t->at++, 1 : 0; }
static int is_one_of(uint8_t c, const char *those) {
    while (*those && (uint8_t)*those != c) those++;
    return *those != 0;
}

/* Each of these reads what it is named after and moves on, or returns 0. */
static int escape(text *t) {
    if (!next(t, 'u')) return t->at < t->end && is_one_of(*t->at++, "\"\\/bfnrt");
    for (int i = 0; i < 4; i++)
        if (t->at == t->end || !is_one_of(*t->at++, "0123456789abcdefABCDEF")) return 0;
    return 1;
}

static int string(text *t) {
    if (!next(t, '"')) return 0;
    while (t->at < t->end) {
        const uint8_t c = *t->at++;
        if (c == '"') return 1;
        if (c < ' ' || c > '~' || (c == '\\' && !escape(t))) return 0;
    }
    return 0;
}

static int number(text *t) {
    next(t, '-');
    if (next(t, '0')) return 1;
    int digits = 0;
    while (digits < 15 && t->at < t->end && is_one_of(*t->at, "0123456789")) t->at++, digits++;
    return digits > 0;
}

static int item(text *t) { return t->at < t->end && *t->at == '"' ? string(t) : number(t); }

/* A value; of a list, `strings` says how many it holds if they are all strings, else -1. */
static int value(text *t, int64_t *strings) {
    *strings = -1;
    if (!next(t, '[')) return item(t);
    int64_t n = 0, others = 0;
    if (!next(t, ']')) {
        do {
            others += t->at < t->end && *t->at != '"';
            if (!item(t)) return 0;
            n++;
        } while (next(t, ',') && next(t, ' '));
        if (!next(t, ']')) return 0;
    }
    *strings = others ? -1 : n;
    return 1;
}

/* Whether it can be read, and its "names" are strings, one an operator. */
static int check_text(const uint8_t *file) {
    const header *h = head(file);
    text t = {file + h->meta, file + h->meta + h->meta_size};
    int64_t names = -1, strings;
    if (!next(&t, '{')) return BAD_TEXT;
    do {
        const uint8_t *key = t.at, name[] = "\"names\"";
        if (!next(&t, '"')) return BAD_TEXT;
        while (t.at < t.end && is_one_of(*t.at, "abcdefghijklmnopqrstuvwxyz")) t.at++;
        if (!next(&t, '"')) return BAD_TEXT;
        int is_names = t.at - key == sizeof name - 1;
        for (uint32_t i = 0; is_names && i < sizeof name - 1; i++) is_names = key[i] == name[i];
        if (!next(&t, ':') || !next(&t, ' ') || !value(&t, &strings)) return BAD_TEXT;
        if (is_names) names = strings;
    } while (next(&t, ',') && next(&t, ' '));
    return next(&t, '}') && t.at == t.end && names == h->n_ops ? 0 : BAD_TEXT;
}

int engine_check(const uint8_t *file, uint64_t size) {
    const header *h = head(file);
    if (size < 4 * HEADER) return TRUNCATED;
    if (h->magic != MAGIC) return NOT_OURS;
    if (h->version != VERSION) return OTHER_VERSION;
    if (h->size != size) return TRUNCATED;
    if (crc32(file + 16, size - 16) != h->crc) return CHANGED;
    if (!section(h, h->maps, 4ull * MAP * h->n_maps) || !section(h, h->ops, 4ull * OP * h->n_ops)) return BAD_SECTION;
    if (!section(h, h->meta, h->meta_size)) return BAD_SECTION;
    if (h->input >= h->n_maps || h->output >= h->n_maps || map_of(file, h->output)->interleaved) return BAD_MAP;
    if (h->n_ops > MAX_OPS) return BAD_OP;
    if (h->arena > MAX_FLOATS) return LARGE_ARENA;
    if (h->arena * (uint64_t)sizeof(float) > PTRDIFF_MAX) return LARGE_ARENA; /* on a 32-bit machine */
    if (h->workspace % 16 || h->workspace > h->arena || h->workspace_floats > h->arena - h->workspace) return BAD_ARENA;
    for (uint32_t i = 0; i < h->n_maps; i++) {
        const int wrong = check_map(h, map_of(file, i));
        if (wrong) return wrong;
    }
    if (map_of(file, h->input)->buffer_rows || map_of(file, h->output)->buffer_rows) return BAD_MAP;
    for (uint32_t i = 0; i < h->n_ops; i++) {
        const int wrong = check_op(file, op_of(file, i));
        if (wrong) return wrong;
    }
    for (uint32_t i = 0; i < h->n_ops; i++) {
        const int wrong = check_buffers(file, i);
        if (wrong) return wrong;
    }
    int wrong = check_arena(file);
    if (!wrong) wrong = check_order(file);
    return wrong ? wrong : check_text(file);
}

uint64_t engine_arena(const uint8_t *file) { return head(file)->arena; }
static uint64_t floats_of(const map *m) { return (uint64_t)m->c * m->h * m->w; }
uint64_t engine_in(const uint8_t *file) { return floats_of(map_of(file, head(file)->input)); }
uint64_t engine_out(const uint8_t *file) { return floats_of(map_of(file, head(file)->output)); }
int engine_ops(const uint8_t *file) { return (int)head(file)->n_ops; }

/* -- running -------------------------------------------------------------------------------------------------------- */

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

static float *workspace_of(const run *r) { return r->arena + head(r->file)->workspace; }

/* There is no C library in a browser. */
static void copy(float *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

void engine_put(const uint8_t *file, float *arena, const float *x) {
    const map *m = map_of(file, head(file)->input);
    const int64_t pixels = (int64_t)m->h * m->w;
    if (m->interleaved) copy(arena + m->at, x, pixels * m->c);
    else
        for (uint32_t c = 0; c < m->c; c++) copy(arena + m->at + (int64_t)c * m->pitch, x + c * pixels, pixels);
}

void engine_get(const uint8_t *file, const float *arena, float *y) {
    const map *m = map_of(file, head(file)->output);
    const int64_t pixels = (int64_t)m->h * m->w;
    for (uint32_t c = 0; c < m->c; c++) copy(y + c * pixels, arena + m->at + (int64_t)c * m->pitch, pixels);
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
        .x_pitch = p->pitch, .y_pitch = p->pitch, .x = p->x, .y = (uint8_t *)(workspace_of(r) + floats_before_u8(o, x)),
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
        .groups = (int32_t)ceil_div4(y->c), .k_tiles = (int32_t)((p->k + o->k_tile - 1) / o->k_tile),
        .k_tile = (int32_t)o->k_tile, .n = (int32_t)p->n, .count = (const uint16_t *)(file + o->count),
        .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = floats(file, o->w),
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
        .pad = (int32_t)o->pad, .out_w = (int32_t)out->w, .top = (int32_t)rows.from, .bottom = (int32_t)rows.to,
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
        .c = (int32_t)in->c, .h = (int32_t)in->h, .w = (int32_t)in->w, .k = (int32_t)o->k, .stride = (int32_t)o->stride,
        .pad = (int32_t)o->pad, .out_w = (int32_t)map_of(r->file, o->y)->w, .top = (int32_t)rows.from,
        .bottom = (int32_t)rows.to, .x_channel = in->interleaved ? 1 : in->pitch, .x_pixel = in->interleaved ? in->c : 1,
        .y_pitch = o->pitch, .x = x, .y = workspace_of(r),
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

/* The rows of x that a row tile of op i reads are in its rolling row buffer: what lacks is made by the operator before. */
static void make_input(run *r, uint32_t i, row_window rows) {
    const op *o = op_of(r->file, i);
    const map *x = map_of(r->file, o->x);
    row_window *window = &r->windows[(i + CHAIN - 1) % CHAIN];
    const uint32_t first = rows.from * o->stride < o->pad ? 0 : rows.from * o->stride - o->pad;
    if (r->standalone) window->from = first;
    else {
        roll(r->arena, x, window, first);
        make_rows(r, i - 1, (uint32_t)min((rows.to - 1) * o->stride + o->k - o->pad, x->h));
    }
}

/* One row tile of op i, a convolution of any kind: what it lays out, and a depthwise half, stays in the cache for the
   product that reads it. */
static void run_tile(run *r, uint32_t i, row_window rows) {
    const op *o = op_of(r->file, i);
    const map *x = map_of(r->file, o->x), *y = map_of(r->file, o->y);
    if (x->buffer_rows) make_input(r, i, rows);
    const float *in = row_0(r, x, &r->windows[(i + CHAIN - 1) % CHAIN]);
    float *workspace = workspace_of(r);
    operands p = {.x = workspace, .k = x->c, .pitch = o->pitch, .at = (int64_t)rows.from * y->w,
                  .n = (int64_t)(rows.to - rows.from) * y->w};
    p.y = row_0(r, y, &r->windows[i % CHAIN]) + p.at;
    switch (o->kind) {
        case CONV:
            im2col_rows(r, o, rows, in);
            p.k *= (int64_t)o->k * o->k;
            break;
        case POINTWISE:
            p.x = in + p.at;
            p.pitch = x->pitch;
            break;
        case SEPARABLE: depthwise_rows(r, o, rows, in, workspace + (int64_t)x->c * o->pitch, workspace, o->pitch); break;
        default: depthwise_rows(r, o, rows, in, workspace, p.y, y->pitch); return;
    }
    product(r, o, &p);
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

/* One operator, with all its rows. */
static void run_op(run *r, int index) {
    const uint8_t *file = r->file;
    const op *o = op_of(file, (uint32_t)index);
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    float *in = r->arena + x->at, *out = r->arena + y->at;
    switch (o->kind) {
        case CONV:
        case POINTWISE:
        case DEPTHWISE:
        case SEPARABLE: make_rows(r, (uint32_t)index, y->h); break;
        case MEAN: {
            const mean_f32 s = {.c = (int32_t)x->c, .n = (int32_t)(x->h * x->w), .x_pitch = x->pitch, .x = in, .y = out};
            r->kernels->mean(&s);
            for (uint32_t c = 0; c < x->c; c++) out[c] = out[c] < o->lo ? o->lo : out[c] > o->hi ? o->hi : out[c];
            break;
        }
        case LINEAR: {
            const gemv_f32 s = {
                .groups = (int32_t)(round_up(y->w, 16) / 16), .n = (int32_t)x->w, .count = (const uint16_t *)(file + o->count),
                .col = o->flags & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = floats(file, o->w),
                .bias = floats(file, o->bias), .x = in, .y = out, .lo = o->lo, .hi = o->hi,
            };
            r->kernels->gemv(&s);
            break;
        }
        case ADD: {
            const add_f32 s = {.n = (int64_t)y->c * y->pitch, .a = in, .b = r->arena + map_of(file, o->add)->at, .y = out,
                               .lo = o->lo, .hi = o->hi};
            r->kernels->add(&s);
            break;
        }
    }
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
