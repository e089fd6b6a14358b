/* A stand-in for NVIDIA's NVML at its C ABI, below the real pynvml. Its answers are in the file
 * nvml.conf beside it, which it reads at each initialisation:
 *
 *   error CODE                          nvmlInit answers CODE (999 is NVML_ERROR_UNKNOWN)
 *   hang SECONDS                        nvmlInit takes that long
 *   old                                 a driver without MIG and without the newer memory call
 *   driver VERSION                      the driver's version; "-" is NVML_ERROR_NOT_SUPPORTED
 *   device UUID TOTAL_MIB USED_MIB UTILIZATION_PERCENT
 *   slice UUID TOTAL_MIB USED_MIB       a MIG slice of the device before it
 *   unified UUID                        a device that has no memory of its own
 *   broken CODE                         a device whose handle is refused with CODE
 *   reserved MIB                        what the driver reserves of each device
 *   process PID [MIB [UTILIZATION_PERCENT]]  a process with memory of the device before it; with
 *                                       4294967295 MIB its size is not given
 *   unlisted                            the device before it does not list its processes
 *   detail CELSIUS DRAW_MW LIMIT_MW ECC_ERRORS THROTTLE_BITS  more of the device before it
 *
 * A UUID of "-" is NVML_ERROR_NOT_SUPPORTED, as on a Jetson.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6 };
enum { INSUFFICIENT_SIZE = 7, FUNCTION_NOT_FOUND = 13, MOST = 16 };
struct device {
    char uuid[96];
    unsigned long long total, used;
    unsigned utilization;
    unsigned pids[MOST], held[MOST], shares[MOST], processes;
    unsigned detailed, celsius, draw, limit, unlisted;
    unsigned long long ecc, throttle;
    int code, parent, slices; /* parent: index of the device that this is a slice of, or -1 */
};
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, instance; };
struct utilization { unsigned gpu, memory; };
struct sample { unsigned pid; unsigned long long at; unsigned sm, memory, encoder, decoder; };

static struct device devices[MOST];
static unsigned count, old;
static unsigned long long reserved;
static char driver[80];

static struct device *next(int parent) {
    if (count == MOST) return &devices[MOST - 1];
    memset(&devices[count], 0, sizeof devices[count]);
    devices[count].parent = parent;
    return &devices[count++];
}

