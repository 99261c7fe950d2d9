/* The engine: reads a packed network (lab/sparsebytenn/packed.py writes it and describes the format), checks every
   number in it that could lead out of bounds, and runs it op by op over one arena. It allocates nothing. */
#include "isa.h"
#include <float.h>

enum { HEADER = 16, TENSOR = 8, OP = 32, NONE = 0xffffffffu, MAGIC = 0x4e4e4253, VERSION = 1, LARGEST = 1 << 20 };
enum { CONV = 1, POINTWISE, DEPTHWISE, SEPARABLE, MEAN, LINEAR, ADD };
enum { INDEXED = 1, BYTES = 2, MOST_BYTES = 1 << 16 }; /* of op.form; so many products of bytes an int32 can hold */
enum { CHAIN = 8 };                                    /* operators that may hang together by maps kept in part */
enum { MOST_OPS = 1 << 12, MOST_FLOATS = 1 << 30 };    /* of a file; of an arena, 4 GiB */

/* A map with `part` is kept in part: it never holds more than that many of its rows. The operator behind its writer
   alone reads it, and asks for rows when it needs them: so large maps stay in the cache. */
typedef struct {
    uint32_t magic, version, size, crc, n_tensors, n_ops, tensors, ops, arena, room, room_floats, input, output;
    uint32_t meta, meta_size, zero;
} header;
typedef struct {
    uint32_t c, h, w, pitch, at, interleaved, part, zero;
} tensor;
typedef struct {
    uint32_t kind, x, add, y, k, stride, pad, band, chunk, form, blocks, w, col, count, bias;
    float lo, hi;
    uint32_t dw_w, dw_bias;
    float dw_lo, dw_hi;
    uint32_t pitch; /* of the band that a convolution or a separable pair is laid out in */
    float gain;     /* with BYTES: a byte of X is x * gain + zero_point */
    uint32_t zero_point, scale, sums, zero[6];
} op;

static const header *head(const uint8_t *file) { return (const header *)file; }
static const tensor *tensor_of(const uint8_t *file, uint32_t i) { return (const tensor *)(file + head(file)->tensors) + i; }
static const op *op_of(const uint8_t *file, uint32_t i) { return (const op *)(file + head(file)->ops) + i; }
static const float *floats(const uint8_t *file, uint32_t at) { return (const float *)(file + at); }
static uint64_t up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static uint64_t fours(uint64_t columns) { return (columns + 3) / 4; }

/* Floats that lie before the bytes of X in the room: what convolutions lay out, and what depthwise ones work in. */
static uint64_t before_bytes(const op *o, const tensor *x) {
    const int depthwise = o->kind == DEPTHWISE || o->kind == SEPARABLE;
    const uint64_t rows = o->kind == CONV ? (uint64_t)x->c * o->k * o->k : o->kind == SEPARABLE ? x->c : 0;
    const uint64_t lines = depthwise ? (uint64_t)depthwise_room((int)x->w, (int)o->k, (int)o->stride, (int)o->band) : 0;
    return rows * o->pitch + lines;
}

/* -- what may be wrong with a file ----------------------------------------------------------------------------------- */

enum { TRUNCATED = 1, NOT_OURS, OTHER_VERSION, CHANGED, BAD_TENSOR, BAD_OP, BAD_SHAPE, BAD_SECTION, BAD_BLOCKS, BAD_ARENA };
enum { LARGE_ARENA = 11, STALE, BAD_SUMS, BAD_TEXT };

static uint32_t crc32(const uint8_t *p, uint64_t n) {
    uint32_t crc = ~0u, table[256];
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
    }
    for (; n; n--) crc = crc >> 8 ^ table[(crc ^ *p++) & 255];
    return ~crc;
}

static int section(const header *h, uint64_t at, uint64_t bytes) {
    return at % 4 == 0 && at >= 4 * HEADER && at <= h->size && bytes <= h->size - at;
}

