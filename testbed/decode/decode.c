/* Faults in the middle of a call of a real runner, which loads this first (LD_PRELOAD).
 *
 * The file decode.conf beside this library has one word, read before each batch of tokens:
 *
 *   hang    the call never returns, as one that waits for a GPU; the process answers for its health
 *   crash   the process aborts, as after a failed assertion
 *   fail    the call returns an error; the process goes on, and the user gets it
 *   pass    all goes well, for one that has failed too
 *
 * Without it all goes well. A process that has met a fault keeps it until it is to pass, and the
 * thread that met it bears the word's name. A model still loads: the batch that a load tries out
 * always passes.
 *
 * The runner of Ollama 0.9 has llama_decode within itself, where nothing can stand before it. What it
 * computes with is a library, which calls powf for each batch: there it can hang.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

struct llama_batch {
    int32_t n_tokens;
    void *token, *embd, *pos, *n_seq_id, *seq_id, *logits;
};

static char fault[16];

static void read_fault(void)
{
    Dl_info self;
    char path[4096], word[16] = "";
    dladdr((void *)read_fault, &self);
    snprintf(path, sizeof path - 16, "%s", self.dli_fname);
    strcpy(strrchr(path, '/') + 1, "decode.conf");
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    if (fscanf(file, "%15s", word) == 1 && (!fault[0] || strcmp(word, "pass") == 0)) {
        strcpy(fault, word);
        prctl(PR_SET_NAME, fault);
    }
    fclose(file);
}

int32_t llama_decode(void *context, struct llama_batch batch)
{
    static int32_t (*next)(void *, struct llama_batch);
    if (!next)
        next = (int32_t (*)(void *, struct llama_batch))dlsym(RTLD_NEXT, "llama_decode");
    if (batch.pos) /* else it is one that a load tries out */
        read_fault();
    if (strcmp(fault, "crash") == 0)
        abort();
    if (strcmp(fault, "fail") == 0)
        return -3;
    while (strcmp(fault, "hang") == 0)
        pause();
    return next(context, batch);
}

float powf(float base, float exponent)
{
    static float (*next)(float, float);
    static int has_decode;
    if (!next) {
        has_decode = dlsym(RTLD_NEXT, "llama_decode") != NULL;
        next = (float (*)(float, float))dlsym(RTLD_NEXT, "powf");
    }
    if (!has_decode)
        read_fault();
    while (!has_decode && strcmp(fault, "hang") == 0)
        pause();
    return next(base, exponent);
}
