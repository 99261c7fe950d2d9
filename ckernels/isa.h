/* What the bodies of the kernels are written in: vectors of LANES floats, in the compilers' own vector types, so that one
   body serves every instruction set. A file that names its set defines LANES and MAXV first. */
#include <stddef.h>
#include <stdint.h>
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* A float this large has no fraction: adding a small number to it rounds that number to a whole one, to even if halfway,
   the same in every instruction set. */
enum { ROUND = 1 << 23 };

#ifdef LANES
typedef float V __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float V4 __attribute__((vector_size(16)));
typedef float Unaligned4 __attribute__((vector_size(16), aligned(4), may_alias));

INLINE V load(const float *p) { return *(const Unaligned *)p; }
INLINE void store(float *p, V v) { *(Unaligned *)p = v; }
INLINE V splat(float s) { return s - (V){0}; }
/* KEEP: hold v in a register, gcc would rather load it again for each use. HOLD: the same for an address, which gcc would
   rather take apart into as many as it has uses. IN_ORDER: make v and store it before what comes next. */
#if defined __x86_64__
#define KEEP(v) __asm__("" : "+v"(v))
#define HOLD(p) __asm__("" : "+r"(p))
#define IN_ORDER(v) __asm__ volatile("" : "+v"(v) : : "memory")
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define KEEP(v) (void)(v)
#define HOLD(p) (void)(p)
#define IN_ORDER(v) (void)(v)
#define PREFETCH(p) (void)(p)
#endif
INLINE V4 load4(const float *p) { return *(const Unaligned4 *)p; }

/* The four weights of a block, in the form that a set multiplies by: NEON takes a lane of a register, so one load
   serves all four; the others broadcast each from memory as they load it.
   FIXED: a number kept in a register as it is. Without it gcc takes NEON's addresses apart again, one sum a load. */
#if defined __aarch64__
#define FIXED(p) __asm__("" : "+r"(p))
typedef V4 Weights;
INLINE Weights weights(const float *p) { return load4(p); }
#else
#define FIXED(p) (void)0
typedef const float *Weights;
INLINE Weights weights(const float *p) { return p; }
#endif

/* Every other float of two vectors. */
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

/* A zero, then all but the last float of v. */
#if LANES == 16
#define AFTER_ZERO(v) __builtin_shufflevector((V){0}, v, 0, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30)
#elif LANES == 8
#define AFTER_ZERO(v) __builtin_shufflevector((V){0}, v, 0, 8, 9, 10, 11, 12, 13, 14)
#else
#define AFTER_ZERO(v) __builtin_shufflevector((V){0}, v, 0, 4, 5, 6)
#endif

/* All bits set in the first n lanes, none in the others; and v where the bits are set, else 0. */
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));
INLINE V lanes_below(int n) {
    Bits lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return (V)(lane < n - (Bits){0});
}
INLINE V only(V bits, V v) { return (V)((Bits)bits & (Bits)v); }

/* vmax and vmin give their second operand where either is NaN: clamp(NaN) is NaN. */
#if defined __AVX512F__ && LANES == 16
#include <immintrin.h>
INLINE V vmax(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE V vmin(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }

/* A square of 4 rows x 4 pixels in one vector, row after row: a number a row, 4 pixels that serve every row, and rows
   `pitch` apart. */
#define SQUARE 1
INLINE V square_pixels(const float *p) { return (V)_mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
INLINE V square_rows(const float *p) {
    return (V)_mm512_permutevar_ps((__m512)square_pixels(p), _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0));
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

INLINE V clamp(V v, V lo, V hi) { return vmin(hi, vmax(lo, v)); }
INLINE float clamp1(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Without branches, which nobody could foretell. */
typedef int32_t Bits4 __attribute__((vector_size(16)));
INLINE V4 either(Bits4 bits, V4 a, V4 b) { return (V4)((bits & (Bits4)a) | (~bits & (Bits4)b)); }
INLINE V4 clamp4(V4 v, float lo, float hi) {
    const V4 low = lo - (V4){0}, high = hi - (V4){0};
    v = either(v < low, low, v);
    return either(v > high, high, v);
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
