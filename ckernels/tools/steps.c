/* steps model.sbnn times [op]: a packed network's operators, all or one, that many times on an image of noise. Two
   runs that differ by one time differ by what one pass executes. */
#include <stdio.h>
#include <stdlib.h>
#include "sbnn.h"

int main(int argc, char **argv) {
    FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
    if (!file || fseek(file, 0, SEEK_END)) return 2;
    const long size = ftell(file);
    uint8_t *model = aligned_alloc(64, (size_t)(size + 64) / 64 * 64);
    rewind(file);
    if (fread(model, 1, (size_t)size, file) != (size_t)size || engine_check(model, (uint64_t)size)) return 2;
    float *arena = aligned_alloc(64, (engine_arena(model) + 16) / 16 * 64);
    float *image = malloc(engine_in(model) * sizeof(float));
    for (uint64_t i = 0; i < engine_in(model); i++) image[i] = (float)(i * 7919 % 1000) / 500 - 1;
    engine_put(model, arena, image);
    const int first = argc > 3 ? atoi(argv[3]) : 0, past = argc > 3 ? first + 1 : engine_ops(model);
    for (long time = atol(argv[2]); time > 0; time--)
        for (int op = first; op < past; op++) engine_step(model, arena, isa_named(""), op);
    return 0;
}
