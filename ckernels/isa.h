/* What the bodies of the kernels are written in: vectors of LANES floats, in the compilers' own vector types, so that one
   body serves every instruction set. A file that names its set defines LANES and MAXV first. */
#include <stddef.h>
#include <stdint.h>
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL24 _Pragma("GCC unroll 24")

/* 2^23: a float this large has no fraction, so adding a small number to it rounds that number to an integer, to even if
   halfway, the same in every instruction set. */
enum { ROUND_MAGIC = 1 << 23 };

/* The blocks of n groups, which counts from `count` on say. Where one thread has all groups, as in most of the browser's
   builds, there are none before its own. */
INLINE ptrdiff_t blocks_of(const uint16_t *count, int n) {
    ptrdiff_t blocks = 0;
#if defined __wasm__ && !defined __wasm_atomics__
    n = 0;
#endif
    for (int g = 0; g < n; g++) blocks += count[g];
    return blocks;
}

#ifdef LANES
typedef float V __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float V4 __attribute__((vector_size(16)));
typedef float Unaligned4 __attribute__((vector_size(16), aligned(4), may_alias));

INLINE V load(const float *p) { return *(const Unaligned *)p; }
INLINE void store(float *p, V v) { *(Unaligned *)p = v; }
INLINE V splat(float s) { return s - (V){0}; }

/* Empty assembly that ties gcc's hands where it chooses badly. PIN_VECTOR: keep v in a register, gcc would rather load it
   again for each use. PIN_ADDRESS_X86: the same for an address, which gcc would rather take apart into as many as it has
   uses. COMPILER_BARRIER: make v and store it before what comes next. */
#if defined __x86_64__
#define PIN_VECTOR(v) __asm__("" : "+v"(v))
#define PIN_ADDRESS_X86(p) __asm__("" : "+r"(p))
#define COMPILER_BARRIER(v) __asm__ volatile("" : "+v"(v) : : "memory")
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define PIN_VECTOR(v) (void)(v)
#define PIN_ADDRESS_X86(p) (void)(p)
#define COMPILER_BARRIER(v) (void)(v)
#define PREFETCH(p) (void)(p)
#endif
INLINE V4 load4(const float *p) { return *(const Unaligned4 *)p; }

/* The four weights of a block as a set multiplies by them: NEON takes a lane of a register, so one load serves all four;
   the others broadcast each from memory as they load it.
   PIN_ADDRESS_NEON: keep an address in a register; else gcc takes NEON's apart again, one sum a load. */
#if defined __aarch64__
#define PIN_ADDRESS_NEON(p) __asm__("" : "+r"(p))
typedef V4 Weights;
INLINE Weights weights(const float *p) { return load4(p); }
#else
#define PIN_ADDRESS_NEON(p) (void)0
typedef const float *Weights;
INLINE Weights weights(const float *p) { return p; }
#endif

/* Every other float of two vectors, from the first or from the second on: how stride 2 takes its pixels apart. */
#if LANES == 16
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#elif LANES == 8
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#else
#define EVEN(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define ODD(a, b) __builtin_shufflevector(a, b, 1, 3, 5, 7)
#endif

/* A zero, then all but the last float of v: the left neighbours of a row's first pixels. */
#if LANES == 16
#define SHIFT_IN_ZERO(v) __builtin_shufflevector((V){0}, v, 0, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30)
#elif LANES == 8
#define SHIFT_IN_ZERO(v) __builtin_shufflevector((V){0}, v, 0, 8, 9, 10, 11, 12, 13, 14)
#else
#define SHIFT_IN_ZERO(v) __builtin_shufflevector((V){0}, v, 0, 4, 5, 6)
#endif

/* A mask of the first n lanes; and v in the lanes of a mask, 0 in the others. */
typedef int32_t Mask __attribute__((vector_size(4 * LANES)));
INLINE V lanes_below(int n) {
    Mask lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (V)(lane < n - (Mask){0});
}
INLINE V keep_lanes(V mask, V v) { return (V)((Mask)mask & (Mask)v); }

