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
  m->total = (whole(d) ? 40960ULL : 4864ULL) << 20; m->used = 1024ULL << 20; m->free = m->total - m->used; m->reserved = 0;
  return OK;
}
R nvmlDeviceGetUtilizationRates(void *d, struct rates *r) { (void)d; r->gpu = 37; r->memory = 5; return OK; }
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
  (void)d; if (!is("mig")) return NOT_SUPPORTED; *now = *next = number(d) == 0; return OK;
}
R nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { (void)d; *n = 7; return OK; }
R nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned n, void **out) {
  (void)d; if (n > 1) return 6; *out = (void *)(long)(101 + n); return OK;
}
