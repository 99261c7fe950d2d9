#if defined __x86_64__
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
const isa isa_avx2 = {"avx2", LANES, spmm, depthwise, im2col, gemv, mean, add, peak};
#if defined __clang__
#pragma clang attribute pop
#endif
#endif
