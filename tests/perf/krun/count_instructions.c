/*
 * A plugin of QEMU's software emulation that counts the instructions of a guest with one processor, from the first of its kernel to the moment
 * when a mark has come on its console. Then it prints both numbers on standard output, behind what the console printed there, and ends QEMU.
 *
 * To see the mark at the very instruction that sends its last character, the same file is also preloaded (LD_PRELOAD): QEMU passes each
 * character of a serial port on by writev, on the thread of the processor that sent it. The console must be QEMU's standard output.
 *
 * Argument: mark=TEXT
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* From QEMU's include/qemu/qemu-plugin.h, which Debian does not ship; version 1 of the interface. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_tb_trans_cb_t cb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, enum qemu_plugin_op op, void *ptr,
                                                uint64_t imm);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv);

/* Firmware runs below 1 MiB and right below 4 GiB. Kernels are loaded at 16 MiB or little above, and begin there without virtual memory. */
#define KERNEL_FIRST UINT64_C(0x1000000)
#define KERNEL_END UINT64_C(0x40000000)

static uint64_t executed;
static uint64_t before_kernel;
static bool in_kernel;
static char mark[128];
static size_t seen;

/* Code is translated right before it is first executed, on the thread that executes it, so the counter is that of this moment. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    uint64_t address = qemu_plugin_tb_vaddr(tb);
    if (!in_kernel && address >= KERNEL_FIRST && address < KERNEL_END) {
        in_kernel = true;
        before_kernel = executed;
    }
    /* Instruction by instruction: a block that is left in its middle does not count as a whole. */
    for (size_t index = 0; index < qemu_plugin_tb_n_insns(tb); index++)
        qemu_plugin_register_vcpu_insn_exec_inline(qemu_plugin_tb_get_insn(tb, index), QEMU_PLUGIN_INLINE_ADD_U64,
                                                   &executed, 1);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv)
{
    (void)info;
    for (int index = 0; index < argc; index++)
        if (strncmp(argv[index], "mark=", 5) == 0 && strlen(argv[index] + 5) < sizeof mark)
            strcpy(mark, argv[index] + 5);
    if (mark[0] == 0) {
        fprintf(stderr, "count_instructions: it needs the argument mark=TEXT\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}

/* The mark's first character must not occur in it again, else this would miss marks. */
static void look_at(char character)
{
    seen = character == mark[seen] ? seen + 1 : character == mark[0];
    if (mark[0] == 0 || mark[seen] != 0)
        return;
    char text[128];
    int length = snprintf(text, sizeof text, "\ncounted: firmware %llu kernel %llu\n", (unsigned long long)before_kernel,
                          (unsigned long long)(executed - before_kernel));
    _exit(write(STDOUT_FILENO, text, (size_t)length) == length ? 0 : 1);
}

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
    static ssize_t (*next)(int, const struct iovec *, int);
    if (next == NULL)
        next = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    ssize_t written = next(fd, parts, count);
    if (fd != STDOUT_FILENO)
        return written;
    ssize_t left = written;
    for (int index = 0; index < count && left > 0; index++)
        for (size_t at = 0; at < parts[index].iov_len && left > 0; at++, left--)
            look_at(((const char *)parts[index].iov_base)[at]);
    return written;
}
