/* fuzz model.sbnn [seed] [rounds]: damaged copies of a packed network, each with its size and checksum put right, so
   that the checks behind them are reached. A copy is refused, or it runs. File, arena, image and output are cut to
   size: an address sanitizer sees whatever reaches outside of them. Prints how many were refused for which reason.
   With LIBFUZZER the same damage and the same run, on what libFuzzer chooses: python -m tests.sparsebytenn.fuzzing. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sbnn.h"

enum { HEADER = 64, MAP = 32, OP = 160, LARGEST_ARENA = 1 << 20, REASONS = 16 };
enum { SIZE = 8, CRC = 12, MAPS = 16, OPS = 20, MAPS_AT = 24, OPS_AT = 28, ARENA = 32 };
enum { ARGS = 144, N_ARGS = 148, WORK = 156 }; /* of an operator */
enum { C, H = 4, W = 8, PITCH = 12, AT = 16, INTERLEAVED = 20 };

static uint64_t state;
static uint32_t random32(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
static uint32_t below(uint32_t n) { return n ? random32() % n : 0; }

static uint32_t get(const uint8_t *p) { uint32_t v; return memcpy(&v, p, 4), v; }
static void set(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }

static uint32_t table[256];
static void make_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
    }
}
static uint32_t checksum(const uint8_t *p, uint32_t n) {
    uint32_t crc = ~0u;
    for (; n; n--) crc = crc >> 8 ^ table[(crc ^ *p++) & 255];
    return ~crc;
}

/* A number that was there, a little changed; a small, a huge, a negative or any other one. */
static uint32_t nasty(uint32_t old, uint32_t size) {
    static const uint32_t edges[] = {0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 65535, 65536, 1u << 20, 1u << 28,
                                     0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};
    switch (below(8)) {
        case 0: return old + 1 + below(3);
        case 1: return old - 1 - below(3);
        case 2: return old + 16 * (below(9) - 4);
        case 3: return old * (2 + below(3)) / (1 + below(2));
        case 4: return edges[below(sizeof edges / sizeof *edges)];
        case 5: return below(size) & ~3u;
        case 6: return old ^ 1u << below(32);
        default: return random32();
    }
}

/* Where a random 32-bit number of the header or of a table lies. */
static uint32_t field(const uint8_t *file) {
    switch (below(4)) {
        case 0: return 4 * (4 + below(HEADER / 4 - 4));
        case 1: return get(file + MAPS_AT) + MAP * below(get(file + MAPS)) + 4 * below(7);
        default: return get(file + OPS_AT) + OP * below(get(file + OPS)) + 4 * below(40);
    }
}

/* A count or a column of a random operator. */
static void damage_blocks(uint8_t *file, uint32_t size) {
    const uint8_t *op = file + get(file + OPS_AT) + OP * below(get(file + OPS));
    const uint32_t blocks = get(op + 4 * 10), at = get(op + 4 * (12 + below(2)));
    if (!at || !blocks) return;
    const uint64_t at_byte = at + 2ull * below(blocks);
    uint16_t old;
    if (at_byte + 2 > size) return;
    memcpy(&old, file + at_byte, 2);
    old = (uint16_t)nasty(old, size);
    memcpy(file + at_byte, &old, 2);
}

/* A word of a random operator's table. */
static void damage_table(uint8_t *file, uint32_t size) {
    const uint8_t *op = file + get(file + OPS_AT) + OP * below(get(file + OPS));
    const uint64_t at = get(op + ARGS) + 4ull * below(below(2) ? get(op + N_ARGS) : 46);
    if (at >= HEADER && at + 4 <= size) set(file + at, nasty(get(file + at), size));
}

static void swap_records(uint8_t *file, uint32_t at, uint32_t bytes, uint32_t n) {
    uint8_t kept[OP], *a = file + at + bytes * below(n), *b = file + at + bytes * below(n);
    memcpy(kept, a, bytes), memmove(a, b, bytes), memcpy(b, kept, bytes);
}

static int holds_tables(const uint8_t *file, uint32_t size) {
    const uint64_t maps = get(file + MAPS), ops = get(file + OPS);
    return maps && ops && get(file + MAPS_AT) + MAP * maps <= size && get(file + OPS_AT) + OP * ops <= size;
}

/* A map, grown or not, moved to where the arena ends, and the arena to where it ends; or a workspace moved there. */
static void push(uint8_t *file, uint32_t size) {
    uint8_t *map = file + get(file + MAPS_AT) + MAP * below(get(file + MAPS));
    if (below(2)) set(map + 4 * below(3), 1 + below(40));
    const uint32_t pixels = get(map + H) * get(map + W), least = (pixels + 15) / 16 * 16 + 16 * below(4);
    if (below(2)) set(map + PITCH, least);
    const uint32_t floats = get(map + INTERLEAVED) ? (get(map + C) * pixels + 15) / 16 * 16 + 16
                                                   : (get(map + C) + 3) / 4 * 4 * get(map + PITCH);
    if (below(4)) {
        set(map + AT, get(file + ARENA));
        set(file + ARENA, get(file + ARENA) + floats - !below(4));
    } else if (holds_tables(file, size)) { /* still: a map's record may lie over the header */
        set(file + get(file + OPS_AT) + OP * below(get(file + OPS)) + WORK, get(file + ARENA));
        set(file + ARENA, get(file + ARENA) + 16 * below(1 + below(1000)));
    }
}