static uint64_t lesser(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Floats of the arena that a map takes. */
static uint64_t extent(const tensor *t) {
    return t->interleaved ? up((uint64_t)t->h * t->w * t->c, 16) + 16 : up(t->c, 4) * t->pitch;
}

static int check_tensor(const header *h, const tensor *t) {
    const uint64_t pixels = (uint64_t)(t->part ? t->part : t->h) * t->w;
    if (!t->c || !t->h || !t->w || t->c > LARGEST || t->h > LARGEST || t->w > LARGEST || t->interleaved > 1) return BAD_TENSOR;
    if (t->part && (t->part > t->h || t->interleaved)) return BAD_TENSOR;
    if ((uint64_t)t->h * t->w > 1u << 28 || t->at % 16 || t->pitch % 16) return BAD_TENSOR;
    if (!t->interleaved && t->pitch < up(pixels, 16) + 16) return BAD_TENSOR;
    const uint64_t floats = extent(t);
    if (floats > h->arena || t->at > h->arena - floats) return BAD_ARENA;
    return t->at + floats <= h->room || t->at >= (uint64_t)h->room + h->room_floats ? 0 : BAD_ARENA;
}

/* Whether the arena is no larger than what lies in it. */
static int check_arena(const uint8_t *file) {
    const header *h = head(file);
    uint64_t end = (uint64_t)h->room + h->room_floats;
    for (uint32_t i = 0; i < h->n_tensors; i++) end = larger(end, tensor_of(file, i)->at + extent(tensor_of(file, i)));
    return h->arena > up(end, 16) ? LARGE_ARENA : 0;
}

/* Whether the stored sums of a product of bytes, whose blocks have been checked, are those of its weights. */
static int check_sums(const uint8_t *file, const op *o, uint64_t groups, uint64_t chunks) {
    enum { AT_ONCE = 256 }; /* groups of rows summed in one pass over the counts */
    const int32_t *stored = (const int32_t *)(file + o->sums);
    for (uint64_t first = 0; first < groups; first += AT_ONCE) {
        int32_t sums[4 * AT_ONCE] = {0};
        const uint16_t *count = (const uint16_t *)(file + o->count);
        const int8_t *w = (const int8_t *)(file + o->w);
        for (uint64_t i = 0; i < chunks * groups; w += 16 * (uint64_t)count[i++]) {
            const uint64_t g = i % groups;
            if (g < first || g >= first + AT_ONCE) continue;
            for (uint64_t j = 0; j < 16 * (uint64_t)count[i]; j++) sums[4 * (g - first) + j % 16 / 4] += w[j];
        }
        for (uint64_t r = 4 * first; r < 4 * lesser(groups, first + AT_ONCE); r++)
            if (stored[r] != sums[r - 4 * first]) return BAD_SUMS;
    }
    return 0;
}

/* `columns` of X against the blocks of an op of `groups` groups of `rows` rows. */
static int check_blocks(const uint8_t *file, const op *o, uint64_t groups, uint64_t rows, uint64_t columns) {
    const header *h = head(file);
    if (o->form & BYTES) {
        if (rows != 4 || columns > MOST_BYTES || o->zero_point > 255 || !(o->gain > 0 && o->gain <= FLT_MAX)) return BAD_OP;
        if (!section(h, o->scale, 16 * groups) || !section(h, o->sums, 16 * groups)) return BAD_SECTION;
        columns = fours(columns); /* a block of 16 bytes is 4 columns wide */
    }
    if (!o->chunk || o->chunk > 65535 || o->form > (INDEXED | BYTES)) return BAD_BLOCKS;
    if (o->form == INDEXED && rows == 4 && o->chunk > SPMM_RUN) return BAD_BLOCKS;
    const uint64_t chunks = (columns + o->chunk - 1) / o->chunk;
    if (!section(h, o->count, 2 * chunks * groups) || !section(h, o->bias, 4 * rows * groups)) return BAD_SECTION;
    if (!section(h, o->w, 4 * rows * o->blocks)) return BAD_SECTION;
    if ((o->form & INDEXED) && !section(h, o->col, 2 * (uint64_t)o->blocks)) return BAD_SECTION;
    const uint16_t *count = (const uint16_t *)(file + o->count), *col = (const uint16_t *)(file + o->col);
    uint64_t block = 0;
    for (uint64_t c = 0; c < chunks; c++) {
        const uint64_t width = c + 1 < chunks ? o->chunk : columns - c * o->chunk;
        for (uint64_t g = 0; g < groups; g++) {
            const uint64_t n = *count++;
            if (n > o->blocks - block || (!(o->form & INDEXED) && n != width)) return BAD_BLOCKS;
            for (uint64_t i = 0; (o->form & INDEXED) && i < n; i++)
                if (col[block + i] >= width || (i && col[block + i] <= col[block + i - 1])) return BAD_BLOCKS;
            block += n;
        }
    }
    if (block != o->blocks) return BAD_BLOCKS;
    return o->form & BYTES ? check_sums(file, o, groups, chunks) : 0;
}

/* Whether a window of k, stride and pad leads from x to y's height and width, and a band of it fits the room. */
static int check_window(const header *h, const op *o, const tensor *x, const tensor *y, uint64_t rows) {
    if (!o->k || o->k > 64 || !o->stride || o->stride > 64 || o->pad >= o->k || !o->band || o->band > y->h) return BAD_OP;
    const uint64_t tall = (uint64_t)x->h + 2 * o->pad, wide = (uint64_t)x->w + 2 * o->pad;
    if (tall < o->k || wide < o->k) return BAD_SHAPE;
    if ((tall - o->k) / o->stride + 1 != y->h || (wide - o->k) / o->stride + 1 != y->w) return BAD_SHAPE;
    if (rows && (o->pitch % 16 || o->pitch < up((uint64_t)o->band * y->w, 16) + 16)) return BAD_OP;
    const int depthwise = o->kind == DEPTHWISE || o->kind == SEPARABLE;
    if (depthwise && (x->interleaved || (o->k != 3 && o->k != 5) || o->stride > 2)) return BAD_OP;
    const uint64_t room = depthwise ? (uint64_t)depthwise_room((int)x->w, (int)o->k, (int)o->stride, (int)o->band) : 0;
    return rows * o->pitch + room > h->room_floats ? BAD_ARENA : 0;
}

/* The blocks that multiply `columns` of what is laid out of x, and where they are bytes, whether those fit the room. */
static int check_product(const uint8_t *file, const op *o, const tensor *x, const tensor *y, uint64_t columns) {
    const uint64_t pitch = o->kind == POINTWISE ? x->pitch : o->pitch;
    if (o->form & BYTES && before_bytes(o, x) + fours(columns) * pitch > head(file)->room_floats) return BAD_ARENA;
    return check_blocks(file, o, up(y->c, 4) / 4, 4, columns);
}

/* Whether the maps kept in part that op i reads and writes go with its neighbours, and hold what a band reads. */
static int check_parts(const uint8_t *file, uint32_t i) {
    const header *h = head(file);
    const op *o = op_of(file, i);
    const tensor *x = tensor_of(file, o->x), *y = tensor_of(file, o->y);
    if (o->add != NONE && tensor_of(file, o->add)->part) return BAD_SHAPE;
    if (!x->part && !y->part) return 0;
    if (o->kind > SEPARABLE || !o->band || o->band > y->h) return BAD_OP;
    if (o->kind == POINTWISE && (o->k != 1 || o->stride != 1 || o->pad)) return BAD_OP;
    if (y->part && (y->part < o->band || i + 1 == h->n_ops || op_of(file, i + 1)->x != o->y)) return BAD_SHAPE;
    if (!x->part) return 0;
    uint32_t links = 1;
    while (links < CHAIN && links <= i && tensor_of(file, op_of(file, i - links)->x)->part) links++;
    if (i == 0 || links == CHAIN || op_of(file, i - 1)->y != o->x) return BAD_SHAPE;
    const uint64_t most = (uint64_t)(o->band - 1) * o->stride + (o->k > o->stride ? o->k : o->stride); /* that a band asks for */
    return x->part < (most < x->h ? most : x->h) ? BAD_SHAPE : 0;
}

static int check_op(const uint8_t *file, const op *o) {
    const header *h = head(file);
    if (o->x >= h->n_tensors || o->y >= h->n_tensors || o->x == o->y) return BAD_OP;
    const tensor *x = tensor_of(file, o->x), *y = tensor_of(file, o->y);
    const int has_add = o->add != NONE;
    if (has_add && o->add >= h->n_tensors) return BAD_OP;
    const tensor *a = has_add ? tensor_of(file, o->add) : y;
    if (y->interleaved || a->interleaved || a->c != y->c || a->h != y->h || a->w != y->w || (has_add && a->pitch != y->pitch)) return BAD_SHAPE;
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
            if (o->chunk < x->w) return BAD_OP; /* one chunk */
            return check_blocks(file, o, up(y->w, 16) / 16, 16, x->w);
        case ADD: return has_add && x->c == y->c && x->h == y->h && x->w == y->w && x->pitch == y->pitch ? 0 : BAD_SHAPE;
    }
    return BAD_OP;
}

