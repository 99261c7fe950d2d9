/* The only declaration of the kernels: the C compiler and cffi read this same file, so it holds no preprocessor lines.

   Letters: m rows and k columns of the sparse matrix W, n columns of the dense X; all dense arrays are row-major.
   Every kernel checks its indices before it uses them and returns 0, or one of
     1  a size is negative
     2  row_start does not start at 0, end at nnz, or falls somewhere
     3  a column lies outside 0 .. k-1
   and writes nothing to y then. */

/* Y (4*block_rows, n) = W (4*block_rows, k) X (k, n), where W is kept as its nnz nonzero blocks of 4 rows x 1 column:
   blocks[row_start[b]] .. blocks[row_start[b + 1] - 1] are block row b, col[i] is the column of blocks (nnz, 4)[i]. */
int spmm_f32_ref(int block_rows, int k, int n, int nnz, const int32_t *row_start, const int32_t *col,
                 const float *blocks, const float *x, float *y);
