/* The only declaration of the kernels: the C compiler and cffi read this same file, so it holds no preprocessor lines.

   A feature map is kept as C planes of H x W pixels, plane c at x + c * pitch. A pitch is at least H * W rounded up to
   16 floats, and 16 more: kernels read and write whole vectors from any pixel on, and what lies between a plane's last
   pixel and its pitch is never used.
   lo and hi clamp what is written (ReLU: 0 and infinity); a NaN stays a NaN. */

/* Y = clamp(W X + bias + add): a 1x1 convolution, or any other whose taps im2col_f32 has laid out as rows of X.

   W (4 * groups rows) is kept as blocks of 4 rows x 1 column. Its columns are cut into `chunks` runs of `chunk`, so that
   a run of X stays in the first-level cache: blocks come chunk by chunk, group of rows by group, and count (chunks,
   groups) says how many each has. col is a block's column within its chunk, which then has SPMM_RUN columns at most;
   without col, W is dense and a group has every column of its chunk. w (blocks, 4); bias (4 * groups). add, if any, is
   laid out as Y. */
enum { SPMM_RUN = 1024 };
typedef struct {
    int32_t groups, chunks, chunk, n;
    const uint16_t *count, *col;
    const float *w, *bias, *x, *add;
    float *y;
    int64_t x_pitch, y_pitch, add_pitch;
    float lo, hi;
} spmm_f32;

/* Rows top .. bottom - 1 of a k x k depthwise convolution of c channels, k = 3 or 5, stride 1 or 2, zeros `pad` deep
   around the planes x (h, w). A plane of y gets its out_w wide rows without a gap, and up to 16 floats behind them are
   overwritten. weight (c, k * k), bias (c). room holds depthwise_room() floats. */
typedef struct {
    int32_t c, h, w, k, stride, pad, out_w, top, bottom;
    int64_t x_pitch, y_pitch;
    const float *x, *weight, *bias;
    float *y, *room;
    float lo, hi;
} depthwise_f32;

/* Rows top .. bottom - 1 of a k x k convolution's output, laid out for spmm_f32: row (c * k + i) * k + j of y holds the
   pixels that tap (i, j) of input channel c meets. x is planes (x_channel = pitch, x_pixel = 1) or pixels of
   interleaved channels (x_channel = 1, x_pixel = c). */
typedef struct {
    int32_t c, h, w, k, stride, pad, out_w, top, bottom;
    int64_t x_channel, x_pixel, y_pitch;
    const float *x;
    float *y;
} im2col_f32;

/* y = clamp(W x + bias) for one vector x: W (16 * groups rows) as count[g] blocks of 16 rows x 1 column each; without
   col, dense. w (blocks, 16). */
typedef struct {
    int32_t groups, n;
    const uint16_t *count, *col;
    const float *w, *bias, *x;
    float *y;
    float lo, hi;
} gemv_f32;

/* y[c] = the mean of the n pixels of plane c; y = clamp(a + b), n floats. */
typedef struct {
    int32_t c, n;
    int64_t x_pitch;
    const float *x;
    float *y;
} mean_f32;
typedef struct {
    int64_t n;
    const float *a, *b;
    float *y;
    float lo, hi;
} add_f32;

/* Bytes of n pixels of c planes: channels 4 g .. 4 g + 3 of pixel p, one byte each, begin at y + 4 * (g * y_pitch + p).
   A byte is x * gain + zero, rounded, within 0 and 255; channels beyond c, whose weights are 0, repeat the last.
   Returns 0 if no x is NaN or infinite: a byte cannot be NaN. Only spmm_i8 of the same set reads the bytes. */
typedef struct {
    int32_t c, n, zero;
    float gain;
    int64_t x_pitch, y_pitch;
    const float *x;
    uint8_t *y;
} quantise_i8;

/* Y = clamp(scale * (W (X - zero)) + bias + add) with int8 W and bytes X as quantise_i8 lays them out; sums are int32.

   W is kept as spmm_f32's, but a block is 4 rows x 4 columns, row after row: chunk, count and col count columns by fours.
   w (blocks, 16); scale, bias and sums, the sum of a row's weights, (4 * groups). */
typedef struct {
    int32_t groups, chunks, chunk, n, zero;
    const uint16_t *count, *col;
    const int8_t *w;
    const int32_t *sums;
    const float *scale, *bias, *add;
    const uint8_t *x;
    float *y;
    int64_t x_pitch, y_pitch, add_pitch;
    float lo, hi;
} spmm_i8;

/* One instruction set: its kernels, and how many floats a vector of it holds. */
typedef struct {
    const char *name;
    int32_t lanes;
    void (*spmm)(const spmm_f32 *);
    void (*depthwise)(const depthwise_f32 *);
    void (*im2col)(const im2col_f32 *);
    void (*gemv)(const gemv_f32 *);
    void (*mean)(const mean_f32 *);
    void (*add)(const add_f32 *);
    float (*peak)(int64_t rounds); /* 16 * lanes multiply-adds a round, on registers: what the machine can do at best */
    int (*quantise)(const quantise_i8 *);
    void (*spmm_bytes)(const spmm_i8 *);
} isa;

/* The instruction set of that name, or the best one for an empty name; NULL where this machine lacks it. */
const isa *isa_named(const char *name);

/* Floats of `room` that a depthwise kernel needs for a band of `rows` output rows, and of one line of it. */
int64_t depthwise_room(int w, int k, int stride, int rows);
int64_t depthwise_pitch(int w, int stride);

/* The engine: a packed network (see packed.py for its format), run op by op.
   engine_check reads a file that may be anything and returns 0, or the number of what is wrong with it; all others
   trust a file that it has passed. arena holds engine_arena() floats, aligned to 64 bytes; x and y, a picture and the
   network's answer, engine_in() and engine_out() floats. engine_step runs an operator by itself, for a clock: of a map
   that is kept in part it reads whatever lies there. */
int engine_check(const uint8_t *file, uint64_t size);
uint64_t engine_arena(const uint8_t *file);
uint64_t engine_in(const uint8_t *file);
uint64_t engine_out(const uint8_t *file);
int engine_ops(const uint8_t *file);
void engine_put(const uint8_t *file, float *arena, const float *x);
void engine_step(const uint8_t *file, float *arena, const isa *with, int op);
void engine_get(const uint8_t *file, const float *arena, float *y);
void engine_run(const uint8_t *file, float *arena, const isa *with, const float *x, float *y);
