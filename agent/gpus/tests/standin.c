/* Stands in for libnvidia-ml.so.1 in tests: answers for STANDIN_GPUS GPUs as STANDIN_MODE says. Structures and names as nvml.h has
 * them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int R;
enum { OK = 0, NOT_SUPPORTED = 3, NO_DRIVER = 9, LOST = 15, MISMATCH = 18, INVALID = 2 };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char text[32]; };
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
struct rates { unsigned gpu, memory; };

/* A mode that is a path is the first word of that file: it changes while agents run. */
static int is(const char *mode) {
  const char *m = getenv("STANDIN_MODE");
  char word[32] = "";
  if (m && *m == '/') {
    FILE *f = fopen(m, "r");
    if (f) { if (fscanf(f, "%31s", word) != 1) *word = 0; fclose(f); }
    m = word;
  }
  return m && !strcmp(m, mode);
}
/* STANDIN_USE names a file of lines that change while agents run:
 *   device INDEX BUSY USED_MIB
 *   process INDEX PID MEMORY_MIB BUSY       with BUSY -1 the driver does not count it
 *   account INDEX PID BEGAN_US MS BUSY MEMORY_MIB    of one that has ended: accounting is on
 *   instance GPU_INSTANCE BUSY              in mode gpm, where parts have counters: BUSY -1 is not supported, -2 no number
 *   hang */
struct process { unsigned pid; unsigned long long memory; unsigned gi, ci; };
struct util { unsigned pid; unsigned long long time; unsigned sm, mem, enc, dec; };
struct account { unsigned gpu, mem; unsigned long long most, ms, began; unsigned runs, reserved[5]; };
static FILE *use(void) { const char *f = getenv("STANDIN_USE"); return f ? fopen(f, "r") : NULL; }
#define EACH_LINE(file, line) \
  char line[128]; FILE *file = use(); \
  for (; file && fgets(line, sizeof line, file);)
static void close_use(FILE *f) { if (f) fclose(f); }
static int of_device(long index, long *busy, long *used) {
  int found = 0;
  EACH_LINE(f, line) {
    long n, b, u;
    if (!strncmp(line, "hang", 4)) for (;;) pause();
    if (sscanf(line, "device %ld %ld %ld", &n, &b, &u) == 3 && n == index) { *busy = b; *used = u; found = 1; }
  }
  close_use(f);
  return found;
}

static unsigned first(void) { const char *n = getenv("STANDIN_MINOR"); return n ? atoi(n) : 0; }
static unsigned count(void) { const char *n = getenv("STANDIN_GPUS"); return n ? atoi(n) : 1; }
static long number(void *device) { return (long)device - 1; }
static int whole(void *device) { return number(device) < 100; }

