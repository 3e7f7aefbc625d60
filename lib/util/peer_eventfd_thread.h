/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef VFU_UTIL_PEER_EVENTFD_THREAD_H
#define VFU_UTIL_PEER_EVENTFD_THREAD_H

/*
 * Signals an eventfd without AIO, for peer_eventfd_signal(): by a write(2) on a new thread, which a
 * signal of the first unused real-time number from SIGRTMAX downwards interrupts if it waits.
 * Returns 0, -EAGAIN (the counter is full, or no thread can be made), or the error of write(2).
 */
int peer_eventfd_signal_on_thread(int fd);

#endif /* VFU_UTIL_PEER_EVENTFD_THREAD_H */
