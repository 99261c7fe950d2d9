/* Which instruction sets this machine has, and the sizes of workspaces, which are the same in all of them. */
#include "isa.h"

extern const isa isa_ref, isa_avx2, isa_avx2vnni, isa_avx512, isa_avx512vnni, isa_neon, isa_neondot, isa_simd128;

static int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

#if defined __x86_64__
#include <cpuid.h>
/* AVX-VNNI, which compilers older than it cannot be asked for. */
static int has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#elif defined __aarch64__
/* SDOT: every core since ARM's of 2018. */
#if defined __linux__
#include <sys/auxv.h>
static int has_dot(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
#else
static int has_dot(void) {
#if defined __ARM_FEATURE_DOTPROD
    return 1;
#else
    return 0;
#endif
}
#endif
#endif

const isa *isa_named(const char *name) {
    const isa *sets[5]; /* best first */
    int n = 0;
#if defined __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        if (__builtin_cpu_supports("avx512vnni")) sets[n++] = &isa_avx512vnni;
        sets[n++] = &isa_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (has_avxvnni()) sets[n++] = &isa_avx2vnni;
        sets[n++] = &isa_avx2;
    }
#elif defined __aarch64__
    if (has_dot()) sets[n++] = &isa_neondot;
    sets[n++] = &isa_neon;
#elif defined __wasm_simd128__
    sets[n++] = &isa_simd128;
#endif
    sets[n++] = &isa_ref;
    for (int i = 0; i < n; i++)
        if (!*name || same(name, sets[i]->name)) return sets[i];
    return NULL;
}

/* A row of the workspace: its pixels in whole vectors of 16 floats, 16 more on either side for the zeros; at stride 2 the
   even and the odd columns, each so. */
int64_t depthwise_pitch(int w, int stride) {
    const int pixels = stride == 1 ? w : (w + 1) / 2;
    return (((pixels > 16 ? pixels : 16) + 15) / 16 * 16 + 32) * (int64_t)stride;
}

/* A row between margins, where a vector may read 5 more from any pixel on, and a number for each column of the output. */
int64_t line_workspace(int w, int out_w) { return (w + 15ll) / 16 * 16 + 96 + (out_w + 15ll) / 16 * 16 + 16; }

/* A's rows as blocks of 4, and their biases, which are 0; four rows of the product; a count for each k-tile and group. */
int64_t matmul_workspace(int m, int k, int n) {
    const int64_t groups = (m + 3) / 4, k_tiles = (k + MATMUL_K_TILE - 1) / MATMUL_K_TILE;
    return 4 * groups * (k + 1ll) + 4 * ((n + 15ll) / 16 * 16 + 16) + groups * k_tiles;
}

/* As many padded rows as `rows` output rows read. */
int64_t depthwise_workspace(int w, int k, int stride, int rows) {
    return depthwise_pitch(w, stride) * ((int64_t)(rows - 1) * stride + k);
}
