/* threads model.sbnn ...: three threads run each network together, twice, for a thread sanitizer to watch. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sbnn.h"

enum { TEAM = 3 };
static uint8_t *file;
static float *arena, *x, *y;
static meeting all;

static void *room(size_t bytes) {
    void *at;
    if (posix_memalign(&at, 64, bytes + 64)) exit(2);
    return memset(at, 0, bytes + 64);
}

static void *part(void *rank) {
    const team t = {&all, (uint32_t)(size_t)rank, TEAM};
    float *local = t.rank ? room(engine_arena(file) * sizeof(float)) : arena;
    engine_run_part(file, arena, local, isa_named(""), &t, x, y);
    if (t.rank) free(local);
    return NULL;
}

static void run_together(void) {
    pthread_t others[TEAM];
    memset(&all, 0, sizeof all);
    for (size_t i = 1; i < TEAM; i++)
        if (pthread_create(&others[i], NULL, part, (void *)i)) exit(2);
    part(NULL);
    for (size_t i = 1; i < TEAM; i++) pthread_join(others[i], NULL);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f || fseek(f, 0, SEEK_END)) return 2;
        const size_t size = (size_t)ftell(f);
        rewind(f);
        file = room(size);
        if (fread(file, 1, size, f) != size || engine_check(file, (uint32_t)size)) return 2;
        fclose(f);
        arena = room(engine_arena(file) * sizeof(float));
        x = room(engine_in(file) * sizeof(float)), y = room(engine_out(file) * sizeof(float));
        run_together(), run_together();
        free(file), free(arena), free(x), free(y);
    }
    puts("done");
    return 0;
}
