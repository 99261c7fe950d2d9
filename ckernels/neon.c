#if defined __aarch64__
#define LANES 4
#define MAXV 4 /* 16 sums, 4 of X and 1 of weights of 32 registers */
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
#define NAME(function) function##_plain
#define U8S8_MAXV 4
#include "u8s8.h"
const isa isa_neon = {"neon", LANES, spmm, depthwise, im2col, gemv, mean, peak, quantise_plain, spmm_plain,
                       MAP_KERNELS};

/* Armv8.2 and its dot products, which a core may lack. */
#if defined __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#undef NAME
#define NAME(function) function##_dot
#define DOT_SDOT
#include "u8s8.h"
const isa isa_neondot = {"neondot", LANES, spmm, depthwise, im2col, gemv, mean, peak, quantise_dot, spmm_dot,
                       MAP_KERNELS};
#if defined __clang__
#pragma clang attribute pop
#endif
#endif