int nvmlInitWithFlags(unsigned flags) {
    int code = SUCCESS, seconds, last = -1, number;
    char path[4096], line[256], uuid[96];
    unsigned long long total, used;
    unsigned utilization;
    Dl_info self;
    (void)flags;
    dladdr((void *)nvmlInitWithFlags, &self);
    snprintf(path, sizeof path, "%s", self.dli_fname);
    *(strrchr(path, '/') + 1) = 0;
    strcat(path, "nvml.conf");
    FILE *file = fopen(path, "r");
    count = old = 0;
    reserved = 0;
    strcpy(driver, "550.54.15");
    while (file && fgets(line, sizeof line, file)) {
        struct device *d = NULL;
        if (sscanf(line, "hang %d", &seconds) == 1) sleep(seconds);
        sscanf(line, "error %d", &code);
        sscanf(line, "reserved %llu", &reserved);
        sscanf(line, "driver %79s", driver);
        if (strncmp(line, "old", 3) == 0) old = 1;
        if (strncmp(line, "unlisted", 8) == 0 && last >= 0) devices[last].unlisted = 1;
        unsigned held = 1024, share = 0;
        if (sscanf(line, "process %d %u %u", &number, &held, &share) >= 1 && last >= 0 &&
            devices[last].processes < MOST) {
            d = &devices[last];
            d->pids[d->processes] = number;
            d->held[d->processes] = held;
            d->shares[d->processes++] = share;
            continue;
        }
        if (strncmp(line, "detail", 6) == 0 && last >= 0) {
            d = &devices[last];
            d->detailed = sscanf(line, "detail %u %u %u %llu %llx", &d->celsius, &d->draw,
                                 &d->limit, &d->ecc, &d->throttle) == 5;
            continue;
        }
        if (sscanf(line, "device %95s %llu %llu %u", uuid, &total, &used, &utilization) == 4) {
            last = count;
            d = next(-1);
            d->utilization = utilization;
        } else if (sscanf(line, "slice %95s %llu %llu", uuid, &total, &used) == 3 && last >= 0) {
            devices[last].slices++;
            d = next(last);
        } else if (sscanf(line, "unified %95s", uuid) == 1) {
            total = used = 0;
            last = count;
            d = next(-1);
        } else if (sscanf(line, "broken %d", &number) == 1) {
            next(-1)->code = number;
        }
        if (d) {
            snprintf(d->uuid, sizeof d->uuid, "%s", uuid);
            d->total = total;
            d->used = used;
        }
    }
    if (file) fclose(file);
    return code;
}
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetComputeRunningProcesses_v3(struct device *d, unsigned *n, struct process *out) {
    unsigned room = *n, i, found = 0;
    char path[32];
    if (d->unlisted) return NOT_SUPPORTED;
    for (i = 0; i < d->processes; i++) {
        snprintf(path, sizeof path, "/proc/%u", d->pids[i]);
        if (access(path, F_OK) != 0) continue; /* its memory went with it */
        if (found < room) {
            memset(&out[found], 0, sizeof out[found]);
            out[found].pid = d->pids[i];
            out[found].used = d->held[i] == ~0u ? ~0ull : (unsigned long long)d->held[i] << 20;
        }
        found++;
    }
    *n = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
int nvmlDeviceGetProcessUtilization(struct device *d, struct sample *out, unsigned *n,
                                    unsigned long long since) {
    (void)since;
    if (!d->processes) return NOT_FOUND;
    if (*n < d->processes) {
        *n = d->processes;
        return INSUFFICIENT_SIZE;
    }
    for (*n = 0; *n < d->processes; ++*n) {
        memset(&out[*n], 0, sizeof out[*n]);
        out[*n].pid = d->pids[*n];
        out[*n].sm = d->shares[*n];
    }
    return SUCCESS;
}
static int detail(struct device *d, unsigned *out, unsigned value) {
    *out = value;
    return d->detailed ? SUCCESS : NOT_SUPPORTED;
}
int nvmlDeviceGetTemperature(struct device *d, unsigned sensor, unsigned *out) {
    return sensor ? INVALID_ARGUMENT : detail(d, out, d->celsius);
}
int nvmlDeviceGetPowerUsage(struct device *d, unsigned *out) { return detail(d, out, d->draw); }
int nvmlDeviceGetPowerManagementLimit(struct device *d, unsigned *out) {
    return detail(d, out, d->limit);
}
int nvmlDeviceGetTotalEccErrors(struct device *d, unsigned type, unsigned counter,
                                unsigned long long *out) {
    *out = d->ecc;
    return type != 1 || counter ? INVALID_ARGUMENT : d->detailed ? SUCCESS : NOT_SUPPORTED;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *d, unsigned long long *out) {
    *out = d->throttle;
    return d->detailed ? SUCCESS : NOT_SUPPORTED;
}
static int given(const char *text) { return strcmp(text, "-") ? SUCCESS : NOT_SUPPORTED; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "%s", driver);
    return given(driver);
}
int nvmlDeviceGetCount_v2(unsigned *n) {
    *n = 0;
    for (unsigned i = 0; i < count; i++) *n += devices[i].parent < 0;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned wanted, struct device **handle) {
    for (unsigned i = 0; i < count; i++)
        if (devices[i].parent < 0 && wanted-- == 0) {
            *handle = &devices[i];
            return devices[i].code;
        }
    return INVALID_ARGUMENT;
}
int nvmlDeviceGetMemoryInfo(struct device *d, struct memory *m) {
    if (d->slices) return NO_PERMISSION; /* as seen from a container that has a slice of it */
    if (!d->total) return NOT_SUPPORTED;
    m->total = d->total << 20;
    m->used = (d->used + reserved) << 20;
    m->free = m->total - m->used;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(struct device *d, struct memory_v2 *m) {
    if (old) return FUNCTION_NOT_FOUND;
    if (d->slices) return NO_PERMISSION;
    if (!d->total) return NOT_SUPPORTED;
    m->total = d->total << 20;
    m->used = d->used << 20;
    m->reserved = reserved << 20;
    m->free = m->total - m->used - m->reserved;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(struct device *d, unsigned *now, unsigned *pending) {
    if (old) return FUNCTION_NOT_FOUND;
    if (d->parent >= 0) return INVALID_ARGUMENT;
    *now = *pending = d->slices > 0;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *n) {
    *n = d->slices + 1; /* one place is free */
    return SUCCESS;
}
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned wanted, struct device **handle) {
    for (unsigned i = 0; i < count; i++)
        if (devices[i].parent == d - devices && wanted-- == 0) {
            *handle = &devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetUtilizationRates(struct device *d, struct utilization *u) {
    if (d->parent >= 0) return NOT_SUPPORTED;
    u->gpu = d->utilization;
    u->memory = 0;
    return SUCCESS;
}
int nvmlDeviceGetUUID(struct device *d, char *text, unsigned length) {
    snprintf(text, length, "%s", d->uuid);
    return given(d->uuid);
}
int nvmlDeviceGetName(struct device *d, char *text, unsigned length) {
    snprintf(text, length, d->parent < 0 ? "Simulated GPU" : "Simulated GPU MIG 1g");
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
