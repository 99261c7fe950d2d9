/* What the operators that are no convolution must prove: shapes that go together, tables that stay within their maps.
   lab/sparsebytenn/table_proof.py asks the same questions in the same order. */
#include "engine.h"

static int same_shape(const map *a, const map *b) { return a->c == b->c && a->h == b->h && a->w == b->w; }

/* Whether a table has n words, all of them in the file. */
static int check_table(const uint8_t *file, const op *o, uint64_t n) {
    if (o->n_args != n) return BAD_SHAPE;
    return section(head(file), o->args, 4 * n) ? 0 : BAD_SECTION;
}

/* Whether n ranges [from, to) are not empty and end within `side`. */
static int ranges_fit(const uint32_t *ranges, uint32_t n, uint32_t side) {
    for (uint32_t i = 0; i < n; i++)
        if (ranges[2 * i] >= ranges[2 * i + 1] || ranges[2 * i + 1] > side) return 0;
    return 1;
}

static int check_pool(const uint8_t *file, const op *o, const map *x, const map *y) {
    if (x->c != y->c) return BAD_SHAPE;
    const int wrong = check_table(file, o, 3ull * y->h + 3ull * y->w + 2);
    if (wrong) return wrong;
    const uint32_t *rows = words(file, o->args), *columns = rows + 2 * y->h, *step = columns + 2 * y->w;
    if (!ranges_fit(rows, y->h, x->h) || !ranges_fit(columns, y->w, x->w)) return BAD_TABLE;
    if (!step[0] || !step[1] || step[0] > MAX_SIDE || step[1] > MAX_SIDE) return BAD_TABLE;
    return leaves_arena(head(file), o, work_floats(file, o));
}

static int check_resize(const uint8_t *file, const op *o, const map *x, const map *y) {
    if (x->c != y->c) return BAD_SHAPE;
    const int wrong = check_table(file, o, 3ull * y->h + 3ull * y->w);
    if (wrong) return wrong;
    const uint32_t *rows = words(file, o->args), *columns = rows + 3 * y->h;
    for (uint32_t i = 0; i < 2 * y->h; i++)
        if (rows[i] >= x->h) return BAD_TABLE;
    for (uint32_t i = 0; i < 2 * y->w; i++)
        if (columns[i] >= x->w) return BAD_TABLE;
    return leaves_arena(head(file), o, work_floats(file, o));
}

/* A softmax or a norm: whole groups of planes. */
static int check_groups(const op *o, const map *x, const map *y) {
    return same_shape(x, y) && o->planes && x->c % o->planes == 0 ? 0 : BAD_SHAPE;
}

static int check_matmul(const uint8_t *file, const op *o, const map *x, const map *y) {
    if (o->add == NONE) return BAD_SHAPE;
    const int wrong = check_table(file, o, sizeof(matmul_table) / 4);
    if (wrong) return wrong;
    const map *b = map_of(file, o->add);
    const matmul_table *t = (const matmul_table *)words(file, o->args);
    const uint32_t sizes[] = {t->batch[0], t->batch[1], t->m, t->k};
    for (int i = 0; i < 4; i++)
        if (!sizes[i] || sizes[i] > MAX_SIDE) return BAD_SHAPE;
    const uint64_t matrices = (uint64_t)sizes[0] * sizes[1]; /* up to 2^40: y has no more than 2^20 planes */
    if (matrices > MAX_SIDE || matrices * t->m != y->c || (uint64_t)y->h * y->w != t->n) return BAD_SHAPE;
    uint64_t a_last = t->a_at, b_end = (uint64_t)t->b_at + t->n;
    for (int i = 0; i < 4; i++) a_last += (uint64_t)(sizes[i] - 1) * t->a_strides[i];
    for (int i = 0; i < 3; i++) b_end += (uint64_t)(sizes[i < 2 ? i : 3] - 1) * t->b_strides[i];
    if (a_last >= extent(x) || b_end > extent(b)) return BAD_TABLE;
    if (b->at + b_end + 16 > head(file)->arena) return BAD_TABLE; /* kernels read whole vectors of a row */
    return leaves_arena(head(file), o, work_floats(file, o));
}

