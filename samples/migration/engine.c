/* SPDX-License-Identifier: BSD-3-Clause */
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Records between two looks at whether somebody waits for the engine. */
#define BURST 16

static int write_record(struct engine *engine, uint64_t addr, struct record *record)
{
    int n = vfu_addr_to_sgl(engine->ctx, (vfu_dma_addr_t)(uintptr_t)addr, sizeof(*record),
                            engine->sg, 1, PROT_WRITE);

    if (n < 0) {
        /* errno 0: the record would lie in two regions. */
        return errno != 0 ? -errno : -EFAULT;
    }
    /* Where the guest's memory is shared this writes to it, and marks its pages dirty. */
    return vfu_sgl_write(engine->ctx, engine->sg, 1, record, VFU_SGL_DIRECT_ACCESS) == 0 ? 0
                                                                                         : -errno;
}

static void write_burst(struct engine *engine)
{
    struct recorder *recorder = &engine->recorder;

    for (int i = 0; i < BURST && recorder_ready(recorder); i++) {
        struct record record;
        uint64_t addr = recorder_next(recorder, &record);
        int err = write_record(engine, addr, &record);

        if (err == -ECANCELED) {
            return; /* by a stop or a reset: the record is written again when the device may work */
        }
        if (err != 0) {
            vfu_log(engine->ctx, LOG_ERR, "record %ju at 0x%jx was not written: %s",
                    (uintmax_t)record.number, (uintmax_t)addr, strerror(-err));
            recorder_failed(recorder, -err);
            return;
        }
        recorder_written(recorder, &record);
    }
}

static bool may_work(const struct engine *engine)
{
    return engine->pauses == 0 && !engine->stopped && recorder_ready(&engine->recorder);
}

static void *run(void *arg)
{
    struct engine *engine = arg;

    pthread_mutex_lock(&engine->lock);
    while (!engine->ending) {
        if (!may_work(engine)) {
            pthread_cond_wait(&engine->changed, &engine->lock);
            continue;
        }
        engine->busy = true;
        pthread_mutex_unlock(&engine->lock);
        write_burst(engine);
        pthread_mutex_lock(&engine->lock);
        engine->busy = false;
        pthread_cond_broadcast(&engine->changed);
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

void engine_pause(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->pauses++;
    while (engine->busy) {
        pthread_cond_wait(&engine->changed, &engine->lock);
    }
    pthread_mutex_unlock(&engine->lock);
}

void engine_resume(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->pauses--;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
}

int engine_init(struct engine *engine, vfu_ctx_t *ctx)
{
    engine->ctx = ctx;
    recorder_init(&engine->recorder);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->changed, NULL);
    engine->sg = malloc(dma_sg_size());
    return engine->sg != NULL ? 0 : -ENOMEM;
}

int engine_start(struct engine *engine)
{
    return -pthread_create(&engine->thread, NULL, run, engine);
}

void engine_stop(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->ending = true;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->lock);
    pthread_join(engine->thread, NULL);
}

void engine_destroy(struct engine *engine)
{
    free(engine->sg);
    pthread_cond_destroy(&engine->changed);
    pthread_mutex_destroy(&engine->lock);
}
