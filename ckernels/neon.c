#if defined __aarch64__
#define LANES 4
#define MAXV 4 /* 16 sums, 4 of X and 1 of weights of 32 registers */
#include "isa.h"
#include "spmm_f32.h"
#include "depthwise_f32.h"
#include "im2col_f32.h"
#include "vector_f32.h"
const isa isa_neon = {"neon", LANES, spmm, depthwise, im2col, gemv, mean, add, peak};
#endif
