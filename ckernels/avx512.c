#if defined __x86_64__
#include <immintrin.h>
#if defined __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,fma,prefer-vector-width=512")
#endif
#define LANES 16
#define MAXV 6 /* 24 sums, 6 of X and 1 weight of 32 registers */
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
#define NAME(function) function##_pairs
#define U8S8_MAXV 4
#define DOT_PAIRS(a, b) (I)_mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#include "u8s8.h"
const isa isa_avx512 = {"avx512", LANES, spmm, depthwise, im2col, gemv, mean, peak, quantise_pairs, spmm_pairs,
                       MAP_KERNELS};

#if defined __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512vnni")
#endif
#undef NAME
#undef U8S8_MAXV
#undef DOT_PAIRS
#define NAME(function) function##_vnni
#define U8S8_MAXV 6
#define DOT_VNNI
#include "u8s8.h"
const isa isa_avx512vnni = {"avx512vnni", LANES, spmm, depthwise, im2col, gemv, mean, peak, quantise_vnni, spmm_vnni,
                       MAP_KERNELS};
#if defined __clang__
#pragma clang attribute pop
#endif
#endif
