/* What a browser calls: the engine with 32-bit arguments, and memory to lay a packed network, its arena and its images
   into. All memory stays with the instance; a page makes one instance for each network. */
#if defined __wasm__
#include "isa.h"

#define EXPORT(name) __attribute__((export_name(#name)))
#define PAGE 65536u

extern unsigned char __heap_base; /* of the linker: the first byte that nothing else uses */
static uint32_t used;

/* So many bytes of memory on a border of 64, or NULL where there is no more memory. */
EXPORT(alloc) void *alloc(uint32_t bytes) {
    const uint64_t from = ((used ? used : (uint32_t)(uintptr_t)&__heap_base) + 63ull) / 64 * 64, to = from + bytes;
    const uint64_t size = (uint64_t)__builtin_wasm_memory_size(0) * PAGE;
    if (to > size) {
        const uint64_t pages = (to - size + PAGE - 1) / PAGE;
        if (pages > 65536 || __builtin_wasm_memory_grow(0, (size_t)pages) == (size_t)-1) return NULL;
    }
    used = (uint32_t)to;
    return (void *)(uintptr_t)from;
}

EXPORT(check) int check(const uint8_t *file, uint32_t size) { return engine_check(file, size); }
EXPORT(arena) uint32_t arena(const uint8_t *file) { return (uint32_t)engine_arena(file); }
EXPORT(ops) int ops(const uint8_t *file) { return engine_ops(file); }

/* The best kernels of this build, or the reference. */
static const isa *chosen(int reference) { return isa_named(reference ? "ref" : ""); }

EXPORT(put) void put(const uint8_t *file, float *memory, const float *x) { engine_put(file, memory, x); }
EXPORT(step) void step(const uint8_t *file, float *memory, int op, int reference) {
    engine_step(file, memory, chosen(reference), op);
}
EXPORT(run) void run(const uint8_t *file, float *memory, const float *x, float *y, int reference) {
    engine_run(file, memory, chosen(reference), x, y);
}
#if defined __wasm_atomics__
/* One thread's part of an image: see engine_run_part. Each thread has an instance of its own over the same memory. */
EXPORT(run_part) void run_part(const uint8_t *file, float *memory, float *local, meeting *all, uint32_t rank,
                               uint32_t threads, const float *x, float *y, int reference) {
    const team t = {all, rank, threads};
    engine_run_part(file, memory, local, chosen(reference), &t, x, y);
}
#endif

/* There is no C library here; the compiler makes calls of loops that copy or fill. */
void *memcpy(void *to, const void *from, size_t n) {
    for (size_t i = 0; i < n; i++) ((char *)to)[i] = ((const char *)from)[i];
    return to;
}
void *memset(void *to, int value, size_t n) {
    for (size_t i = 0; i < n; i++) ((char *)to)[i] = (char)value;
    return to;
}
#endif