/* Whether axes of such sizes and strides stay in a map's floats from `at` on. */
static int axes_fit(uint32_t at, const uint32_t *sizes, const int32_t *strides, const map *m) {
    int64_t first = at, last = at;
    for (int i = 0; i < 6; i++) {
        const int64_t step = (int64_t)(sizes[i] - 1) * strides[i];
        *(step < 0 ? &first : &last) += step;
    }
    return first >= 0 && last < (int64_t)extent(m);
}

/* Whether a piece writes no float twice: each axis, taken by the length of its steps, steps over all that those before it
   reach. */
static int writes_once(const piece *p) {
    int64_t steps[6];
    uint32_t sizes[6];
    int n = 0;
    for (int i = 0; i < 6; i++) {
        if (p->sizes[i] == 1) continue;
        const int64_t step = p->y_strides[i] < 0 ? -(int64_t)p->y_strides[i] : p->y_strides[i];
        int at = n++;
        for (; at && steps[at - 1] > step; at--) steps[at] = steps[at - 1], sizes[at] = sizes[at - 1];
        steps[at] = step, sizes[at] = p->sizes[i];
    }
    int64_t reach = 0;
    for (int i = 0; i < n; reach += (sizes[i] - 1) * steps[i], i++)
        if (steps[i] <= reach) return 0;
    return 1;
}

/* Whether a piece of a move reads a whole map other than y and stays within both. */
static int check_piece(const uint8_t *file, const op *o, const piece *p) {
    if (p->x >= head(file)->n_maps || p->x == o->y) return BAD_OP;
    const map *x = map_of(file, p->x);
    if (x->interleaved) return BAD_SHAPE;
    for (int i = 0; i < 6; i++)
        if (!p->sizes[i] || p->sizes[i] > MAX_SIDE) return BAD_TABLE;
    if (!axes_fit(p->x_at, p->sizes, p->x_strides, x)) return BAD_TABLE;
    if (!axes_fit(p->y_at, p->sizes, p->y_strides, map_of(file, o->y))) return BAD_TABLE;
    return writes_once(p) ? 0 : BAD_TABLE;
}

/* Without a fill the pieces must have as many floats as y. */
static int check_move(const uint8_t *file, const op *o, const map *y) {
    if (o->n_args < MOVE_HEAD + PIECE || (o->n_args - MOVE_HEAD) % PIECE) return BAD_SHAPE;
    if (!section(head(file), o->args, 4ull * o->n_args)) return BAD_SECTION;
    uint64_t moved = 0;
    for (uint32_t i = 0; i < n_pieces(o); i++) {
        const piece *p = pieces(file, o) + i;
        const int wrong = check_piece(file, o, p);
        if (wrong) return wrong;
        uint64_t n = 1; /* it writes no float of y twice: no more than y has */
        for (int axis = 0; axis < 6; axis++) n *= p->sizes[axis];
        moved += n;
    }
    const uint32_t has_fill = *words(file, o->args);
    if (has_fill > 1 || pieces(file, o)->x != o->x) return BAD_OP;
    return has_fill || moved == (uint64_t)y->c * y->h * y->w ? 0 : BAD_SHAPE;
}

static int check_binary(const uint8_t *file, const op *o, const map *x, const map *y) {
    if (o->add == NONE || !same_shape(x, y) || x->pitch != y->pitch) return BAD_SHAPE;
    return spread(y, map_of(file, o->add)) == MISFIT ? BAD_SHAPE : 0;
}

int check_table_op(const uint8_t *file, const op *o) {
    const map *x = map_of(file, o->x), *y = map_of(file, o->y);
    int wrong = 0;
    switch (o->kind) {
        case BINARY: return check_binary(file, o, x, y);
        case UNARY: return same_shape(x, y) ? 0 : BAD_SHAPE;
        case POOL: return check_pool(file, o, x, y);
        case MOVE: return check_move(file, o, y);
        case RESIZE: return check_resize(file, o, x, y);
        case SOFTMAX: return check_groups(o, x, y);
        case NORM:
            wrong = check_groups(o, x, y);
            return wrong ? wrong : check_table(file, o, 1 + 2ull * x->c);
        case MATMUL: return check_matmul(file, o, x, y);
        case CONST: return check_table(file, o, (uint64_t)y->c * y->h * y->w);
    }
    return BAD_OP;
}
