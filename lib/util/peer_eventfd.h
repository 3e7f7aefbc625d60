/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_UTIL_PEER_EVENTFD_H
#define VFU_UTIL_PEER_EVENTFD_H

/*
 * Eventfds that a peer has sent.
 *
 * The peer holds the same file description. It can clear O_NONBLOCK and fill the counter at any
 * moment, between a poll() and a write() too, and eventfds have no write with RWF_NOWAIT. A write(2)
 * can therefore wait for as long as the peer likes.
 *
 * The kernel's own way to signal, eventfd_signal(), never waits: a full counter stays full. Linux
 * AIO calls it when a request with IOCB_FLAG_RESFD completes, and a read of 0 bytes completes inside
 * io_submit(2). One AIO context, made for the first signal, serves the whole process: it has no
 * descriptor, and counts as 64 events against /proc/sys/fs/aio-max-nr. A process that has one takes
 * some 30 ms longer to end, as the kernel waits for an RCU grace period.
 *
 * io_uring was measured as well: a NOP on a ring with a registered eventfd costs two thirds, but
 * takes a ring with a descriptor for each eventfd, and IORING_OP_WRITE calls write().
 *
 * Without AIO (a kernel without CONFIG_AIO or before 5.8, a seccomp filter, aio-max-nr used up), each
 * signal is a write() on a thread of its own, which is interrupted if it waits. Such a signal costs a
 * thread's start, and a hostile peer holds the caller for up to PEER_EVENTFD_PATIENCE_MS each time.
 */
#define PEER_EVENTFD_PATIENCE_MS 20

/*
 * Checks that fd is an eventfd, without a call into the file system behind it (fstat(2) on a FUSE
 * file waits for the peer). Returns 0, or -EINVAL if it is something else, or if there is neither
 * /proc nor AIO to tell. Any thread.
 */
int peer_eventfd_check(int fd);

/*
 * Adds 1 to the counter of an eventfd. Never waits for the peer. Returns 0, also if the peer fills the
 * counter meanwhile; -EAGAIN if it was full before; -EINVAL if fd is no eventfd; or another negative
 * errno. Any thread.
 */
int peer_eventfd_signal(int fd);

#endif /* VFU_UTIL_PEER_EVENTFD_H */
