#include <stddef.h>
#include <stdint.h>
#include "kernels.h"

static int check(int block_rows, int k, int n, int nnz, const int32_t *row_start, const int32_t *col) {
    if (block_rows < 0 || k < 0 || n < 0 || nnz < 0) return 1;
    if (row_start[0] != 0 || row_start[block_rows] != nnz) return 2;
    for (int b = 0; b < block_rows; b++)
        if (row_start[b + 1] < row_start[b]) return 2;
    for (int i = 0; i < nnz; i++)
        if (col[i] < 0 || col[i] >= k) return 3;
    return 0;
}

int spmm_f32_ref(int block_rows, int k, int n, int nnz, const int32_t *row_start, const int32_t *col,
                 const float *blocks, const float *x, float *y) {
    int wrong = check(block_rows, k, n, nnz, row_start, col);
    if (wrong) return wrong;
    for (int b = 0; b < block_rows; b++) {
        for (int r = 0; r < 4; r++) {
            float *out = y + ((ptrdiff_t)4 * b + r) * n; /* row 4b + r of Y; ptrdiff_t: Y may exceed 2^31 elements */
            for (int j = 0; j < n; j++) out[j] = 0.0f;
            for (int i = row_start[b]; i < row_start[b + 1]; i++) {
                const float w = blocks[(ptrdiff_t)4 * i + r];
                const float *in = x + (ptrdiff_t)col[i] * n;
                for (int j = 0; j < n; j++) out[j] += w * in[j];
            }
        }
    }
    return 0;
}