/* The operator in whose turn op i runs: itself, or that of the first behind it to write a whole map. */
static uint32_t turn(const uint8_t *file, uint32_t i) {
    while (tensor_of(file, op_of(file, i)->y)->part) i++;
    return i;
}

/* Whether a map holds what was written there when the operators i .. last run, which read it. */
static int is_fresh(const uint8_t *file, uint32_t map, uint32_t i, uint32_t last) {
    const header *h = head(file);
    const tensor *t = tensor_of(file, map);
    uint32_t since = i; /* the first operator behind the one that wrote the map */
    while (since && op_of(file, since - 1)->y != map) since--;
    if (!since && map != h->input) return 0;
    for (uint32_t j = since; j < h->n_ops && j <= last; j++) {
        const tensor *y = tensor_of(file, op_of(file, j)->y);
        if (y->at < t->at + extent(t) && t->at < y->at + extent(y)) return 0;
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
    const uint8_t *at, *end;
} text;

static int next(text *t, char c) { return t->at < t->end && *t->at == (uint8_t)c ? t->at++, 1 : 0; }
static int is_one_of(uint8_t c, const char *those) {
    while (*those && (uint8_t)*those != c) those++;
    return *those != 0;
}

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
    if (!section(h, h->tensors, 4ull * TENSOR * h->n_tensors) || !section(h, h->ops, 4ull * OP * h->n_ops)) return BAD_SECTION;
    if (!section(h, h->meta, h->meta_size)) return BAD_SECTION;
    if (h->input >= h->n_tensors || h->output >= h->n_tensors || tensor_of(file, h->output)->interleaved) return BAD_TENSOR;
    if (h->n_ops > MOST_OPS) return BAD_OP;
    if (h->arena > MOST_FLOATS || h->arena * (uint64_t)sizeof(float) > PTRDIFF_MAX) return LARGE_ARENA; /* a 32-bit machine's is less */
    if (h->room % 16 || h->room > h->arena || h->room_floats > h->arena - h->room) return BAD_ARENA;
    for (uint32_t i = 0; i < h->n_tensors; i++) {
        const int wrong = check_tensor(h, tensor_of(file, i));
        if (wrong) return wrong;
    }
    if (tensor_of(file, h->input)->part || tensor_of(file, h->output)->part) return BAD_TENSOR;
    for (uint32_t i = 0; i < h->n_ops; i++) {
        const int wrong = check_op(file, op_of(file, i));
        if (wrong) return wrong;
    }
    for (uint32_t i = 0; i < h->n_ops; i++) {
        const int wrong = check_parts(file, i);
        if (wrong) return wrong;
    }
    int wrong = check_arena(file);
    if (!wrong) wrong = check_order(file);
    return wrong ? wrong : check_text(file);
}

