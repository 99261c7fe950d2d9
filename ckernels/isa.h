/* What the bodies of the kernels are written in: vectors of LANES floats, in the compilers' own vector types, so that one
   body serves every instruction set. A file that names its set defines LANES and MAXV first. */
#include <stddef.h>
#include <stdint.h>
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#ifdef LANES
typedef float V __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float V4 __attribute__((vector_size(16)));
typedef float Unaligned4 __attribute__((vector_size(16), aligned(4), may_alias));

INLINE V load(const float *p) { return *(const Unaligned *)p; }
INLINE void store(float *p, V v) { *(Unaligned *)p = v; }
INLINE V splat(float s) { return s - (V){0}; }
INLINE V4 load4(const float *p) { return *(const Unaligned4 *)p; }

/* vmax and vmin give their second operand where either is NaN: clamp(NaN) is NaN. */
#if defined __AVX512F__ && LANES == 16
#include <immintrin.h>
INLINE V vmax(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE V vmin(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }
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
#endif
INLINE V clamp(V v, V lo, V hi) { return vmin(hi, vmax(lo, v)); }
INLINE float clamp1(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

/* acc + a * b: fused where the set has it; SIMD128 has not, relaxed SIMD has. */
#if defined __wasm_relaxed_simd__
INLINE V madd(V a, V b, V acc) { return (V)wasm_f32x4_relaxed_madd((v128_t)a, (v128_t)b, (v128_t)acc); }
INLINE V4 madd4(V4 a, V4 b, V4 acc) { return (V4)wasm_f32x4_relaxed_madd((v128_t)a, (v128_t)b, (v128_t)acc); }
#else
INLINE V madd(V a, V b, V acc) { return acc + a * b; }
INLINE V4 madd4(V4 a, V4 b, V4 acc) { return acc + a * b; }
#endif
#endif
