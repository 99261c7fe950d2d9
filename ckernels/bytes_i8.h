/* quantise_i8 and spmm_i8. Included once for each way of multiplying bytes that a file has; before that it defines
   NAME(function), how its functions are called, BYTES_MAXV, and one of DOT_* if it has such an instruction. */
#ifndef BYTES_MAXV
#error BYTES_MAXV: how many vectors of pixels a tile has at most
#endif
#ifndef BYTES_I8
#define BYTES_I8
typedef Bits I;
typedef int16_t Halves __attribute__((vector_size(4 * LANES)));
typedef int32_t Word __attribute__((aligned(1), may_alias));
INLINE I words(int32_t w) { return w - (I){0}; }
INLINE I load_word(const int8_t *p) { return words(*(const Word *)p); }
#endif
#undef SHIFT
#if defined DOT_SDOT
#define SHIFT 128 /* its bytes are signed: X is kept less 128, and so is the zero */
#else
#define SHIFT 0
#endif

/* sum + the four products of the bytes of x, unsigned, with those of row r of a block, signed. */
#if defined DOT_VNNI
#if LANES == 16
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)load_word(block + 4 * r));
}
#elif defined __AVX512VL__
#error a set of 8 lanes takes AVX-VNNI
#else
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    return (I)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)load_word(block + 4 * r));
}
#endif
#elif defined DOT_SDOT
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    const int8x16_t w = vld1q_s8(block);
    switch (r) {
        case 0: return (I)vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)x, w, 0);
        case 1: return (I)vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)x, w, 1);
        case 2: return (I)vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)x, w, 2);
        default: return (I)vdotq_laneq_s32((int32x4_t)sum, (int8x16_t)x, w, 3);
    }
}
#elif defined DOT_PAIRS
/* The even bytes and the odd ones as pairs of 16 bits: their products are exact, the instruction for bytes saturates. */
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    const Halves w = (Halves)load_word(block + 4 * r);
    const I even = x & 0x00ff00ff, odd = (x >> 8) & 0x00ff00ff;
    return sum + DOT_PAIRS(even, (I)(w << 8 >> 8)) + DOT_PAIRS(odd, (I)(w >> 8));
}
#else
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    UNROLL for (int j = 0; j < 4; j++) sum += (x >> 8 * j & 255) * words(block[4 * r + j]);
    return sum;
}
#endif

static int NAME(quantise)(const quantise_i8 *s) {
    const V gain = splat(s->gain), lo = splat((float)-s->zero), hi = splat((float)(255 - s->zero));
    const V round = splat((float)(ROUND + s->zero)), nothing = splat(0.0f);
    V odd = nothing;
    for (int g = 0; 4 * g < s->c; g++) {
        const float *x[4];
        for (int j = 0; j < 4; j++) x[j] = s->x + (4 * g + j < s->c ? 4 * g + j : s->c - 1) * s->x_pitch;
        float *y = (float *)s->y + g * s->y_pitch;
        for (int p = 0; p < s->n; p += LANES) {
            I four = words(SHIFT ? -0x7f7f7f80 : 0);
            UNROLL for (int j = 0; j < 4; j++) {
                V v = load(x[j] + p);
                if (p + LANES > s->n) v = only(lanes_below(s->n - p), v);
                odd = madd(v, nothing, odd); /* what is no number makes NaN of it, and so does infinity */
                four ^= ((I)(clamp(v * gain, lo, hi) + round) & 255) << 8 * j;
            }
            store(y + p, (V)four);
        }
    }
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= odd[i] != 0.0f;
    return any;
}

/* As spmm_tile: registers of nv vectors of pixels x 4 rows. */
INLINE void NAME(tile)(const int nv, const int sparse, const spmm_i8 *s, ptrdiff_t at) {
    const uint16_t *count = s->count, *col = s->col;
    const int8_t *w = s->w;
    for (int c = 0; c < s->chunks; c++) {
        const float *x = (const float *)s->x + (ptrdiff_t)c * s->chunk * s->x_pitch + at; /* a pixel is a float wide */
        for (int g = 0; g < s->groups; g++) {
            float *y = s->y + (ptrdiff_t)4 * g * s->y_pitch + at;
            I acc[4][BYTES_MAXV];
            UNROLL for (int r = 0; r < 4; r++) {
                const uint32_t first = (uint32_t)(SHIFT - s->zero) * (uint32_t)s->sums[4 * g + r];
                UNROLL for (int v = 0; v < nv; v++)
                    acc[r][v] = c ? (I)load(y + r * s->y_pitch + v * LANES) : words((int32_t)first);
            }
            const int n = *count++;
            for (int i = 0; i < n; i++, w += 16) {
                const float *in = x + (sparse ? col[i] : i) * s->x_pitch;
                I xs[BYTES_MAXV];
                UNROLL for (int v = 0; v < nv; v++) xs[v] = (I)load(in + v * LANES);
                PREFETCH(w + 4096);
                UNROLL for (int r = 0; r < 4; r++)
                    UNROLL for (int v = 0; v < nv; v++) acc[r][v] = NAME(dot)(acc[r][v], xs[v], w, r);
            }
            if (sparse) col += n;

            const V lo = splat(s->lo), hi = splat(s->hi);
            const float *add = s->add + (ptrdiff_t)4 * g * s->add_pitch + at;
            UNROLL for (int r = 0; r < 4; r++) {
                const V scale = splat(s->scale[4 * g + r]), bias = splat(s->bias[4 * g + r]);
                UNROLL for (int v = 0; v < nv; v++) {
                    V sum = (V)acc[r][v]; /* between runs the sums lie in y as they are */
                    if (c == s->chunks - 1) {
                        sum = madd(__builtin_convertvector(acc[r][v], V), scale, bias);
                        if (s->add) sum += load(add + r * s->add_pitch + v * LANES);
                        sum = clamp(sum, lo, hi);
                    }
                    store(y + r * s->y_pitch + v * LANES, sum);
                }
            }
        }
    }
}

#define BYTES_CASE(nv)                                      \
    case 2 * nv: NAME(tile)(nv, 0, s, at); break;           \
    case 2 * nv + 1: NAME(tile)(nv, 1, s, at); break;

static void NAME(spmm)(const spmm_i8 *s) {
    int vectors = (s->n + LANES - 1) / LANES;
    ptrdiff_t at = 0;
    for (int tiles = (vectors + BYTES_MAXV - 1) / BYTES_MAXV; tiles > 0; tiles--) {
        const int nv = (vectors + tiles - 1) / tiles;
        switch (2 * nv + (s->col != NULL)) {
            BYTES_CASE(1)
            BYTES_CASE(2)
#if BYTES_MAXV > 2
            BYTES_CASE(3)
#endif
#if BYTES_MAXV > 3
            BYTES_CASE(4)
#endif
#if BYTES_MAXV > 4
            BYTES_CASE(5)
            BYTES_CASE(6)
#endif
        }
        vectors -= nv;
        at += (ptrdiff_t)nv * LANES;
    }
}
#undef BYTES_CASE
