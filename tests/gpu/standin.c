/* Stands in for libcuda.so.1 where tests/gpu/run.sh is tried without a GPU: a device is a file that opens, and its memory is the machine's. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int devices(void) {
  int found = 0;
  for (int minor = 240; minor < 242; minor++) {
    char name[32];
    snprintf(name, sizeof name, "/dev/nvidia%d", minor);
    int file = open(name, O_RDWR);
    if (file < 0) continue;
    close(file);
    found++;
  }
  return found;
}

int cuInit(unsigned flags) { (void)flags; return devices() ? 0 : 100; }
int cuDeviceGetCount(int *count) { *count = devices(); return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = context; return 0; }
int cuCtxSetCurrent(void *context) { (void)context; return 0; }
int cuMemAlloc_v2(unsigned long long *memory, unsigned long size) { return !(*memory = (unsigned long long)malloc(size)); }
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, unsigned long size) { memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, unsigned long long from, unsigned long size) { memcpy(to, (void *)from, size); return 0; }
int cuMemsetD32_v2(unsigned long long memory, unsigned value, unsigned long count) {
  (void)memory; (void)value; (void)count;
  return 0;
}
int cuCtxSynchronize(void) { usleep(10000); return 0; }
