/* SPDX-License-Identifier: BSD-3-Clause */
#include "backend_file.h"
#include "backend_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    ZEROS = 64 << 10,
    ZERO_IOVS = 16, /* 1 MiB of zeros in a call */
    BOUNCE_ALIGN = 4096,
};

static const uint8_t zeros[ZEROS] __attribute__((aligned(BOUNCE_ALIGN)));

enum phase {
    TRANSFER,
    ZERO_RANGE,
    ZEROS_BY_WRITING,
    PUNCH_HOLE,
    SYNC
};

static const enum phase first_phase[] = {
    [BACKEND_READ] = TRANSFER,      [BACKEND_WRITE] = TRANSFER, [BACKEND_WRITE_ZEROES] = ZERO_RANGE,
    [BACKEND_DISCARD] = PUNCH_HOLE, [BACKEND_FLUSH] = SYNC,
};

struct file_backend {
    struct backend base;
    int fd;
    int lock_fd;                         /* the same file: has the lock, and does no I/O */
    int direct_fd;                       /* the same file, past the page cache; -1: not asked for */
    uint32_t offset_align, memory_align; /* what direct_fd demands; powers of two */
    atomic_bool no_zero_range;           /* the file system has said so */
};

static struct file_backend *file_of(const struct backend_io *io)
{
    return (struct file_backend *)(uintptr_t)io->priv[FILE_BACKEND];
}

static struct iovec *own_iov(const struct backend_io *io)
{
    return (struct iovec *)(uintptr_t)io->priv[FILE_IOV];
}

static void *bounce(const struct backend_io *io)
{
    return (void *)(uintptr_t)io->priv[FILE_BOUNCE];
}

static bool aligned(uint64_t value, uint32_t align)
{
    return (value & (align - 1)) == 0;
}

static bool goes_direct(const struct file_backend *file, const struct backend_io *io)
{
    return file->direct_fd >= 0 && aligned(io->offset | io->len, file->offset_align);
}

static bool iov_aligned(const struct file_backend *file, const struct backend_io *io)
{
    for (size_t i = 0; i < io->nr_iov; i++) {
        if (!aligned((uintptr_t)io->iov[i].iov_base, file->memory_align) ||
            !aligned(io->iov[i].iov_len, file->offset_align)) {
            return false;
        }
    }
    return true;
}

/* Between the caller's memory and the aligned one. */
static void copy_bounce(const struct backend_io *io)
{
    uint8_t *at = bounce(io);

    for (size_t i = 0; i < io->nr_iov; i++) {
        if (io->op == BACKEND_WRITE) {
            memcpy(at, io->iov[i].iov_base, io->iov[i].iov_len);
        } else {
            memcpy(io->iov[i].iov_base, at, io->iov[i].iov_len);
        }
        at += io->iov[i].iov_len;
    }
}

/* The iovecs for what is left. False: no memory. */
static bool rebuild_iov(struct backend_io *io)
{
    struct iovec whole = { .iov_base = bounce(io), .iov_len = io->len };
    const struct iovec *from = bounce(io) != NULL ? &whole : io->iov;
    size_t nr_from = bounce(io) != NULL ? 1 : io->nr_iov;
    uint64_t skip = io->priv[FILE_DONE];
    struct iovec *iov = own_iov(io);
    size_t n = 0;

    if (iov == NULL) {
        iov = calloc(nr_from < IOV_MAX ? nr_from : IOV_MAX, sizeof(*iov));
        if (iov == NULL) {
            return false;
        }
        io->priv[FILE_IOV] = (uintptr_t)iov;
    }
    for (size_t i = 0; i < nr_from && n < IOV_MAX; i++) {
        if (skip >= from[i].iov_len) {
            skip -= from[i].iov_len;
            continue;
        }
        iov[n].iov_base = (uint8_t *)from[i].iov_base + skip;
        iov[n].iov_len = from[i].iov_len - skip;
        skip = 0;
        n++;
    }
    io->priv[FILE_NR_IOV] = n;
    return true;
}

/* The iovecs for the zeros that are left. False: no memory. */
static bool build_zeros(struct backend_io *io)
{
    uint64_t left = io->len - io->priv[FILE_DONE];
    struct iovec *iov = own_iov(io);
    size_t n = 0;

    if (iov == NULL) {
        iov = calloc(ZERO_IOVS, sizeof(*iov));
        if (iov == NULL) {
            return false;
        }
        io->priv[FILE_IOV] = (uintptr_t)iov;
    }
    for (; n < ZERO_IOVS && left > 0; n++) {
        iov[n].iov_base = (void *)(uintptr_t)zeros; /* only read */
        iov[n].iov_len = left < ZEROS ? left : ZEROS;
        left -= iov[n].iov_len;
    }
    io->priv[FILE_NR_IOV] = n;
    return true;
}

