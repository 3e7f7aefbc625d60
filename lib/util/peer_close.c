/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Closing what the peer passed. close(2) calls the file system's flush, and for FUSE that is a
 * request which no signal interrupts: the thread that closes belongs to the peer from then on. So
 * threads do it that do nothing else.
 */
#include "util/peer_file.h"
#include "util/statx.h"

#include <fcntl.h>
#include <linux/major.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_CLOSERS 16

static struct {
    pthread_mutex_t lock;
    int *fds;
    size_t nr_fds, room;
    unsigned int nr_threads;
} closing = { .lock = PTHREAD_MUTEX_INITIALIZER };

/*
 * Memory, pipes, UNIX sockets, anonymous inodes (eventfds, say), /dev/null and its neighbours have no
 * flush and do not linger. Nor do files of a file system on a block device: the FUSE kind of those
 * is not for users to mount.
 */
static bool closes_at_once(int fd)
{
    socklen_t len = sizeof(int);
    struct statx st;
    int domain;

    if (peer_file_is_memory(fd)) {
        return true;
    }
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0) {
        return false;
    }
    if (S_ISSOCK(st.stx_mode)) {
        return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
    }
    return S_ISFIFO(st.stx_mode) || (st.stx_mode & S_IFMT) == 0 ||
           (S_ISCHR(st.stx_mode) ? st.stx_rdev_major == MEM_MAJOR : st.stx_dev_major != 0);
}

static void *run(void *arg)
{
    int fd;

    (void)arg;
    pthread_mutex_lock(&closing.lock);
    while (closing.nr_fds > 0) {
        fd = closing.fds[--closing.nr_fds];
        pthread_mutex_unlock(&closing.lock);
        close(fd);
        pthread_mutex_lock(&closing.lock);
    }
    closing.nr_threads--;
    pthread_mutex_unlock(&closing.lock);
    return NULL;
}

/* Needs the lock. The thread takes no signal: those are for the program. */
static void start_thread(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;

    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    closing.nr_threads += pthread_create(&thread, &attr, run, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
}

/* Needs the lock. */
static bool enqueue(int fd)
{
    size_t room = closing.room == 0 ? 16 : 2 * closing.room;
    int *fds;

    if (closing.nr_fds == closing.room) {
        fds = realloc(closing.fds, room * sizeof(*fds));
        if (fds == NULL) {
            return false;
        }
        closing.fds = fds;
        closing.room = room;
    }
    closing.fds[closing.nr_fds++] = fd;
    return true;
}

void peer_file_close(int fd)
{
    if (closes_at_once(fd)) {
        close(fd);
        return;
    }
    pthread_mutex_lock(&closing.lock);
    /* Without memory for a word the descriptor stays open, which costs less than the thread. */
    if (enqueue(fd) && closing.nr_threads < MAX_CLOSERS) {
        start_thread();
    }
    pthread_mutex_unlock(&closing.lock);
}
