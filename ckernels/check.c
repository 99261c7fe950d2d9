/* Whether a packed network, which may be any bytes, can be run: every number in it that could lead out of bounds is
   looked at. lab/sparsebytenn/proof.py asks the same questions in the same order. */
#include <float.h>
#include "engine.h"

/* Each check returns the number of the first thing that is wrong, or 0. */

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
int section(const header *h, uint64_t at, uint64_t bytes) {
    return at % 4 == 0 && at >= 4 * HEADER && at <= h->size && bytes <= h->size - at;
}

/* Whether an operator's workspace of so many floats lies in the arena: BAD_ARENA, or 0. */
int leaves_arena(const header *h, const op *o, uint64_t floats) {
    return o->work % 16 || floats > h->arena || o->work > h->arena - floats ? BAD_ARENA : 0;
}

/* Floats from one plane to the next: whole vectors, 16 floats behind them, an odd number of cache lines. */
static uint64_t pitch_for(uint64_t pixels) {
    const uint64_t lines = (pixels + 31) / 16;
    return 16 * (lines + 1 - lines % 2);
}

/* Whether a map has a shape that can be, and lies in the arena. */
static int check_map(const header *h, const map *m) {
    const uint64_t pixels = (uint64_t)(m->buffer_rows ? m->buffer_rows : m->h) * m->w;
    if (!m->c || !m->h || !m->w || m->c > MAX_SIDE || m->h > MAX_SIDE || m->w > MAX_SIDE) return BAD_MAP;
    if (m->interleaved > 1) return BAD_MAP;
    if (m->buffer_rows && (m->buffer_rows > m->h || m->interleaved)) return BAD_MAP;
    if ((uint64_t)m->h * m->w > 1u << 28 || m->at % 16) return BAD_MAP;
    if (!m->interleaved && m->pitch != pitch_for(pixels)) return BAD_MAP;
    const uint64_t size = extent(m);
    return size > h->arena || m->at > h->arena - size ? BAD_ARENA : 0;
}

