/* Which instruction sets this machine has. */
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
    const isa *here[5]; /* best first */
    int n = 0;
#if defined __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        if (__builtin_cpu_supports("avx512vnni")) here[n++] = &isa_avx512vnni;
        here[n++] = &isa_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (has_avxvnni()) here[n++] = &isa_avx2vnni;
        here[n++] = &isa_avx2;
    }
#elif defined __aarch64__
    if (has_dot()) here[n++] = &isa_neondot;
    here[n++] = &isa_neon;
#elif defined __wasm__
    here[n++] = &isa_simd128;
#endif
    here[n++] = &isa_ref;
    for (int i = 0; i < n; i++)
        if (!*name || same(name, here[i]->name)) return here[i];
    return NULL;
}

int64_t depthwise_pitch(int w, int stride) {
    const int pixels = stride == 1 ? w : (w + 1) / 2;
    return (((pixels > 16 ? pixels : 16) + 15) / 16 * 16 + 32) * (int64_t)stride;
}

int64_t depthwise_room(int w, int k, int stride, int rows) {
    return depthwise_pitch(w, stride) * ((int64_t)(rows - 1) * stride + k);
}
