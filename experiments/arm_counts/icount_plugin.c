/* Counts the instructions that a program runs under qemu, into a file that the program itself can map.
 *
 *     cc -shared -fPIC -O2 -o icount_plugin.so icount_plugin.c
 *     qemu-aarch64 -plugin ./icount_plugin.so,counts=FILE ... PROGRAM
 *
 * FILE has 8-byte counters: all instructions, loads and stores, branches, vector and floating point, multiply-adds.
 * A block of instructions is counted when it is entered. Counters are not atomic: for programs of one thread.
 * Plugin interface version 1 (qemu 6 to 8); its header is not in Debian's packages, so what is used stands here.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
typedef void (*translated_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_t);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

#define PUBLIC __attribute__((visibility("default")))
PUBLIC int qemu_plugin_version = 1;

enum { ALL, MEMORY, BRANCH, VECTOR, MULTIPLY_ADD, KINDS };
static const int ADD_U64 = 0;
static uint64_t *counters;

/* Arm ARM C4.1: bits 25 to 28 give the group of an A64 instruction. */
static int is_memory(uint32_t word) { return (word >> 25 & 5) == 4; }
static int is_branch(uint32_t word) { return (word >> 25 & 14) == 10; }
static int is_vector(uint32_t word) { return (word >> 25 & 7) == 7; }

static int is_multiply_add(uint32_t word)
{
    return (word & 0xbfa0fc00) == 0x0e20cc00    /* FMLA, three vectors */
        || (word & 0xbf80f400) == 0x0f801000    /* FMLA by an element, single and double */
        || (word & 0x9f20fc00) == 0x0e009400    /* SDOT, UDOT */
        || (word & 0x9f00f400) == 0x0f00e000    /* SDOT, UDOT by an element */
        || (word & 0x9f20fc00) == 0x0e208000    /* SMLAL, UMLAL */
        || (word & 0x9f00f400) == 0x0f002000;   /* SMLAL, UMLAL by an element */
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    uint64_t found[KINDS] = {0};
    size_t length = qemu_plugin_tb_n_insns(block);
    (void)id;
    for (size_t i = 0; i < length; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        found[ALL]++;
        found[MEMORY] += is_memory(word);
        found[BRANCH] += is_branch(word);
        found[VECTOR] += is_vector(word);
        found[MULTIPLY_ADD] += is_vector(word) && is_multiply_add(word);
    }
    for (int kind = 0; kind < KINDS; kind++)
        if (found[kind])
            qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &counters[kind], found[kind]);
}

PUBLIC int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv)
{
    const size_t size = KINDS * sizeof(uint64_t);
    int file = -1;
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "counts=", 7))
            file = open(argv[i] + 7, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, (off_t)size))
        return 1;
    counters = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (counters == MAP_FAILED)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
