/* The only declaration of the kernels: the C compiler and cffi read this same file, so it holds no preprocessor lines.

   A feature map is C planes of H x W pixels, row by row, plane c at x + c * pitch. A pitch is at least H * W rounded up to
   16 floats, and 16 more: kernels read and write whole vectors from any pixel on, and what lies between a plane's last
   pixel and its pitch is never used.
   lo and hi clamp what is written (ReLU: 0 and infinity); a NaN stays a NaN. */

/* Y = clamp(W X + bias + add): a 1 x 1 convolution, or any other whose taps im2col_f32 has laid out as rows of X.
   W (M, K), X (K, n), Y (M, n), with M = block * groups rows, K columns of W, n pixels.

   W is stored as blocks of `block` rows x 1 column: 4, so that one load of a row of X serves four rows of Y, or 1, 8 or 16
   (whose columns are one k-tile). Its columns are cut
   into `k_tiles` k-tiles of `k_tile`, so that the rows of X that one of them meets stay in the first-level cache while all
   groups pass: blocks come k-tile by k-tile, group of rows by group, and count (k_tiles, groups) says how many each has.
   col is a block's column within its k-tile, which then has SPMM_MAX_K_TILE columns at most unless blocks have 16 rows;
   without col, W is dense and a group has every column of its k-tile: blocks of 1 row have a col. w (blocks, block); bias
   (M). add, if any, is laid out as Y.
   W may have `before` more groups of rows before those that are multiplied, and `behind` behind them: count, col and w hold
   these too, all else only the groups that are multiplied. */
enum { SPMM_MAX_K_TILE = 1024 };
typedef struct {
    int32_t block, groups, k_tiles, k_tile, n, before, behind;
    const uint16_t *count, *col;
    const float *w, *bias, *x, *add;
    float *y;
    int64_t x_pitch, y_pitch, add_pitch;
    float lo, hi;
} spmm_f32;

/* Rows top .. bottom - 1 of a k x k depthwise convolution of c channels, k = 3, 5 or 7, stride 1 or 2, of planes x
   (c, h, w) with `pad` rows of zeros above and pad_w columns to the left, both below k; below and to the right are as many
   as out_w and bottom ask for, where every window begins before x ends. A plane of y (c, bottom - top, out_w) gets its rows
   without a gap, and up to 16 floats behind them are overwritten. weight (c, k * k), bias (c). workspace holds
   depthwise_workspace() floats. */
typedef struct {
    int32_t c, h, w, k, stride, pad, pad_w, out_w, top, bottom;
    int64_t x_pitch, y_pitch;
    const float *x, *weight, *bias;
    float *y, *workspace;
    float lo, hi;
} depthwise_f32;

/* Rows top .. bottom - 1 of a convolution's output, its window k rows x k_w columns, laid out for spmm_f32: row
   (c * k + i) * k_w + j of y holds the (bottom - top) * out_w pixels that tap (i, j) of input channel c meets, zeros outside
   of x. x is planes (x_channel = pitch, x_pixel = 1) or pixels of interleaved channels (x_channel = 1, x_pixel = c). */
typedef struct {
    int32_t c, h, w, k, k_w, stride, stride_w, pad, pad_w, dilation, dilation_w, out_w, top, bottom;
    int64_t x_channel, x_pixel, y_pitch;
    const float *x;
    float *y;
} im2col_f32;

/* y = clamp(W x + bias) for one vector x (n): W (16 * groups, n) as count[g] blocks of 16 rows x 1 column each; without
   col, dense. A vector has no pixels to share a weight between, so lanes run over rows. w (blocks, 16); bias, y
   (16 * groups). */
typedef struct {
    int32_t groups, n;
    const uint16_t *count, *col;
    const float *w, *bias, *x;
    float *y;
    float lo, hi;
} gemv_f32;

/* y[c] = the mean of the n pixels of plane c. */
typedef struct {
    int32_t c, n;
    int64_t x_pitch;
    const float *x;
    float *y;
} mean_f32;