/* Whether the arena is no larger than what lies in it. */
static int check_arena(const uint8_t *file) {
    const header *h = head(file);
    uint64_t end = 0;
    for (uint32_t i = 0; i < h->n_ops; i++) {
        const uint64_t floats = work_floats(file, op_of(file, i));
        if (floats) end = max(end, op_of(file, i)->work + floats);
    }
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

/* Whether the blocks of an op, which has so many rows, go with its counts and stay within `columns` of X. */
static int check_blocks(const uint8_t *file, const op *o, uint64_t rows, uint64_t columns) {
    const header *h = head(file);
    const uint64_t block = o->block, groups = (rows + block - 1) / block;
    if (o->flags & U8S8) {
        if (block != 4 || columns > U8S8_MAX_COLUMNS || o->zero_point > 255) return BAD_OP;
        if (!(o->inv_scale > 0 && o->inv_scale <= FLT_MAX)) return BAD_OP;
        if (!section(h, o->scale, 16 * groups) || !section(h, o->sums, 16 * groups)) return BAD_SECTION;
        columns = ceil_div4(columns); /* a block is 4 columns wide */
    }
    if (!o->k_tile || o->k_tile > 65535 || o->flags > (INDEXED | U8S8)) return BAD_BLOCKS;
    if (o->flags == INDEXED && block < 16 && o->k_tile > SPMM_MAX_K_TILE) return BAD_BLOCKS;
    if (block == 1 && !(o->flags & INDEXED)) return BAD_BLOCKS;
    if (block == 16 && o->k_tile < columns) return BAD_BLOCKS; /* one k-tile */
    const uint64_t k_tiles = (columns + o->k_tile - 1) / o->k_tile;
    if (!section(h, o->count, 2 * k_tiles * groups) || !section(h, o->bias, 4 * block * groups)) return BAD_SECTION;
    if (!section(h, o->w, 4 * block * o->blocks)) return BAD_SECTION;
    if ((o->flags & INDEXED) && !section(h, o->col, 2 * (uint64_t)o->blocks)) return BAD_SECTION;
    const uint16_t *count = (const uint16_t *)(file + o->count), *col = (const uint16_t *)(file + o->col);
    uint64_t passed = 0;
    for (uint64_t c = 0; c < k_tiles; c++) {
        const uint64_t width = c + 1 < k_tiles ? o->k_tile : columns - c * o->k_tile;
        for (uint64_t g = 0; g < groups; g++) {
            const uint64_t n = *count++;
            if (n > o->blocks - passed || (!(o->flags & INDEXED) && n != width)) return BAD_BLOCKS;
            for (uint64_t i = 0; (o->flags & INDEXED) && i < n; i++)
                if (col[passed + i] >= width || (i && col[passed + i] <= col[passed + i - 1])) return BAD_BLOCKS;
            passed += n;
        }
    }
    if (passed != o->blocks) return BAD_BLOCKS;
    return o->flags & U8S8 ? check_sums(file, o, groups, k_tiles) : 0;
}

/* Whether a window is one. Where it leads is y's to say: what it meets outside of x are zeros. */
static int check_window(const op *o, const map *y) {
    const uint32_t sides[] = {o->k, o->k_w, o->stride, o->stride_w, o->dilation, o->dilation_w};
    for (int i = 0; i < 6; i++)
        if (!sides[i] || sides[i] > MAX_WINDOW) return BAD_OP;
    return o->pad > MAX_WINDOW || o->pad_w > MAX_WINDOW || !o->tile_rows || o->tile_rows > y->h ? BAD_OP : 0;
}

/* Whether a row tile, laid out as so many rows, fits the workspace. */
static int check_row_tile(const header *h, const op *o, const map *x, const map *y, uint64_t rows) {
    if (rows && (o->pitch % 16 || o->pitch < round_up((uint64_t)o->tile_rows * y->w, 16) + 16)) return BAD_OP;
    return leaves_arena(h, o, rows * o->pitch + depthwise_floats(o, x));
}

/* The blocks that multiply `columns` of what is laid out of x, and in int8 whether x as uint8 fits the workspace. */
static int check_product(const uint8_t *file, const op *o, const map *y, uint64_t columns) {
    if (o->flags & U8S8 && leaves_arena(head(file), o, work_floats(file, o))) return BAD_ARENA;
    /* a map has room for rows up to a multiple of 4 */
    if (o->block != 1 && o->block != 4 && o->block != 8 && o->block != 16) return BAD_OP;
    if (round_up(y->c, o->block) > round_up(y->c, 4)) return BAD_OP;
    return check_blocks(file, o, y->c, columns);
}

static int check_conv(const uint8_t *file, const op *o, const map *x, const map *y) {
    int wrong = check_window(o, y);
    const uint64_t columns = (uint64_t)x->c * o->k * o->k_w;
    if (wrong || columns > MAX_FLOATS) return BAD_OP;
    wrong = check_row_tile(head(file), o, x, y, columns);
    return wrong ? wrong : check_product(file, o, y, columns);
}

/* A depthwise convolution, alone or as the half of a separable pair. */
static int check_depthwise(const uint8_t *file, const op *o, const map *x, const map *y) {
    const header *h = head(file);
    const int is_pair = o->kind == SEPARABLE;
    if (check_window(o, y) || (o->k != 3 && o->k != 5 && o->k != 7) || o->stride > 2) return BAD_OP;
    if (o->pad >= o->k || o->pad_w >= o->k || o->k != o->k_w || o->stride != o->stride_w) return BAD_OP;
    if (o->dilation != 1 || o->dilation_w != 1) return BAD_OP;
    if ((uint64_t)(y->h - 1) * o->stride >= (uint64_t)x->h + o->pad) return BAD_SHAPE; /* a window begins within x, or in */
    if ((uint64_t)(y->w - 1) * o->stride >= (uint64_t)x->w + o->pad_w) return BAD_SHAPE; /* the zeros before it */
    if (!is_pair && x->c != y->c) return BAD_SHAPE;
    if (!section(h, o->dw_w, 4ull * x->c * o->k * o->k) || !section(h, o->dw_bias, 4ull * x->c)) return BAD_SECTION;
    const int wrong = check_row_tile(h, o, x, y, is_pair ? x->c : 0);
    return wrong || !is_pair ? wrong : check_product(file, o, y, x->c);
}

static int check_linear(const uint8_t *file, const op *o, const map *x, const map *y) {
    if (x->c != 1 || x->h != 1 || y->c != 1 || y->h != 1) return BAD_SHAPE;
    if (o->block != 16 || o->k_tile < x->w) return BAD_OP; /* one k-tile */
    return check_blocks(file, o, y->w, x->w);
}

/* Functions that an operator of a kind has; those without have the number 0. */
static uint32_t functions(uint32_t kind) {
    return kind == BINARY ? BINARY_RDIV : kind == POOL ? POOL_MEAN : kind == NORM ? NORM_AFFINE : 0;
}

/* Whether an operator's maps have the shapes that it asks for, and all that it reads lies in the file. */
static int check_op(const uint8_t *file, const op *o) {
    const header *h = head(file);
    if (o->x >= h->n_maps || o->y >= h->n_maps || (o->add != NONE && o->add >= h->n_maps)) return BAD_OP;
    if ((o->x == o->y) != (o->kind == CONST)) return BAD_OP;
    const map *x = map_of(file, o->x), *y = map_of(file, o->y), *a = o->add == NONE ? y : map_of(file, o->add);
    const int product = o->kind == CONV || o->kind == POINTWISE || o->kind == SEPARABLE; /* what can take a sum in */
    if (y->interleaved || a->interleaved || (x->interleaved && o->kind != CONV)) return BAD_SHAPE;
    if (o->add != NONE && !product && o->kind != BINARY && o->kind != MATMUL) return BAD_OP;
    if (product && (a->c != y->c || a->h != y->h || a->w != y->w || a->pitch != y->pitch)) return BAD_SHAPE;
    if (!(o->lo <= o->hi) || (o->kind == SEPARABLE && !(o->dw_lo <= o->dw_hi))) return BAD_OP;
    const uint32_t fns = functions(o->kind);
    if (o->act > ACT_PRELU || o->inner_act >= ACT_PRELU || o->fn > fns || (fns && !o->fn)) return BAD_OP;
    if (o->act == ACT_PRELU && !section(h, o->slopes, 4ull * y->c)) return BAD_SECTION;
    switch (o->kind) {
        case CONV: return check_conv(file, o, x, y);
        case POINTWISE: return x->h != y->h || x->w != y->w ? BAD_SHAPE : check_product(file, o, y, x->c);
        case DEPTHWISE:
        case SEPARABLE: return check_depthwise(file, o, x, y);
        case MEAN: return y->c == 1 && y->h == 1 && y->w == x->c ? 0 : BAD_SHAPE;
        case LINEAR: return check_linear(file, o, x, y);
    }
    return check_table_op(file, o);
}

/* Whether the rolling row buffers that op i reads and writes go with its neighbours, and hold what a row tile reads. */
static int check_buffers(const uint8_t *file, uint32_t i) {
    const header *h = head(file);
    const op *o = op_of(file, i);
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    for (uint32_t r = 1; r < n_reads(o); r++)
        if (map_of(file, read_of(file, o, r))->buffer_rows) return BAD_SHAPE;
    if (!x->buffer_rows && !y->buffer_rows) return 0;
    if (o->kind > SEPARABLE || !o->tile_rows || o->tile_rows > y->h) return BAD_OP;
    if (o->kind == POINTWISE && (o->k != 1 || o->stride != 1 || o->pad || o->dilation != 1)) return BAD_OP;
    const int has_reader = i + 1 < h->n_ops && op_of(file, i + 1)->x == o->y;
    if (y->buffer_rows && (y->buffer_rows < o->tile_rows || !has_reader)) return BAD_SHAPE;
    if (!x->buffer_rows) return 0;
    uint32_t links = 1;
    while (links < ENGINE_MAX_CHAIN && links <= i && map_of(file, op_of(file, i - links)->x)->buffer_rows) links++;
    if (i == 0 || links == ENGINE_MAX_CHAIN || op_of(file, i - 1)->y != o->x) return BAD_SHAPE;
    const uint64_t span = (uint64_t)(o->k - 1) * o->dilation + 1;
    const uint64_t read = (uint64_t)(o->tile_rows - 1) * o->stride + max(span, o->stride); /* rows, by a row tile */
    return x->buffer_rows < min(read, x->h) ? BAD_SHAPE : 0;
}

/* Lifetimes: a map is written by one operator, read by those behind, and its floats may then be another's.
   The operator in whose turn op i runs: itself, or that of the first behind it to write a whole map. */
static uint32_t turn(const uint8_t *file, uint32_t i) {
    while (map_of(file, op_of(file, i)->y)->buffer_rows) i++;
    return i;
}

/* Whether so many floats of the arena lie apart from what the operators from .. to write. */
static int is_apart(const uint8_t *file, uint64_t at, uint64_t floats, uint32_t from, uint32_t to) {
    for (uint32_t j = from; j < head(file)->n_ops && j <= to; j++) {
        const map *y = map_of(file, op_of(file, j)->y);
        if (max(y->at, at) < min(y->at + extent(y), at + floats)) return 0;
    }
    return 1;
}

/* Whether they lie apart from what these operators work in. */
static int is_apart_from_work(const uint8_t *file, uint64_t at, uint64_t floats, uint32_t from, uint32_t to) {
    for (uint32_t j = from; j < head(file)->n_ops && j <= to; j++) {
        const op *o = op_of(file, j);
        if (max(o->work, at) < min(o->work + work_floats(file, o), at + floats)) return 0;
    }
    return 1;
}

/* Whether map number `read` holds what was written to it when the operators i .. last run, which read it. */
static int is_fresh(const uint8_t *file, uint32_t read, uint32_t i, uint32_t last) {
    const header *h = head(file);
    const map *m = map_of(file, read);
    uint32_t since = i; /* the first operator behind the one that wrote the map */
    while (since && op_of(file, since - 1)->y != read) since--;
    int is_input = 0;
    for (uint32_t n = 0; n < h->n_inputs; n++) is_input |= ends(file)[n] == read;
    if (!since && !is_input) return 0;
    return is_apart(file, m->at, extent(m), since, last) && is_apart_from_work(file, m->at, extent(m), since, last);
}

/* Whether two inputs lie in one place. */
static int inputs_meet(const uint8_t *file) {
    for (uint32_t i = 0; i < head(file)->n_inputs; i++)
        for (uint32_t j = 0; j < i; j++) {
            const map *a = map_of(file, ends(file)[i]), *b = map_of(file, ends(file)[j]);
            if (a->at < b->at + extent(b) && b->at < a->at + extent(a)) return 1;
        }
    return 0;
}

/* Whether every map is written before it is read, and nothing is written over it in between. */
static int check_order(const uint8_t *file) {
    const header *h = head(file);
    if (inputs_meet(file)) return STALE;
    for (uint32_t i = 0; i < h->n_ops; i++) {
        const op *o = op_of(file, i);
        const uint32_t last = turn(file, i);
        for (uint32_t r = 0; r < n_reads(o); r++)
            if (!is_fresh(file, read_of(file, o, r), i, last)) return STALE;
        if (!is_apart(file, o->work, work_floats(file, o), i, last)) return STALE;
    }
    for (uint32_t i = 0; i < h->n_outputs; i++)
        if (!is_fresh(file, ends(file)[h->n_inputs + i], h->n_ops, h->n_ops)) return STALE;
    return 0;
}

/* Whether inputs and outputs are whole maps, with their channels apart but for the first input. */
static int check_ends(const uint8_t *file) {
    const header *h = head(file);
    const uint32_t n = (uint32_t)h->n_inputs + h->n_outputs;
    if (!h->n_inputs || !h->n_outputs || h->n_inputs > MAX_ENDS || h->n_outputs > MAX_ENDS) return BAD_MAP;
    if (!section(h, h->ends, 4ull * n)) return BAD_SECTION;
    for (uint32_t i = 0; i < n; i++) {
        if (ends(file)[i] >= h->n_maps) return BAD_MAP;
        const map *m = map_of(file, ends(file)[i]);
        if (m->buffer_rows || (m->interleaved && i > 0)) return BAD_MAP;
    }
    return 0;
}

int engine_check(const uint8_t *file, uint64_t size) {
    const header *h = head(file);
    if (size < 4 * HEADER) return TRUNCATED;
    if (h->magic != MAGIC) return NOT_OURS;
    if (h->version != VERSION || h->unused[0] || h->unused[1]) return OTHER_VERSION;
    if (h->size != size) return TRUNCATED;
    if (crc32(file + 16, size - 16) != h->crc) return CHANGED;
    if (!section(h, h->maps, 4ull * MAP * h->n_maps) || !section(h, h->ops, 4ull * OP * h->n_ops)) return BAD_SECTION;
    if (!section(h, h->meta, h->meta_size)) return BAD_SECTION;
    int wrong = check_ends(file);
    if (wrong) return wrong;
    if (h->n_ops > MAX_OPS) return BAD_OP;
    if (h->arena > MAX_FLOATS) return LARGE_ARENA;
    if (h->arena * (uint64_t)sizeof(float) > PTRDIFF_MAX) return LARGE_ARENA; /* on a 32-bit machine */
    for (uint32_t i = 0; i < h->n_maps; i++) {
        wrong = check_map(h, map_of(file, i));
        if (wrong) return wrong;
    }
    for (uint32_t i = 0; i < h->n_ops; i++) {
        wrong = check_op(file, op_of(file, i));
        if (wrong) return wrong;
    }
    for (uint32_t i = 0; i < h->n_ops; i++) {
        wrong = check_buffers(file, i);
        if (wrong) return wrong;
    }
    wrong = check_arena(file);
    if (!wrong) wrong = check_order(file);
    return wrong ? wrong : check_text(file);
}
