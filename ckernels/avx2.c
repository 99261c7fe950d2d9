#if defined __x86_64__
#include <immintrin.h>
#if defined __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define MAXV 3 /* 12 sums, 3 of X and 1 weight of 16 registers */
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
#define U8S8_MAXV 2
#define DOT_PAIRS(a, b) (I)_mm256_madd_epi16((__m256i)(a), (__m256i)(b))
#include "u8s8.h"
const isa isa_avx2 = {"avx2", LANES, spmm, depthwise, im2col, gemv, mean, peak, quantise_pairs, spmm_pairs,
                       MAP_KERNELS};

#if defined __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avxvnni")
#endif
#undef NAME
#undef U8S8_MAXV
#undef DOT_PAIRS
#define NAME(function) function##_vnni
#define U8S8_MAXV 3
#define DOT_VNNI
#include "u8s8.h"
const isa isa_avx2vnni = {"avx2vnni", LANES, spmm, depthwise, im2col, gemv, mean, peak, quantise_vnni, spmm_vnni,
                       MAP_KERNELS};
#if defined __clang__
#pragma clang attribute pop
#endif
#endif
