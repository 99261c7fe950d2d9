#if defined __x86_64__
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
const isa isa_avx512 = {"avx512", LANES, spmm, depthwise, im2col, gemv, mean, add, peak};
#if defined __clang__
#pragma clang attribute pop
#endif
#endif
