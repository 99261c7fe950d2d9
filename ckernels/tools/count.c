/* A plugin for qemu-user that counts the guest's instructions, and its multiply-adds on four floats (FMLA .4S), to the
   digit. Debian ships no header for plugins: what is used of their interface, version 1, is declared here.

       gcc -O2 -shared -fPIC count.c -o count.so
       qemu-aarch64 -plugin ./count.so -d plugin -D counts.txt ./program */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { ADD_U64 = 0 };
struct block;
struct insn;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*translated)(uint64_t id, struct block *));
void qemu_plugin_register_vcpu_insn_exec_inline(struct insn *, int op, void *number, uint64_t more);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*ended)(uint64_t id, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct block *);
struct insn *qemu_plugin_tb_get_insn(const struct block *, size_t index);
const void *qemu_plugin_insn_data(const struct insn *);
void qemu_plugin_outs(const char *text);

EXPORT int qemu_plugin_version = 1;
static uint64_t all, fmla;

/* FMLA Vd.4S with a vector, or with a lane of one. */
static int is_fmla(uint32_t word) { return (word & 0xffe0fc00) == 0x4e20cc00 || (word & 0xffc0f400) == 0x4f801000; }

static void translated(uint64_t id, struct block *block) {
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct insn *insn = qemu_plugin_tb_get_insn(block, i);
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(insn), sizeof word);
        qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &all, 1);
        if (is_fmla(word)) qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &fmla, 1);
    }
}

static void ended(uint64_t id, void *data) {
    char text[80];
    (void)id, (void)data;
    snprintf(text, sizeof text, "%llu %llu\n", (unsigned long long)all, (unsigned long long)fmla);
    qemu_plugin_outs(text);
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