/* Returns 0 or an errno. */
static int file_begin(struct file_backend *file, struct backend_io *io)
{
    memset(io->priv, 0, sizeof(io->priv));
    io->priv[FILE_BACKEND] = (uintptr_t)file;
    io->priv[FILE_PHASE] = first_phase[io->op];
    if (io->op == BACKEND_WRITE_ZEROES && atomic_load(&file->no_zero_range)) {
        io->priv[FILE_PHASE] = ZEROS_BY_WRITING;
        return build_zeros(io) ? 0 : ENOMEM;
    }
    if (first_phase[io->op] != TRANSFER || !goes_direct(file, io) || iov_aligned(file, io)) {
        return 0;
    }

    io->priv[FILE_BOUNCE] = (uintptr_t)aligned_alloc(
        BOUNCE_ALIGN, (io->len + BOUNCE_ALIGN - 1) & ~(uint64_t)(BOUNCE_ALIGN - 1));
    if (bounce(io) == NULL || !rebuild_iov(io)) {
        return ENOMEM;
    }
    if (io->op == BACKEND_WRITE) {
        copy_bounce(io);
    }
    return 0;
}

static void transfer_step(const struct backend_io *io, struct file_step *step)
{
    const struct file_backend *file = file_of(io);

    step->fd = goes_direct(file, io) ? file->direct_fd : file->fd;
    step->call = io->op == BACKEND_READ ? FILE_READV : FILE_WRITEV;
    step->flags = io->op != BACKEND_READ && io->fua ? RWF_DSYNC : 0;
    step->iov = own_iov(io);
    step->nr_iov = (unsigned)io->priv[FILE_NR_IOV];
    if (step->iov == NULL) {
        step->iov = io->iov;
        step->nr_iov = io->nr_iov < IOV_MAX ? (unsigned)io->nr_iov : IOV_MAX;
    }
    step->offset = io->offset + io->priv[FILE_DONE];
}

void file_step(const struct backend_io *io, struct file_step *step)
{
    *step = (struct file_step){
        .call = FILE_FALLOCATE,
        .fd = file_of(io)->fd,
        .offset = io->offset,
        .len = io->len,
    };
    switch ((enum phase)io->priv[FILE_PHASE]) {
    case TRANSFER:
    case ZEROS_BY_WRITING:
        transfer_step(io, step);
        break;
    case ZERO_RANGE:
        step->flags = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
        break;
    case PUNCH_HOLE:
        step->flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        break;
    case SYNC:
        step->call = FILE_FDATASYNC;
        break;
    }
}

/* Bytes were transferred; an I/O may need several calls. */
static bool transferred(struct backend_io *io, int64_t result, int *error)
{
    bool by_zeros = io->priv[FILE_PHASE] == ZEROS_BY_WRITING;

    if (result == 0 && io->priv[FILE_DONE] < io->len) {
        *error = EIO; /* the file has been cut short since it was opened */
        return true;
    }
    io->priv[FILE_DONE] += (uint64_t)result;
    if (io->priv[FILE_DONE] >= io->len) {
        *error = 0;
        return true;
    }
    if (by_zeros ? build_zeros(io) : rebuild_iov(io)) {
        return false;
    }
    *error = ENOMEM;
    return true;
}

/* The file system or the device does not know how to zero a range. */
static bool zero_by_writing(struct backend_io *io, int *error)
{
    atomic_store(&file_of(io)->no_zero_range, true);
    io->priv[FILE_PHASE] = ZEROS_BY_WRITING;
    *error = ENOMEM;
    return !build_zeros(io);
}

bool file_result(struct backend_io *io, int64_t result, int *error)
{
    enum phase phase = (enum phase)io->priv[FILE_PHASE];
    bool unsupported = result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL;

    if (result == -EINTR || result == -EAGAIN) {
        return false;
    }
    *error = result < 0 ? (int)-result : 0;
    if (result >= 0 && (phase == TRANSFER || phase == ZEROS_BY_WRITING)) {
        return transferred(io, result, error);
    }
    if (phase == ZERO_RANGE && unsupported) {
        return zero_by_writing(io, error);
    }
    if (phase == ZERO_RANGE && result >= 0 && io->fua) {
        io->priv[FILE_PHASE] = SYNC;
        return false;
    }
    if (phase == PUNCH_HOLE && unsupported) {
        *error = 0; /* it was a hint */
    }
    return true;
}