/* y = act(clamp(x)), c planes of n pixels; x and y may be one. slopes (c): a prelu's. Halves are rounded to even. */
enum {
    ACT_NONE, ACT_SIGMOID, ACT_SILU, ACT_HARDSIGMOID, ACT_HARDSWISH, ACT_GELU, ACT_GELU_TANH, ACT_TANH, ACT_ELU, ACT_MISH,
    ACT_SOFTPLUS, ACT_EXP, ACT_SQRT, ACT_ROUND, ACT_PRELU
};
typedef struct {
    int32_t act, c;
    int64_t n, x_pitch, y_pitch;
    const float *x, *slopes;
    float *y;
    float lo, hi;
} unary_f32;

/* y = clamp(a + b), or another function of both, c planes of n pixels: pixel p of plane c takes b[c * b_pitch + p], or with
   b_is_one b[c * b_pitch] for all pixels. A NaN is the greatest and the least number. RSUB: b - a, RDIV: b / a. */
enum {
    BINARY_ADD = 1, BINARY_SUB, BINARY_MUL, BINARY_DIV, BINARY_MAX, BINARY_MIN, BINARY_RSUB, BINARY_RDIV
};
typedef struct {
    int32_t fn, c, b_is_one;
    int64_t n, a_pitch, b_pitch, y_pitch;
    const float *a, *b;
    float *y;
    float lo, hi;
} binary_f32;

/* y (c, out_h, out_w): each pixel the greatest number of a window of x (c, h, w), or its sum times row_scale[i] *
   column_scale[j]. Row i of y sees the rows rows[2 i], + step, ... below rows[2 i + 1], and columns likewise. workspace
   holds line_workspace() floats. */
enum { POOL_MAX = 1, POOL_MEAN };
typedef struct {
    int32_t fn, c, h, w, out_h, out_w, step, step_w;
    int64_t x_pitch, y_pitch;
    const uint32_t *rows, *columns;
    const float *row_scale, *column_scale, *x;
    float *y, *workspace;
} pool_f32;

/* y[sum i_k y_strides_k] = x[sum i_k x_strides_k] for all i over sizes; no float of y is written twice. */
typedef struct {
    int64_t sizes[6], x_strides[6], y_strides[6];
    const float *x;
    float *y;
} move_f32;

/* y (c, out_h, out_w): between rows rows[2 i] and rows[2 i + 1] of x by the weight of the second, then columns likewise:
   a + weight * (b - a), where it is 0 the first alone. workspace holds line_workspace() floats. */
typedef struct {
    int32_t c, w, out_h, out_w;
    int64_t x_pitch, y_pitch;
    const uint32_t *rows, *columns;
    const float *row_weight, *column_weight, *x;
    float *y, *workspace;
} resize_f32;

/* y = exp(x) over its sum, over each `planes` of c planes at each of n pixels. */
typedef struct {
    int32_t c, planes;
    int64_t n, x_pitch, y_pitch;
    const float *x;
    float *y;
} softmax_f32;

/* y = (x - mean) / sqrt(variance + eps) * weight[c] + bias[c], over each `planes` of c planes: at each of n pixels, or over
   all pixels too. RMS: as PIXEL, without the mean. AFFINE: x * weight[c] + bias[c]. */
enum { NORM_PIXEL = 1, NORM_PLANES, NORM_RMS, NORM_AFFINE };
typedef struct {
    int32_t fn, c, planes;
    int64_t n, x_pitch, y_pitch;
    const float *x, *weight, *bias;
    float *y;
    float eps;
} norm_f32;

/* x (c, n) as uint8: x * inv_scale + zero, rounded to even, within 0 and 255. y (ceil(c / 4), n, 4): channels 4 g .. 4 g + 3
   of pixel p are the four bytes from y + 4 * (g * y_pitch + p) on, the order in which dot-product instructions take them;
   channels beyond c, whose weights are 0, repeat the last. Returns 0 if all of x is finite: a byte cannot be NaN.
   Only spmm_u8s8 of the same set reads y. */
typedef struct {
    int32_t c, n, zero;
    float inv_scale;
    int64_t x_pitch, y_pitch;
    const float *x;
    uint8_t *y;
} quantise_u8;