/* vmax and vmin give their second operand where either is NaN: clamp(NaN) is NaN. */
#if defined __AVX512F__ && LANES == 16
#include <immintrin.h>
INLINE V vmax(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE V vmin(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }

/* A square of 4 rows x 4 pixels in one vector, row after row, for the 2 to 4 pixels behind spmm's last whole vector:
   4 pixels repeated for every row, a number a row, and a square from and to rows `pitch` apart. */
#define SQUARE 1
INLINE V square_pixels(const float *p) { return (V)_mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
INLINE V square_rows(const float *p) {
    const __m512i rows = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return (V)_mm512_permutevar_ps((__m512)square_pixels(p), rows);
}
INLINE V square_load(const float *p, ptrdiff_t pitch) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + pitch), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * pitch), 2);
    return (V)_mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * pitch), 3);
}
INLINE void square_store(float *p, ptrdiff_t pitch, V v) {
    _mm_storeu_ps(p, _mm512_castps512_ps128((__m512)v));
    _mm_storeu_ps(p + pitch, _mm512_extractf32x4_ps((__m512)v, 1));
    _mm_storeu_ps(p + 2 * pitch, _mm512_extractf32x4_ps((__m512)v, 2));
    _mm_storeu_ps(p + 3 * pitch, _mm512_extractf32x4_ps((__m512)v, 3));
}
#elif defined __AVX2__ && LANES == 8
#include <immintrin.h>
INLINE V vmax(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE V vmin(V a, V b) { return (V)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined __aarch64__
#include <arm_neon.h>
INLINE V vmax(V a, V b) { return (V)vmaxq_f32((float32x4_t)a, (float32x4_t)b); } /* of NEON: NaN if either is */
INLINE V vmin(V a, V b) { return (V)vminq_f32((float32x4_t)a, (float32x4_t)b); }
#elif defined __wasm_simd128__
#include <wasm_simd128.h>
INLINE V vmax(V a, V b) { return (V)wasm_f32x4_pmax((v128_t)b, (v128_t)a); } /* pmax(b, a) = b < a ? a : b */
INLINE V vmin(V a, V b) { return (V)wasm_f32x4_pmin((v128_t)b, (v128_t)a); }
#else /* a set without vectors: the compiler takes them apart */
INLINE V vmax(V a, V b) {
    UNROLL for (int i = 0; i < LANES; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
INLINE V vmin(V a, V b) {
    UNROLL for (int i = 0; i < LANES; i++) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}
#endif
#ifndef SQUARE /* the others' vectors are as short as such a rest: they have none */
#define SQUARE 0
INLINE V square_pixels(const float *p) { return *p - (V){0}; }
INLINE V square_rows(const float *p) { return *p - (V){0}; }
INLINE V square_load(const float *p, ptrdiff_t pitch) { return p[pitch] - (V){0}; }
INLINE void square_store(float *p, ptrdiff_t pitch, V v) { p[pitch] = v[0]; }
#endif

/* The square root of each lane. */
#if defined __AVX512F__ && LANES == 16
INLINE V vsqrt(V v) { return (V)_mm512_sqrt_ps((__m512)v); }
#elif defined __AVX2__ && LANES == 8
INLINE V vsqrt(V v) { return (V)_mm256_sqrt_ps((__m256)v); }
#elif defined __aarch64__
INLINE V vsqrt(V v) { return (V)vsqrtq_f32((float32x4_t)v); }
#else
INLINE V vsqrt(V v) { return __builtin_elementwise_sqrt(v); } /* clang's, for browsers */
#endif

/* a in the lanes of a mask, b in the others; and the greater and the less of two, of which NaN is both. */
INLINE V choose(Mask mask, V a, V b) { return (V)((mask & (Mask)a) | (~mask & (Mask)b)); }
INLINE V greater(V a, V b) { return choose(a == a, vmax(a, b), a); }
INLINE V less(V a, V b) { return choose(a == a, vmin(a, b), a); }

INLINE V clamp(V v, V lo, V hi) { return vmin(hi, vmax(lo, v)); }
INLINE float clamp1(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Four rows of one pixel: a where the mask is set, else b; and a clamp without branches, which no processor could predict. */
typedef int32_t Mask4 __attribute__((vector_size(16)));
INLINE V4 select4(Mask4 mask, V4 a, V4 b) { return (V4)((mask & (Mask4)a) | (~mask & (Mask4)b)); }
INLINE V4 clamp4(V4 v, float lo, float hi) {
    const V4 low = lo - (V4){0}, high = hi - (V4){0};
    v = select4(v < low, low, v);
    return select4(v > high, high, v);
}

/* acc + a * b: fused where the set has it; SIMD128 has not, relaxed SIMD has. */
#if defined __wasm_relaxed_simd__
INLINE V madd(V a, V b, V acc) { return (V)wasm_f32x4_relaxed_madd((v128_t)a, (v128_t)b, (v128_t)acc); }
INLINE V4 madd4(V4 a, V4 b, V4 acc) { return (V4)wasm_f32x4_relaxed_madd((v128_t)a, (v128_t)b, (v128_t)acc); }
#else
INLINE V madd(V a, V b, V acc) { return acc + a * b; }
INLINE V4 madd4(V4 a, V4 b, V4 acc) { return acc + a * b; }
#endif
#endif
