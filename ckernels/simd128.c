/* WebAssembly: the same body compiled twice, with relaxed SIMD's fused multiply-add and with SIMD128. The third build, for
   engines that have neither, has the reference alone. */
#if defined __wasm_simd128__
#define LANES 4
#define MAXV 2 /* 8 sums, 2 of X and 1 weight of the 16 registers that x86 gives to a browser */
#include "isa.h"
#include "spmm_f32.h"
#include "depthwise_f32.h"
#include "im2col_f32.h"
#include "vector_f32.h"
#include "unary_f32.h"
#include "binary_f32.h"
#include "pool_f32.h"
#include "move_f32.h"
#include "resize_f32.h"
#include "norm_f32.h"
#define NAME(function) function##_int8
#define U8S8_MAXV 2
#define DOT_PAIRS(a, b) (I)wasm_i32x4_dot_i16x8((v128_t)(a), (v128_t)(b))
#include "u8s8.h"
const isa isa_simd128 = {"simd128", LANES, spmm, depthwise, im2col, gemv, mean, peak, quantise_int8, spmm_int8,
                       MAP_KERNELS};
#endif
