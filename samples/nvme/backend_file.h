/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An I/O of a file as a sequence of system calls, whoever makes them: the engine asks for one
 * (file_step), makes it, and tells its result (file_result), until that ends the I/O.
 */

#ifndef NVME_BACKEND_FILE_H
#define NVME_BACKEND_FILE_H

#include "backend.h"

enum file_call {
    FILE_READV,
    FILE_WRITEV,
    FILE_FDATASYNC,
    FILE_FALLOCATE
};

struct file_step {
    enum file_call call;
    int fd;
    int flags; /* RWF_* of writes, FALLOC_FL_* */
    const struct iovec *iov;
    unsigned nr_iov;
    uint64_t offset, len;
};

/* What backend_io.priv holds. */
enum file_priv {
    FILE_BACKEND, /* struct file_backend * */
    FILE_PHASE,   /* what is being done */
    FILE_DONE,    /* bytes of it */
    FILE_IOV,     /* struct iovec *: of what is left, or NULL: that of the caller */
    FILE_NR_IOV,
    FILE_BOUNCE, /* void *: aligned memory instead of the caller's, or NULL */
    FILE_NEXT,   /* struct backend_io *: the engine's list */
};

/* The next call. Its iovecs stay valid until file_result(). */
void file_step(const struct backend_io *io, struct file_step *step);

/*
 * result: what the call returned, or a negative errno. Returns false when another call is to be
 * made; true when the I/O has ended: *error is 0 or an errno, for file_end().
 */
bool file_result(struct backend_io *io, int64_t result, int *error);

/* Frees what the I/O held and calls done. */
void file_end(struct backend_io *io, int error);

#endif /* NVME_BACKEND_FILE_H */