R nvmlInit_v2(void) {
  if (is("hang")) for (;;) pause();
  if (is("crash")) abort();
  return is("mismatch") ? MISMATCH : is("nodriver") ? NO_DRIVER : OK;
}
R nvmlShutdown(void) { return OK; }
R nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "535.54.03"); return OK; }
R nvmlSystemGetCudaDriverVersion(int *v) { *v = 12020; return OK; }
R nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12020; return OK; }
R nvmlDeviceGetCount_v2(unsigned *n) { *n = count(); return OK; }
R nvmlDeviceGetHandleByIndex_v2(unsigned n, void **device) {
  if (n >= count()) return INVALID;
  if (is("lost") && n == 0) return LOST;
  *device = (void *)(long)(n + 1);
  return OK;
}
R nvmlDeviceGetName(void *d, char *text, unsigned size) {
  snprintf(text, size, "NVIDIA A100-SXM4-40GB%s", whole(d) ? "" : " MIG 1g.5gb");
  return OK;
}
R nvmlDeviceGetUUID(void *d, char *text, unsigned size) {
  snprintf(text, size, "%s-%08lx-0000-0000-0000-000000000000", whole(d) ? "GPU" : "MIG", number(d));
  return OK;
}
/* Addresses fall while indices rise, as on real machines with an order of their own. */
static unsigned bus(long n) { return 0x80 - 0x10 * n; }
R nvmlDeviceGetPciInfo_v3(void *d, struct pci *p) {
  memset(p, 0, sizeof *p);
  p->bus = bus(number(d));
  snprintf(p->text, sizeof p->text, "00000000:%02X:00.0", p->bus);
  snprintf(p->legacy, sizeof p->legacy, "0000:%02X:00.0", p->bus);
  return OK;
}
R nvmlDeviceGetMinorNumber(void *d, unsigned *n) { *n = first() + number(d); return OK; }
R nvmlDeviceGetMemoryInfo_v2(void *d, struct memory *m) {
  long busy = 0, used = 1024;
  of_device(number(d), &busy, &used);
  m->total = (whole(d) ? 40960ULL : 4864ULL) << 20; m->used = (unsigned long long)used << 20; m->free = m->total - m->used;
  m->reserved = 0;
  return OK;
}
R nvmlDeviceGetUtilizationRates(void *d, struct rates *r) {
  long busy = 37, used = 0;
  if (!whole(d)) return NOT_SUPPORTED;
  of_device(number(d), &busy, &used);
  r->gpu = busy; r->memory = 5; return OK;
}
R nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *count, struct process *all) {
  unsigned n = 0, room = *count;
  EACH_LINE(f, line) {
    long index, pid, memory, busy;
    if (sscanf(line, "process %ld %ld %ld %ld", &index, &pid, &memory, &busy) != 4 || index != number(d)) continue;
    if (all && n < room) all[n] = (struct process){ pid, (unsigned long long)memory << 20, -1u, -1u };
    n++;
  }
  close_use(f);
  *count = n;
  return n > room ? 7 : OK;
}
R nvmlDeviceGetProcessUtilization(void *d, struct util *all, unsigned *count, unsigned long long since) {
  unsigned n = 0, room = *count;
  EACH_LINE(f, line) {
    long index, pid, memory, busy;
    if (sscanf(line, "process %ld %ld %ld %ld", &index, &pid, &memory, &busy) != 4 || index != number(d)) continue;
    if (busy < 0) continue;
    if (all && n < room) all[n] = (struct util){ pid, since + 1, busy, 0, 0, 0 };
    n++;
  }
  close_use(f);
  *count = n;
  return n > room ? 7 : n ? OK : 6;
}
R nvmlDeviceGetAccountingMode(void *d, int *on) {
  (void)d; *on = 0;
  EACH_LINE(f, line) if (!strncmp(line, "account", 7)) *on = 1;
  close_use(f);
  return OK;
}
R nvmlDeviceGetAccountingPids(void *d, unsigned *count, unsigned *pids) {
  unsigned n = 0, room = *count;
  EACH_LINE(f, line) {
    long index, pid;
    if (sscanf(line, "account %ld %ld", &index, &pid) != 2 || index != number(d)) continue;
    if (pids && n < room) pids[n] = pid;
    n++;
  }
  close_use(f);
  *count = n;
  return n > room ? 7 : OK;
}
R nvmlDeviceGetAccountingStats(void *d, unsigned wanted, struct account *a) {
  R found = 6;
  EACH_LINE(f, line) {
    long index, pid, busy, memory; unsigned long long began, ms;
    if (sscanf(line, "account %ld %ld %llu %llu %ld %ld", &index, &pid, &began, &ms, &busy, &memory) != 6) continue;
    if (index != number(d) || pid != (long)wanted) continue;
    *a = (struct account){ busy, 0, (unsigned long long)memory << 20, ms, began, 0, {0} };
    found = OK;
  }
  close_use(f);
  return found;
}
R nvmlDeviceGetBrand(void *d, int *b) { (void)d; *b = 2; return OK; }
R nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { (void)d; *a = 8; *b = 0; return OK; }
R nvmlDeviceGetNvLinkState(void *d, unsigned link, int *on) {
  (void)d; *on = link == 0 && (is("links") || is("switch")); return OK;
}
R nvmlDeviceGetNvLinkRemotePciInfo_v2(void *d, unsigned link, struct pci *p) {
  (void)link; memset(p, 0, sizeof *p);
  p->bus = is("switch") ? 0xc0 : bus(number(d) ^ 1);
  snprintf(p->text, sizeof p->text, "00000000:%02X:00.0", p->bus);
  return OK;
}
R nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, unsigned long long *n) {
  (void)kind; (void)counter; *n = is("ecc") && number(d) == 1 ? 3 : 0; return OK;
}
R nvmlDeviceGetRetiredPagesPendingStatus(void *d, int *on) { (void)d; *on = 0; return OK; }
R nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next) {
  (void)d; if (!is("mig") && !is("undivided") && !is("gpm")) return NOT_SUPPORTED; *now = *next = number(d) == 0; return OK;
}
R nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { (void)d; *n = 7; return OK; }
R nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned n, void **out) {
  (void)d; if (n > 1 || is("undivided")) return 6; *out = (void *)(long)(101 + n); return OK;
}
/* Which instance a part is; only with STANDIN_INSTANCES, as drivers before 450 do not say it. */
R nvmlDeviceGetGpuInstanceId(void *d, unsigned *id) {
  if (whole(d) || !getenv("STANDIN_INSTANCES")) return NOT_SUPPORTED;
  *id = number(d) == 100 ? 7 : 9; return OK;
}
R nvmlDeviceGetComputeInstanceId(void *d, unsigned *id) {
  if (whole(d) || !getenv("STANDIN_INSTANCES")) return NOT_SUPPORTED;
  *id = 0; return OK;
}
/* Counters of GPU instances (GPM). What was counted until a look is known to that look. */
struct support { unsigned version, supported; };
struct counters { unsigned instance; long busy; };
struct metric { unsigned id; R result; double value; struct { char *name, *full, *unit; } info; };
struct metrics { unsigned version, count; struct counters *before, *now; struct metric all[]; };
R nvmlGpmQueryDeviceSupport(void *d, struct support *s) {
  (void)d; if (s->version != 1) return INVALID; s->supported = is("gpm"); return OK;
}
R nvmlGpmSampleAlloc(struct counters **c) { *c = calloc(1, sizeof **c); return *c ? OK : 20; }
R nvmlGpmSampleFree(struct counters *c) { free(c); return OK; }
R nvmlGpmMigSampleGet(void *d, unsigned instance, struct counters *c) {
  R found = INVALID;
  if (!whole(d)) return INVALID;
  EACH_LINE(f, line) {
    unsigned n; long busy;
    if (sscanf(line, "instance %u %ld", &n, &busy) != 2 || n != instance) continue;
    *c = (struct counters){ instance, busy };
    found = OK;
  }
  close_use(f);
  return found;
}
R nvmlGpmMetricsGet(struct metrics *m) {
  if (m->version != 1 || !m->before || !m->now || m->before->instance != m->now->instance) return INVALID;
  for (unsigned n = 0; n < m->count; n++) {
    struct metric *metric = &m->all[n];
    metric->result = metric->id == 1 && m->now->busy != -1 ? OK : NOT_SUPPORTED;
    metric->value = m->now->busy == -2 ? __builtin_nan("") : m->now->busy;
  }
  return OK;
}
