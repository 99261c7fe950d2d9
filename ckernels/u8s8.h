/* quantise_u8 and spmm_u8s8: a sparse u8s8 product, uint8 activations times int8 weights, summed in int32.

   Included once for each way of multiplying bytes that a file has; before that it defines NAME(function), how its
   functions are called, U8S8_MAXV, and one of DOT_* if it has such an instruction:
       DOT_VNNI    vpdpbusd: four products u8 x s8 a lane, added to its int32
       DOT_SDOT    sdot: the same of signed bytes, so X is kept less 128
       DOT_PAIRS   two products of 16 bits a lane; four bytes take two of them
       none        one byte of each lane at a time */
#ifndef U8S8_MAXV
#error U8S8_MAXV: how many vectors of pixels a tile has at most
#endif
#ifndef U8S8_TYPES
#define U8S8_TYPES
typedef Mask I;
typedef int16_t I16 __attribute__((vector_size(4 * LANES)));
typedef int32_t UnalignedI32 __attribute__((aligned(1), may_alias));
INLINE I splat_i32(int32_t w) { return w - (I){0}; }
INLINE I splat_load_i32(const int8_t *p) { return splat_i32(*(const UnalignedI32 *)p); }
#endif
#undef U8_OFFSET
#if defined DOT_SDOT
#define U8_OFFSET 128 /* X is kept less 128, and so is its zero point */
#else
#define U8_OFFSET 0
#endif

/* A lane of sum and x is a pixel: sum + its four bytes of x, unsigned, times the four of row r of a block (4, 4), signed. */
#if defined DOT_VNNI
#if LANES == 16
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)splat_load_i32(block + 4 * r));
}
#elif defined __AVX512VL__
#error a set of 8 lanes takes AVX-VNNI
#else
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    return (I)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)splat_load_i32(block + 4 * r));
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
    const I16 w = (I16)splat_load_i32(block + 4 * r);
    const I even = x & 0x00ff00ff, odd = (x >> 8) & 0x00ff00ff;
    return sum + DOT_PAIRS(even, (I)(w << 8 >> 8)) + DOT_PAIRS(odd, (I)(w >> 8));
}
#else
INLINE I NAME(dot)(I sum, I x, const int8_t *block, const int r) {
    UNROLL for (int j = 0; j < 4; j++) sum += (x >> 8 * j & 255) * splat_i32(block[4 * r + j]);
    return sum;
}
#endif

/* Rounded by adding 2^23 + zero, which leaves the integer in the low byte. Four channels make one vector of bytes: the
   bytes of channel j are shifted to their place and merged. */
static int NAME(quantise)(const quantise_u8 *s) {
    const V inv_scale = splat(s->inv_scale), lo = splat((float)-s->zero), hi = splat((float)(255 - s->zero));
    const V round = splat((float)(ROUND_MAGIC + s->zero)), nothing = splat(0.0f);
    V nonfinite = nothing;
    for (int g = 0; 4 * g < s->c; g++) {
        const float *x[4];
        for (int j = 0; j < 4; j++) x[j] = s->x + (4 * g + j < s->c ? 4 * g + j : s->c - 1) * s->x_pitch;
        float *y = (float *)s->y + g * s->y_pitch;
        for (int p = 0; p < s->n; p += LANES) {
            I quad = splat_i32(U8_OFFSET ? -0x7f7f7f80 : 0);
            UNROLL for (int j = 0; j < 4; j++) {
                V v = load(x[j] + p);
                if (p + LANES > s->n) v = keep_lanes(lanes_below(s->n - p), v);
                nonfinite = madd(v, nothing, nonfinite); /* 0 * x is 0, but NaN of a NaN or an infinity */
                quad ^= ((I)(clamp(v * inv_scale, lo, hi) + round) & 255) << 8 * j;
            }
            store(y + p, (V)quad);
        }
    }
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= nonfinite[i] != 0.0f;
    return any;
}

/* As spmm_tile, from pixel `at` on: sums of nv vectors of pixels x 4 rows. A block costs nv loads of X, 4 of W, and 4 * nv
   dot products, each worth four multiply-adds. Sums begin as -zero * sums, which makes W X of what would be W (X - zero). */
