/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The recorder's DMA engine: a thread that writes records as long as there are any. Everything else
 * looks at the recorder between engine_pause() and engine_resume() only.
 */

#ifndef ENGINE_H
#define ENGINE_H

#include "libvfio-user.h"
#include "recorder.h"

#include <pthread.h>

struct engine {
    vfu_ctx_t *ctx;
    dma_sg_t *sg;
    struct recorder recorder;
    bool stopped; /* by migration; to be changed while paused */

    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    unsigned pauses;
    bool busy; /* the thread owns the recorder */
    bool ending;
};

/* Both return 0 or a negative errno. */
int engine_init(struct engine *engine, vfu_ctx_t *ctx);
int engine_start(struct engine *engine);
/* The thread uses the context, so it has to end before that does. */
void engine_stop(struct engine *engine);
void engine_destroy(struct engine *engine);

/* Waits until the thread does nothing, and has it do nothing until as many resumes. */
void engine_pause(struct engine *engine);
void engine_resume(struct engine *engine);

#endif /* ENGINE_H */
