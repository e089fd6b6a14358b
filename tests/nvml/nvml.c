/* A stand-in for NVIDIA's NVML at its C ABI, below the real pynvml. What it answers stands in
 * the file nvml.conf beside it, read anew at each initialisation:
 *
 *   error CODE                          nvmlInit answers CODE (999 is NVML_ERROR_UNKNOWN)
 *   hang SECONDS                        nvmlInit takes that long
 *   device UUID TOTAL_MIB USED_MIB UTILIZATION_PERCENT
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, MOST = 16 };
struct device { char uuid[96]; unsigned long long total, used; unsigned utilization; };
struct memory { unsigned long long total, free, used; };
struct utilization { unsigned gpu, memory; };

static struct device devices[MOST];
static unsigned count;

int nvmlInitWithFlags(unsigned flags) {
    int code = SUCCESS, seconds;
    char path[4096], line[256];
    Dl_info self;
    (void)flags;
    dladdr((void *)nvmlInitWithFlags, &self);
    snprintf(path, sizeof path, "%s", self.dli_fname);
    *(strrchr(path, '/') + 1) = 0;
    strcat(path, "nvml.conf");
    FILE *file = fopen(path, "r");
    count = 0;
    while (file && fgets(line, sizeof line, file)) {
        struct device *d = &devices[count];
        if (sscanf(line, "hang %d", &seconds) == 1) sleep(seconds);
        sscanf(line, "error %d", &code);
        if (count < MOST && sscanf(line, "device %95s %llu %llu %u", d->uuid, &d->total, &d->used,
                                   &d->utilization) == 4)
            count++;
    }
    if (file) fclose(file);
    return code;
}
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, struct device **handle) {
    if (i >= count) return INVALID_ARGUMENT;
    *handle = &devices[i];
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(struct device *d, struct memory *m) {
    m->total = d->total << 20;
    m->used = d->used << 20;
    m->free = m->total - m->used;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(struct device *d, struct utilization *u) {
    u->gpu = d->utilization;
    u->memory = 0;
    return SUCCESS;
}
int nvmlDeviceGetUUID(struct device *d, char *text, unsigned length) {
    snprintf(text, length, "%s", d->uuid);
    return SUCCESS;
}
int nvmlDeviceGetName(struct device *d, char *text, unsigned length) {
    (void)d;
    snprintf(text, length, "Simulated GPU");
    return SUCCESS;
}
const char *nvmlErrorString(int code) {
    switch (code) {
    case 4: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    case 999: return "Unknown Error";
    default: return "Some Error";
    }
}
