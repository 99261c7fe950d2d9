/* How a program runs a packed network, one that `outcome.engine().save("model.sbnn")` wrote:

       make kernels-arm
       aarch64-linux-gnu-gcc -O2 -static -Ibuild/arm ckernels/examples/run.c build/arm/libsbnn.a -o run
       qemu-aarch64 ./run model.sbnn picture.f32 >output.txt

   picture.f32 holds the picture's floats as they lie in memory: (C, H, W), or (H, W, C) for an interleaved network. */
#include <stdio.h>
#include <stdlib.h>
#include "sbnn.h"

/* A file's bytes, in memory aligned to 64 bytes. */
static uint8_t *slurp(const char *path, uint64_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) return NULL;
    *size = (uint64_t)ftell(file);
    rewind(file);
    uint8_t *bytes = aligned_alloc(64, (*size + 64) / 64 * 64);
    if (bytes && fread(bytes, 1, *size, file) != *size) bytes = NULL;
    fclose(file);
    return bytes;
}

int main(int argc, char **argv) {
    uint64_t size = 0, bytes = 0;
    if (argc != 3) return fprintf(stderr, "usage: %s model.sbnn picture.f32\n", argv[0]), 2;
    uint8_t *model = slurp(argv[1], &size);
    if (!model) return fprintf(stderr, "%s cannot be read\n", argv[1]), 1;
    const int wrong = engine_check(model, size); /* once; what runs later trusts the file */
    if (wrong) return fprintf(stderr, "%s is not a packed network that can be run (%d)\n", argv[1], wrong), 1;

    const float *image = (const float *)slurp(argv[2], &bytes);
    float *arena = aligned_alloc(64, (engine_arena(model) + 16) / 16 * 64); /* one for each thread that runs */
    float *output = malloc(engine_out(model) * sizeof(float));
    if (!image || !arena || !output) return fprintf(stderr, "no picture, or no memory\n"), 1;
    if (bytes != engine_in(model) * sizeof(float)) return fprintf(stderr, "%s has another size\n", argv[2]), 1;
    engine_run(model, arena, isa_named(""), image, output); /* "": the best instruction set that is there */
    for (uint64_t i = 0; i < engine_out(model); i++) printf("%.9g\n", output[i]);
    return 0;
}