/* Y = clamp(scale * (W (X - zero)) + bias + add) with int8 W (M, K) and uint8 X (K, n) as quantise_u8 lays it out; the
   inner product is summed in int32, exactly.

   W is stored as spmm_f32's, but a block is 4 rows x 4 columns, row after row: k_tile, count and col count columns by
   fours. w (blocks, 4, 4); scale, bias and sums, the sum of a row's weights, (4 * groups): W (X - zero) = W X - zero * sums. before and behind as spmm_f32 has them. */
typedef struct {
    int32_t groups, k_tiles, k_tile, n, zero, before, behind;
    const uint16_t *count, *col;
    const int8_t *w;
    const int32_t *sums;
    const float *scale, *bias, *add;
    const uint8_t *x;
    float *y;
    int64_t x_pitch, y_pitch, add_pitch;
    float lo, hi;
} spmm_u8s8;

/* One instruction set: its kernels, and how many floats a vector of it holds. */
typedef struct {
    const char *name;
    int32_t lanes;
    void (*spmm)(const spmm_f32 *);
    void (*depthwise)(const depthwise_f32 *);
    void (*im2col)(const im2col_f32 *);
    void (*gemv)(const gemv_f32 *);
    void (*mean)(const mean_f32 *);
    float (*peak)(int64_t rounds); /* 16 * lanes multiply-adds a round, on registers: what the machine can do at best */
    int (*quantise)(const quantise_u8 *);
    void (*spmm_int8)(const spmm_u8s8 *);
    void (*unary)(const unary_f32 *);
    void (*binary)(const binary_f32 *);
    void (*pool)(const pool_f32 *);
    void (*move)(const move_f32 *);
    void (*resize)(const resize_f32 *);
    void (*softmax)(const softmax_f32 *);
    void (*norm)(const norm_f32 *);
} isa;

/* The instruction set of that name, or the best one for an empty name; NULL where this machine lacks it. */
const isa *isa_named(const char *name);

/* Floats of a padded row of a depthwise kernel's workspace, and of the workspace for a row tile of `rows` output rows. */
int64_t depthwise_pitch(int w, int stride);
int64_t depthwise_workspace(int w, int k, int stride, int rows);

/* Floats of the workspace of a pool and a resize, x and y so many columns wide; and of a product of maps (m, k) and (k, n),
   which has k-tiles of MATMUL_K_TILE columns. */
enum { MATMUL_K_TILE = 128, LINE_MARGIN = 16 };
int64_t line_workspace(int w, int out_w);
int64_t matmul_workspace(int m, int k, int n);

/* The engine: a packed network (packed.py describes its format), run op by op.
   engine_check reads a file that may be anything and returns 0, or the number of what is wrong with it; all others
   trust a file that it has passed. arena holds engine_arena() floats, aligned to 64 bytes; x, all inputs one after another,
   and y, all outputs, engine_in() and engine_out() floats, planes without a gap. engine_step runs an operator standalone,
   for a clock: of a map in a rolling row buffer it reads whatever lies there. At most ENGINE_MAX_CHAIN operators are chained by such maps. */
enum { ENGINE_MAX_CHAIN = 8 };
int engine_check(const uint8_t *file, uint64_t size);
uint64_t engine_arena(const uint8_t *file);
uint64_t engine_in(const uint8_t *file);
uint64_t engine_out(const uint8_t *file);
int engine_ops(const uint8_t *file);
void engine_put(const uint8_t *file, float *arena, const float *x);
void engine_step(const uint8_t *file, float *arena, const isa *kernels, int op);
void engine_get(const uint8_t *file, const float *arena, float *y);
void engine_run(const uint8_t *file, float *arena, const isa *kernels, const float *x, float *y);

/* `threads` threads run one image together: each calls engine_run_part with its number `rank`, the same arena and meeting, all
   zeros at first, and an arena `local` of its own, which for one of them may be the shared one. Where one waits for the others
   engine_stop has it go on alone: what it computes then is wrong, but it comes to an end. */
typedef struct {
    uint32_t arrived, round, stopped, nonfinite;
} meeting;
typedef struct {
    meeting *meeting;
    uint32_t rank, threads;
} team;
void engine_run_part(const uint8_t *file, float *arena, float *local, const isa *kernels, const team *team, const float *x,
                     float *y);
void engine_stop(meeting *m);