uint64_t engine_arena(const uint8_t *file) { return head(file)->arena; }
static uint64_t floats_of(const tensor *t) { return (uint64_t)t->c * t->h * t->w; }
uint64_t engine_in(const uint8_t *file) { return floats_of(tensor_of(file, head(file)->input)); }
uint64_t engine_out(const uint8_t *file) { return floats_of(tensor_of(file, head(file)->output)); }
int engine_ops(const uint8_t *file) { return (int)head(file)->n_ops; }

/* -- running -------------------------------------------------------------------------------------------------------- */

static void copy(float *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

void engine_put(const uint8_t *file, float *arena, const float *x) {
    const tensor *t = tensor_of(file, head(file)->input);
    const int64_t pixels = (int64_t)t->h * t->w;
    if (t->interleaved) copy(arena + t->at, x, pixels * t->c);
    else
        for (uint32_t c = 0; c < t->c; c++) copy(arena + t->at + (int64_t)c * t->pitch, x + c * pixels, pixels);
}

void engine_get(const uint8_t *file, const float *arena, float *y) {
    const tensor *t = tensor_of(file, head(file)->output);
    const int64_t pixels = (int64_t)t->h * t->w;
    for (uint32_t c = 0; c < t->c; c++) copy(y + c * pixels, arena + t->at + (int64_t)c * t->pitch, pixels);
}

/* NaN in every channel of a pixel of Y that has one in X: bytes cannot tell it. */
static void keep_nan(const float *x, int64_t x_pitch, int64_t columns, const spmm_i8 *s) {
    for (int64_t p = 0; p < s->n; p++)
        for (int64_t c = 0; c < columns; c++) {
            const float pixel = x[c * x_pitch + p];
            for (int64_t r = 0; pixel != pixel && r < 4 * s->groups; r++) s->y[r * s->y_pitch + p] = pixel;
        }
}

/* As product, X taken in bytes. */
static void product_of_bytes(const uint8_t *file, float *arena, const isa *with, const op *o, int64_t columns, const float *in,
                             int64_t pitch, float *out, int64_t at, int64_t n) {
    const tensor *y = tensor_of(file, o->y), *a = o->add == NONE ? NULL : tensor_of(file, o->add);
    const quantise_i8 q = {
        .c = (int32_t)columns, .n = (int32_t)n, .zero = (int32_t)o->zero_point, .gain = o->gain, .x_pitch = pitch,
        .y_pitch = pitch, .x = in, .y = (uint8_t *)(arena + head(file)->room + before_bytes(o, tensor_of(file, o->x))),
    };
    const spmm_i8 s = {
        .groups = (int32_t)(up(y->c, 4) / 4), .chunks = (int32_t)((fours((uint64_t)columns) + o->chunk - 1) / o->chunk),
        .chunk = (int32_t)o->chunk, .n = (int32_t)n, .zero = q.zero, .count = (const uint16_t *)(file + o->count),
        .col = o->form & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = (const int8_t *)(file + o->w),
        .sums = (const int32_t *)(file + o->sums), .scale = floats(file, o->scale), .bias = floats(file, o->bias),
        .x = q.y, .x_pitch = pitch, .y = out, .y_pitch = y->pitch, .add = a ? arena + a->at + at : NULL,
        .add_pitch = a ? a->pitch : 0, .lo = o->lo, .hi = o->hi,
    };
    const int odd = with->quantise(&q);
    with->spmm_bytes(&s);
    if (odd) keep_nan(in, pitch, columns, &s);
}

/* n pixels of Y, at `out`, from pixel `at` on, from X at `in`, whose planes are `pitch` apart and start at that pixel. */
static void product(const uint8_t *file, float *arena, const isa *with, const op *o, int64_t columns, const float *in,
                    int64_t pitch, float *out, int64_t at, int64_t n) {
    if (o->form & BYTES) {
        product_of_bytes(file, arena, with, o, columns, in, pitch, out, at, n);
        return;
    }
    const tensor *y = tensor_of(file, o->y), *a = o->add == NONE ? NULL : tensor_of(file, o->add);
    const spmm_f32 s = {
        .groups = (int32_t)(up(y->c, 4) / 4), .chunks = (int32_t)((columns + o->chunk - 1) / o->chunk),
        .chunk = (int32_t)o->chunk, .n = (int32_t)n, .count = (const uint16_t *)(file + o->count),
        .col = o->form & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = floats(file, o->w),
        .bias = floats(file, o->bias), .x = in, .x_pitch = pitch, .y = out, .y_pitch = y->pitch,
        .add = a ? arena + a->at + at : NULL, .add_pitch = a ? a->pitch : 0, .lo = o->lo, .hi = o->hi,
    };
    with->spmm(&s);
}

/* The depthwise convolution of a band of `in`, to planes `pitch` apart. */
static void depthwise_rows(const uint8_t *file, const isa *with, const op *o, const float *in, uint32_t top, uint32_t bottom,
                           float *room, float *to, int64_t pitch) {
    const tensor *x = tensor_of(file, o->x), *y = tensor_of(file, o->y);
    const int last = o->kind == DEPTHWISE; /* else its clamp is the pair's inner one */
    const depthwise_f32 s = {
        .c = (int32_t)x->c, .h = (int32_t)x->h, .w = (int32_t)x->w, .k = (int32_t)o->k, .stride = (int32_t)o->stride,
        .pad = (int32_t)o->pad, .out_w = (int32_t)y->w, .top = (int32_t)top, .bottom = (int32_t)bottom,
        .x_pitch = x->pitch, .y_pitch = pitch, .x = in, .weight = floats(file, o->dw_w),
        .bias = floats(file, o->dw_bias), .y = to, .room = room, .lo = last ? o->lo : o->dw_lo,
        .hi = last ? o->hi : o->dw_hi,
    };
    with->depthwise(&s);
}

/* The rows from .. to - 1 that are there of a map kept in part, the first of them where the map begins; op i's map is
   held[i % CHAIN]. */
typedef struct {
    uint32_t from, to;
} window;

/* Where row 0 of a map would lie. */
static float *row_0(float *arena, const tensor *t, const window *there) {
    return arena + t->at - (t->part ? (int64_t)there->from * t->w : 0);
}

/* Rows before `first` give way to those that come next. */
static void slide(float *arena, const tensor *t, window *there, uint32_t first) {
    first = lesser(first, there->to);
    if (first == there->from) return;
    float *plane = arena + t->at;
    const int64_t gone = (int64_t)(first - there->from) * t->w, kept = (int64_t)(there->to - first) * t->w;
    for (uint32_t c = 0; c < t->c; c++, plane += t->pitch) copy(plane, plane + gone, kept);
    there->from = first;
}

static void banded(const uint8_t *file, float *arena, const isa *with, uint32_t i, uint32_t bottom, window *held, int alone);

/* Rows top .. bottom - 1 of op i, a convolution of any kind, or a depthwise one that a pointwise one reads while it is in
   the cache. Rows of X that are not there are made first, unless the operator is to run alone. */
static void band(const uint8_t *file, float *arena, const isa *with, uint32_t i, uint32_t top, uint32_t bottom, window *held,
                 int alone) {
    const op *o = op_of(file, i);
    const tensor *x = tensor_of(file, o->x), *y = tensor_of(file, o->y);
    window *before = &held[(i + CHAIN - 1) % CHAIN];
    float *room = arena + head(file)->room;
    if (x->part) {
        const uint32_t first = top * o->stride < o->pad ? 0 : top * o->stride - o->pad;
        if (alone) before->from = first;
        else {
            slide(arena, x, before, first);
            banded(file, arena, with, i - 1, lesser((bottom - 1) * o->stride + o->k - o->pad, x->h), held, 0);
        }
    }
    const int64_t at = (int64_t)top * y->w, n = (int64_t)(bottom - top) * y->w;
    const int64_t columns = o->kind == CONV ? (int64_t)x->c * o->k * o->k : x->c;
    const float *in = row_0(arena, x, before);
    float *out = row_0(arena, y, &held[i % CHAIN]) + at;
    if (o->kind == CONV) {
        const im2col_f32 s = {
            .c = (int32_t)x->c, .h = (int32_t)x->h, .w = (int32_t)x->w, .k = (int32_t)o->k,
            .stride = (int32_t)o->stride, .pad = (int32_t)o->pad, .out_w = (int32_t)y->w, .top = (int32_t)top,
            .bottom = (int32_t)bottom, .x_channel = x->interleaved ? 1 : x->pitch,
            .x_pixel = x->interleaved ? x->c : 1, .y_pitch = o->pitch, .x = in, .y = room,
        };
        with->im2col(&s);
    } else if (o->kind == DEPTHWISE) depthwise_rows(file, with, o, in, top, bottom, room, out, y->pitch);
    else if (o->kind == SEPARABLE)
        depthwise_rows(file, with, o, in, top, bottom, room + (int64_t)x->c * o->pitch, room, o->pitch);
    if (o->kind == POINTWISE) product(file, arena, with, o, columns, in + at, x->pitch, out, at, n);
    else if (o->kind != DEPTHWISE) product(file, arena, with, o, columns, room, o->pitch, out, at, n);
}

/* The rows of op i before `bottom` that are not made yet, band by band. */
static void banded(const uint8_t *file, float *arena, const isa *with, uint32_t i, uint32_t bottom, window *held, int alone) {
    const op *o = op_of(file, i);
    const tensor *x = tensor_of(file, o->x), *y = tensor_of(file, o->y);
    window *there = &held[i % CHAIN];
    const uint32_t rows = o->kind == POINTWISE && !x->part && !y->part ? bottom : o->band;
    while (there->to < bottom) {
        const uint32_t to = bottom - there->to > rows ? there->to + rows : bottom;
        if (alone) there->from = there->to;
        band(file, arena, with, i, there->to, to, held, alone);
        there->to = to;
    }
}

/* One operator; `alone`, it finds in maps kept in part whatever lies there. */
static void step(const uint8_t *file, float *arena, const isa *with, int index, int alone) {
    const op *o = op_of(file, (uint32_t)index);
    const tensor *x = tensor_of(file, o->x), *y = tensor_of(file, o->y);
    float *in = arena + x->at, *out = arena + y->at;
    switch (o->kind) {
        case CONV:
        case POINTWISE:
        case DEPTHWISE:
        case SEPARABLE: {
            window held[CHAIN] = {{0, 0}};
            banded(file, arena, with, (uint32_t)index, y->h, held, alone);
            break;
        }
        case MEAN: {
            const mean_f32 s = {.c = (int32_t)x->c, .n = (int32_t)(x->h * x->w), .x_pitch = x->pitch, .x = in, .y = out};
            with->mean(&s);
            for (uint32_t c = 0; c < x->c; c++) out[c] = out[c] < o->lo ? o->lo : out[c] > o->hi ? o->hi : out[c];
            break;
        }
        case LINEAR: {
            const gemv_f32 s = {
                .groups = (int32_t)(up(y->w, 16) / 16), .n = (int32_t)x->w, .count = (const uint16_t *)(file + o->count),
                .col = o->form & INDEXED ? (const uint16_t *)(file + o->col) : NULL, .w = floats(file, o->w),
                .bias = floats(file, o->bias), .x = in, .y = out, .lo = o->lo, .hi = o->hi,
            };
            with->gemv(&s);
            break;
        }
        case ADD: {
            const add_f32 s = {.n = (int64_t)y->c * y->pitch, .a = in, .b = arena + tensor_of(file, o->add)->at, .y = out,
                               .lo = o->lo, .hi = o->hi};
            with->add(&s);
            break;
        }
    }
}

void engine_step(const uint8_t *file, float *arena, const isa *with, int index) { step(file, arena, with, index, 1); }

void engine_run(const uint8_t *file, float *arena, const isa *with, const float *x, float *y) {
    engine_put(file, arena, x);
    for (int i = 0; i < engine_ops(file); i++) /* what is kept in part is made when it is asked for */
        if (!tensor_of(file, op_of(file, (uint32_t)i)->y)->part) step(file, arena, with, i, 0);
    engine_get(file, arena, y);
}