static void scramble(uint8_t *file, uint32_t size, uint32_t kind) {
    if (kind == 1) file[16 + below(size - 16)] ^= (uint8_t)(1u << below(8));
    if (kind == 2 || kind == 3) damage_blocks(file, size);
    if (kind == 12 || kind == 13) damage_table(file, size);
    if (kind == 4) swap_records(file, get(file + MAPS_AT), MAP, get(file + MAPS));
    if (kind == 5) swap_records(file, get(file + OPS_AT), OP, get(file + OPS));
    for (uint32_t n = kind > 7 && kind < 12 ? 1 + below(3) : 0; n && holds_tables(file, size); n--) {
        const uint32_t at = field(file);
        set(file + at, nasty(get(file + at), size));
    }
    for (uint32_t n = kind > 5 && kind < 12 ? below(4) : 0; n && holds_tables(file, size); n--) push(file, size);
}

/* Damages a copy that has `size` bytes; returns how many of them are left. */
static uint32_t damage(uint8_t *file, uint32_t size) {
    const uint32_t kind = below(14);
    if (kind == 0) size = below(3) ? size - below(size < 300 ? size : 300) : below(size); /* cut short */
    if (size < HEADER) return size;
    if (kind && holds_tables(file, size)) scramble(file, size, kind);
    if (below(50)) { /* else as it is */
        set(file + SIZE, size);
        set(file + CRC, checksum(file + 16, size - 16));
    }
    return size;
}

enum { TEAM = 2 };
typedef struct {
    const uint8_t *file;
    const isa *kernels;
    float *arena, *locals[TEAM], *x, *y;
    meeting meeting;
} job;
typedef struct {
    job *job;
    uint32_t rank;
} hand;

static void *part(void *of) {
    const hand *h = of;
    job *j = h->job;
    const team t = {&j->meeting, h->rank, TEAM};
    engine_run_part(j->file, j->arena, j->locals[h->rank], j->kernels, &t, j->x, j->y);
    return NULL;
}

static float *arena_for(const uint8_t *file) {
    void *arena;
    if (posix_memalign(&arena, 64, engine_arena(file) * sizeof(float))) exit(2);
    memset(arena, 0x3c, engine_arena(file) * sizeof(float)); /* small numbers */
    return arena;
}

/* One image, by one thread or by two together. */
static void run(const uint8_t *file, const isa *kernels, int together) {
    const uint64_t in = engine_in(file), out = engine_out(file);
    job j = {.file = file, .kernels = kernels, .arena = arena_for(file)};
    j.x = malloc(in * sizeof(float)), j.y = malloc(out * sizeof(float));
    if (!j.x || !j.y) exit(2);
    for (uint64_t i = 0; i < in; i++) j.x[i] = (float)(i % 7) - 3;
    if (together) {
        hand hands[TEAM] = {{&j, 0}, {&j, 1}};
        pthread_t other;
        j.locals[0] = j.arena, j.locals[1] = arena_for(file);
        if (pthread_create(&other, NULL, part, &hands[1])) exit(2);
        part(&hands[0]), pthread_join(other, NULL);
        free(j.locals[1]);
    } else engine_run(file, j.arena, kernels, j.x, j.y);
    free(j.arena), free(j.x), free(j.y);
}

static const char *const names[] = {"ref", "avx2", "avx512", "neon", "avx2vnni", "avx512vnni", "neondot"};
enum { NAMES = sizeof names / sizeof *names };

/* Whether the file passed, and whether it ran too: refused, or run with one instruction set or another. */
static int tried(const uint8_t *file, uint32_t size, uint32_t choice, int *ran) {
    const int wrong = engine_check(file, size);
    const isa *kernels = isa_named(names[choice % NAMES]);
    *ran = !wrong && engine_arena(file) <= LARGEST_ARENA && kernels;
    if (*ran) run(file, kernels, choice / NAMES % 8 == 0);
    return wrong;
}

#ifdef LIBFUZZER
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    make_table();
    return 0;
}

/* Bytes as libFuzzer would change them, or numbers and tables as they hurt; sealed again either way. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    state = seed;
    if (size < HEADER || !below(3)) size = LLVMFuzzerMutate(data, size, max_size);
    if (size < HEADER) return size;
    return damage(data, (uint32_t)size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int ran;
    uint8_t *file = malloc(size + !size); /* cut to size, and on a border */
    if (!file) return 0;
    memcpy(file, data, size);
    tried(file, (uint32_t)size, size < HEADER ? 0 : get(file + CRC) >> 8, &ran);
    free(file);
    return 0;
}
#else
int main(int argc, char **argv) {
    long reasons[REASONS] = {0}, ran = 0, large = 0;
    FILE *f = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!f || fseek(f, 0, SEEK_END)) return puts("no file"), 2;
    const uint32_t size = (uint32_t)ftell(f);
    uint8_t *whole = malloc(size), *copy = malloc(size);
    rewind(f);
    if (!whole || !copy || fread(whole, 1, size, f) != size) return puts("no file"), 2;
    fclose(f);
    make_table();
    state = argc > 2 ? (uint64_t)atol(argv[2]) : 0;
    if (engine_check(whole, size)) return puts("the whole file is refused"), 2;

    const long rounds = argc > 3 ? atol(argv[3]) : 1000;
    for (long i = 0; i < rounds; i++) {
        memcpy(copy, whole, size);
        const uint32_t left = damage(copy, size);
        uint8_t *file = malloc(left + !left); /* cut to size */
        if (!file) return 2;
        memcpy(file, copy, left);
        int has_run;
        const int wrong = tried(file, left, (uint32_t)i, &has_run);
        reasons[wrong & (REASONS - 1)]++;
        ran += has_run;
        large += !wrong && engine_arena(file) > LARGEST_ARENA;
        free(file);
    }
    printf("damaged %ld passed %ld ran %ld large %ld refused", rounds, reasons[0], ran, large);
    for (int i = 1; i < REASONS; i++) printf(" %ld", reasons[i]);
    puts("");
    free(whole), free(copy);
    return 0;
}
#endif
