/* A plugin for qemu-user: counts the instructions that the guest executes, apart for each
 * stretch that the guest marks with prctl(MAGIC, SLOT). Written to the file of `out=FILE` when
 * the guest ends: a line `SLOT COUNT` for every slot that is not zero.
 *
 * The few declarations of qemu's plugin interface (version 1) that it needs are its own. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAGIC 0x0ED6E9E7
#define SLOTS 64

struct qemu_plugin_tb;
typedef uint64_t plugin_id;
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                          int flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

EXPORT int qemu_plugin_version = 1;

static uint64_t counts[SLOTS];
static unsigned slot;
static const char *out;

static void executed(unsigned cpu, void *number) {
  (void)cpu;
  __atomic_fetch_add(&counts[slot], (uint64_t)(uintptr_t)number, __ATOMIC_RELAXED);
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(tb));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)number;
  (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if ((uint32_t)a1 == MAGIC && a2 < SLOTS) slot = (unsigned)a2;
}

static void ended(plugin_id id, void *data) {
  (void)id, (void)data;
  FILE *file = fopen(out, "w");
  if (!file) abort();
  for (unsigned i = 0; i < SLOTS; i++)
    if (counts[i]) fprintf(file, "%u %" PRIu64 "\n", i, counts[i]);
  fclose(file);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++)
    if (!strncmp(argv[i], "out=", 4)) out = strdup(argv[i] + 4);
  if (!out) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