INLINE void NAME(tile)(const int nv, const int sparse, const spmm_u8s8 *s, ptrdiff_t at) {
    const uint16_t *count = s->count, *col = s->col;
    const int8_t *w = s->w;
    for (int c = 0; c < s->k_tiles; c++) {
        /* the four bytes of a pixel are as wide as a float */
        const float *x = (const float *)s->x + (ptrdiff_t)c * s->k_tile * s->x_pitch + at;
        const ptrdiff_t before = blocks_of(count, s->before);
        count += s->before, w += 16 * before;
        if (sparse) col += before; /* else there is none, and NULL takes no offset */
        for (int g = 0; g < s->groups; g++) {
            float *y = s->y + (ptrdiff_t)4 * g * s->y_pitch + at;
            I acc[4][U8S8_MAXV];
            UNROLL for (int r = 0; r < 4; r++) {
                const uint32_t first = (uint32_t)(U8_OFFSET - s->zero) * (uint32_t)s->sums[4 * g + r];
                UNROLL for (int v = 0; v < nv; v++)
                    acc[r][v] = c ? (I)load(y + r * s->y_pitch + v * LANES) : splat_i32((int32_t)first);
            }
            const int n = *count++;
            for (int i = 0; i < n; i++, w += 16) {
                const float *in = x + (sparse ? col[i] : i) * s->x_pitch;
                I xs[U8S8_MAXV];
                UNROLL for (int v = 0; v < nv; v++) xs[v] = (I)load(in + v * LANES);
                PREFETCH(w + 4096);
                UNROLL for (int r = 0; r < 4; r++)
                    UNROLL for (int v = 0; v < nv; v++) acc[r][v] = NAME(dot)(acc[r][v], xs[v], w, r);
            }
            if (sparse) col += n;

            const V lo = splat(s->lo), hi = splat(s->hi);
            const float *add = s->add ? s->add + (ptrdiff_t)4 * g * s->add_pitch + at : NULL;
            UNROLL for (int r = 0; r < 4; r++) {
                const V scale = splat(s->scale[4 * g + r]), bias = splat(s->bias[4 * g + r]);
                UNROLL for (int v = 0; v < nv; v++) {
                    V sum = (V)acc[r][v]; /* between k-tiles y holds the int32 sums */
                    if (c == s->k_tiles - 1) {
                        sum = madd(__builtin_convertvector(acc[r][v], V), scale, bias);
                        if (s->add) sum += load(add + r * s->add_pitch + v * LANES);
                        sum = clamp(sum, lo, hi);
                    }
                    store(y + r * s->y_pitch + v * LANES, sum);
                }
            }
        }
        const ptrdiff_t behind = blocks_of(count, s->behind);
        count += s->behind, w += 16 * behind;
        if (sparse) col += behind; /* else there is none, and NULL takes no offset */
    }
}

/* A case is 2 * nv + (whether W has an index). */
#define U8S8_CASE(nv)                                      \
    case 2 * nv: NAME(tile)(nv, 0, s, at); break;           \
    case 2 * nv + 1: NAME(tile)(nv, 1, s, at); break;

static void NAME(spmm)(const spmm_u8s8 *s) {
    int vectors = (s->n + LANES - 1) / LANES;
    ptrdiff_t at = 0;
    for (int tiles = (vectors + U8S8_MAXV - 1) / U8S8_MAXV; tiles > 0; tiles--) {
        const int nv = (vectors + tiles - 1) / tiles;
        switch (2 * nv + (s->col != NULL)) {
            U8S8_CASE(1)
            U8S8_CASE(2)
#if U8S8_MAXV > 2
            U8S8_CASE(3)
#endif
#if U8S8_MAXV > 3
            U8S8_CASE(4)
#endif
#if U8S8_MAXV > 4
            U8S8_CASE(5)
            U8S8_CASE(6)
#endif
        }
        vectors -= nv;
        at += (ptrdiff_t)nv * LANES;
    }
}
#undef U8S8_CASE