void file_end(struct backend_io *io, int error)
{
    if (bounce(io) != NULL && io->op == BACKEND_READ && error == 0) {
        copy_bounce(io);
    }
    free(bounce(io));
    free(own_iov(io));
    io->done(io, error);
}

static void file_submit(struct backend_queue *queue, struct backend *backend, struct backend_io *io)
{
    int error = file_begin((struct file_backend *)backend, io);

    if (error != 0 || (io->len == 0 && io->op != BACKEND_FLUSH)) {
        file_end(io, error);
        return;
    }
    queue->engine->start(queue, io);
}

static void file_close(struct backend *backend)
{
    struct file_backend *file = (struct file_backend *)backend;

    if (file->direct_fd >= 0) {
        close(file->direct_fd);
    }
    if (file->lock_fd >= 0) {
        close(file->lock_fd);
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
    free(file);
}

static const struct backend_ops file_ops = {
    .submit = file_submit,
    .close = file_close,
};

/* Returns 0 or a negative errno. */
static int size_of(int fd, uint64_t *size)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    if (S_ISREG(st.st_mode)) {
        *size = (uint64_t)st.st_size;
        return 0;
    }
    if (!S_ISBLK(st.st_mode)) {
        return -EINVAL;
    }
    return ioctl(fd, BLKGETSIZE64, size) < 0 ? -errno : 0;
}

/* What direct I/O demands; where the kernel does not tell, what no device exceeds. */
static void find_alignment(struct file_backend *file)
{
    file->offset_align = BOUNCE_ALIGN;
    file->memory_align = BOUNCE_ALIGN;
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(file->direct_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) != 0 && stx.stx_dio_offset_align != 0 &&
        stx.stx_dio_offset_align <= BOUNCE_ALIGN && stx.stx_dio_mem_align <= BOUNCE_ALIGN) {
        file->offset_align = stx.stx_dio_offset_align;
        file->memory_align = stx.stx_dio_mem_align;
    }
#endif
}

/* Pages of the file in the cache are looked after by each direct access, which then has to wait. */
static void forget_cache(const struct file_backend *file)
{
    if (fdatasync(file->fd) == 0) {
        (void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
    }
}

/*
 * The lock ends with the descriptor that has it. An io_uring keeps those that it uses for a while
 * after its process was killed, and a new server must not find the file locked then.
 *
 * Returns 0 or a negative errno: -EAGAIN if somebody else has the file locked.
 */
static int lock(struct file_backend *file, const char *path, bool shared)
{
    struct flock all = { .l_type = shared ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };

    file->lock_fd = open(path, O_RDWR | O_CLOEXEC);
    if (file->lock_fd < 0) {
        return -errno;
    }
    if (fcntl(file->lock_fd, F_OFD_SETLK, &all) == 0) {
        return 0;
    }
    if (errno == EAGAIN || errno == EACCES) {
        return -EAGAIN;
    }
    /* A file system without locks protects nobody: only who says "shared" can mean that. */
    return shared ? 0 : -errno;
}

/* Returns 0 or a negative errno. */
static int file_open(struct file_backend *file, const char *path, bool direct, bool shared)
{
    int err;

    file->fd = open(path, O_RDWR | O_CLOEXEC);
    if (file->fd < 0) {
        return -errno;
    }
    err = size_of(file->fd, &file->base.size);
    if (err == 0) {
        err = lock(file, path, shared);
    }
    if (err == 0 && direct) {
        file->direct_fd = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
        if (file->direct_fd < 0) {
            return -errno;
        }
        find_alignment(file);
        forget_cache(file);
    }
    return err;
}

static const char *open_fault(int err)
{
    switch (err) {
    case -EINVAL:
        return "neither a file nor a block device that can do it";
    case -EAGAIN:
        return "another server, namespace or program has locked it: all that serve it must say "
               "\"shared\"";
    case -ENOLCK:
    case -EOPNOTSUPP:
        return "its file system has no locks: say \"shared\" if nobody else writes it";
    default:
        return strerror(-err);
    }
}

struct backend *backend_open_file(const char *path, bool direct, bool shared, char *why,
                                  size_t why_len)
{
    struct file_backend *file = calloc(1, sizeof(*file));
    int err = -ENOMEM;

    if (file != NULL) {
        file->base.ops = &file_ops;
        file->fd = file->lock_fd = file->direct_fd = -1;
        err = file_open(file, path, direct, shared);
        if (err == 0) {
            return &file->base;
        }
        file_close(&file->base);
    }
    snprintf(why, why_len, "cannot open %s%s: %s", path, direct ? " for direct I/O" : "",
             open_fault(err));
    return NULL;
}
