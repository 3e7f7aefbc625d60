/* SPDX-License-Identifier: BSD-3-Clause */
/* The socket: connecting, whole messages in and out, and the end of it. */
#include "client.h"

#include "util/peer_file.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT_MS 10000
#define MAX_IOV 8

void client_log(struct vfuc *client, const char *fmt, ...)
{
    char line[512];
    va_list ap;

    if (client->options.log == NULL) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    client->options.log(client->options.pvt, line);
}

uint64_t client_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

bool client_on_receiver(struct vfuc *client)
{
    return pthread_equal(atomic_load(&client->receiver_self), pthread_self());
}

ssize_t client_result(ssize_t r)
{
    if (r < 0) {
        errno = (int)-r;
        return -1;
    }
    return r;
}

/* Sending */

static ssize_t send_some(struct vfuc *client, struct iovec *iov, size_t nr_iov, const int *fds,
                         size_t nr_fds)
{
    union {
        char bytes[CMSG_SPACE(CLIENT_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = nr_iov };

    if (nr_fds > 0) {
        memset(&control, 0, sizeof(control));
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, nr_fds * sizeof(int));
    }
    return sendmsg(client->fd, &msg, MSG_NOSIGNAL);
}

static int send_error(int err)
{
    switch (err) {
    case EPIPE:
    case ECONNRESET:
        return -ENOTCONN;
    case EAGAIN:
        return -ETIMEDOUT;
    default:
        return -err;
    }
}

/* started: bytes have left, so the message has to follow them or the connection to end. */
static int send_all(struct vfuc *client, struct iovec *iov, size_t nr_iov, const int *fds,
                    size_t nr_fds, bool *started)
{
    uint64_t deadline = client_now_ms() + client->options.timeout_ms;

    while (nr_iov > 0) {
        ssize_t n = send_some(client, iov, nr_iov, fds, nr_fds);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return send_error(errno);
        }
        *started = true;
        nr_fds = 0;
        while (nr_iov > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            nr_iov--;
        }
        if (nr_iov > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
            if (client_now_ms() > deadline) {
                return -ETIMEDOUT;
            }
        }
    }
    return 0;
}

static bool is_current(struct vfuc *client, uint64_t epoch)
{
    bool current;

    pthread_mutex_lock(&client->lock);
    current = client->epoch == epoch && client->state != CLIENT_LOST;
    pthread_mutex_unlock(&client->lock);
    return current;
}

int client_send(struct vfuc *client, uint64_t epoch, const struct vfio_user_header *hdr,
                const struct iovec *iov, size_t nr_iov, const int *fds, size_t nr_fds)
{
    struct vfio_user_header out = *hdr;
    struct iovec parts[MAX_IOV];
    bool started = false;
    int err = -ENOTCONN;

    if (nr_iov >= MAX_IOV || nr_fds > CLIENT_MAX_FDS) {
        return -EINVAL;
    }
    out.msg_size = sizeof(out);
    for (size_t i = 0; i < nr_iov; i++) {
        if (iov[i].iov_len > CLIENT_MAX_MESSAGE - out.msg_size) {
            return -EMSGSIZE;
        }
        parts[1 + i] = iov[i];
        out.msg_size += (uint32_t)iov[i].iov_len;
    }
    parts[0] = (struct iovec){ &out, sizeof(out) };
    pthread_mutex_lock(&client->send_lock);
    if (is_current(client, epoch)) {
        err = send_all(client, parts, 1 + nr_iov, fds, nr_fds, &started);
    }
    pthread_mutex_unlock(&client->send_lock);
    if (err < 0 && (started || err == -ENOTCONN || err == -ETIMEDOUT)) {
        client_break(client, epoch, err);
    }
    return err;
}

/* Receiving */

static void take_fds(struct msghdr *msg, struct inbox *inbox)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (inbox->nr_fds < CLIENT_MAX_FDS) {
                inbox->fds[inbox->nr_fds++] = fd;
            } else {
                peer_file_close(fd);
            }
        }
    }
}

static ssize_t receive_some(struct vfuc *client, struct inbox *inbox, void *data, size_t len)
{
    union {
        char bytes[CMSG_SPACE(CLIENT_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = { data, len };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ssize_t n = recvmsg(client->fd, &msg, MSG_CMSG_CLOEXEC);

    if (n < 0) {
        return errno == ECONNRESET ? -ENOTCONN : -errno;
    }
    take_fds(&msg, inbox);
    if (msg.msg_flags & MSG_CTRUNC) {
        client_log(client, "server sent more descriptors than the %u it may, or than there is "
                   "room for: connection ended", CLIENT_MAX_FDS);
        return -EPROTO;
    }
    return n > 0 ? n : -ENOTCONN;
}

/* A server that stops in the middle of a message, or sends it in crumbs, is not waited for. */
int client_receive_exact(struct vfuc *client, struct inbox *inbox, void *data, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = receive_some(client, inbox, (char *)data + done, len - done);

        if (n == -EINTR) {
            continue;
        }
        if (n < 0) {
            return n == -EAGAIN && inbox->deadline != 0 ? -ETIMEDOUT : (int)n;
        }
        done += (size_t)n;
        if (inbox->deadline == 0) {
            inbox->deadline = client_now_ms() + client->options.timeout_ms;
        } else if (done < len && client_now_ms() > inbox->deadline) {
            return -ETIMEDOUT;
        }
    }
    return 0;
}

void client_close_inbox(struct inbox *inbox)
{
    for (size_t i = 0; i < inbox->nr_fds; i++) {
        if (inbox->fds[i] != -1) {
            peer_file_close(inbox->fds[i]);
        }
    }
    inbox->nr_fds = 0;
}

/* Life */

/* Neither a server that does not read nor one that does not write holds us for ever. */
static void set_timeouts(int fd, uint32_t ms)
{
    const struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
}

/* Nor one that does not accept: what waits in front of it is limited (listen(2)). */
static int connect_socket(const char *path, uint32_t timeout_ms)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd, err;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return -ENAMETOOLONG;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd == -1) {
        return -errno;
    }
    set_timeouts(fd, timeout_ms);
    do {
        err = connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == -1 ? errno : 0;
    } while (err == EINTR);
    if (err != 0) {
        close(fd);
        return err == EAGAIN ? -ETIMEDOUT : -err;
    }
    return fd;
}

static void init_locks(struct vfuc *client)
{
    pthread_rwlockattr_t prefer_writer;
    pthread_condattr_t attr;

    pthread_rwlockattr_init(&prefer_writer);
#ifdef __GLIBC__ /* musl always lets a waiting writer go first */
    pthread_rwlockattr_setkind_np(&prefer_writer, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    pthread_rwlock_init(&client->setup_lock, &prefer_writer);
    pthread_rwlockattr_destroy(&prefer_writer);

    pthread_mutex_init(&client->life_lock, NULL);
    pthread_mutex_init(&client->send_lock, NULL);
    pthread_mutex_init(&client->lock, NULL);
    pthread_mutex_init(&client->memory_lock, NULL);
    pthread_mutex_init(&client->irq_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&client->cond, &attr);
    pthread_condattr_destroy(&attr);
}

static void set_options(struct vfuc *client, const vfuc_options_t *options)
{
    if (options != NULL) {
        client->options = *options;
    }
    if (client->options.timeout_ms == 0) {
        client->options.timeout_ms = DEFAULT_TIMEOUT_MS;
    }
    if (client->options.max_data_xfer_size == 0 ||
        client->options.max_data_xfer_size > CLIENT_MAX_DATA) {
        client->options.max_data_xfer_size = CLIENT_MAX_DATA;
    }
}

static struct vfuc *new_client(const char *path, const vfuc_options_t *options)
{
    struct vfuc *client = calloc(1, sizeof(*client));

    if (client == NULL) {
        return NULL;
    }
    client->buf = malloc(CLIENT_MAX_MESSAGE);
    client->path = strdup(path);
    if (client->buf == NULL || client->path == NULL) {
        free(client->path);
        free(client->buf);
        free(client);
        return NULL;
    }
    set_options(client, options);
    init_locks(client);
    for (int i = 0; i < CLIENT_BUCKETS; i++) {
        LIST_INIT(&client->calls[i]);
    }
    TAILQ_INIT(&client->unattended);
    LIST_INIT(&client->mappings);
    client->fd = -1;
    return client;
}

static void free_client(struct vfuc *client)
{
    client_unmap_all(client);
    client_forget_all(client);
    client_clear_irqs(client);
    pthread_cond_destroy(&client->cond);
    pthread_mutex_destroy(&client->irq_lock);
    pthread_mutex_destroy(&client->memory_lock);
    pthread_mutex_destroy(&client->lock);
    pthread_mutex_destroy(&client->send_lock);
    pthread_rwlock_destroy(&client->setup_lock);
    pthread_mutex_destroy(&client->life_lock);
    free(client->path);
    free(client->buf);
    free(client);
}

static void set_socket(struct vfuc *client, int fd)
{
    pthread_mutex_lock(&client->send_lock);
    pthread_mutex_lock(&client->lock);
    if (client->fd != -1) {
        close(client->fd);
    }
    client->fd = fd;
    client->epoch++;
    memset(client->asked, 0, sizeof(client->asked));
    pthread_mutex_unlock(&client->lock);
    pthread_mutex_unlock(&client->send_lock);
}

/* Nobody is told when a connection is lost that was not whole again yet. */
static void set_state(struct vfuc *client, enum client_state state)
{
    pthread_mutex_lock(&client->lock);
    client->state = state;
    client->restorer = pthread_self();
    client->ending = state != CLIENT_CONNECTED;
    pthread_mutex_unlock(&client->lock);
}

static void set_agreed(struct vfuc *client, const vfuc_agreed_t *agreed)
{
    pthread_mutex_lock(&client->lock);
    client->agreed = *agreed;
    pthread_mutex_unlock(&client->lock);
    atomic_store(&client->max_data, agreed->max_data_xfer_size);
    atomic_store(&client->write_multiple, agreed->write_multiple);
}

/* Ends the connection, if there is one, and whatever runs on it. life_lock held. */
static void hang_up(struct vfuc *client)
{
    uint64_t epoch;

    pthread_mutex_lock(&client->lock);
    client->ending = true;
    epoch = client->epoch;
    pthread_mutex_unlock(&client->lock);
    client_break(client, epoch, -ENOTCONN);
    if (client->receiving) {
        pthread_join(client->receiver, NULL);
        client->receiving = false;
    }
    set_socket(client, -1);
}

void client_hang_up(struct vfuc *client)
{
    pthread_mutex_lock(&client->life_lock);
    hang_up(client);
    pthread_mutex_unlock(&client->life_lock);
}

/* Signals are for the threads of the program, which knows what it does with them. */
static int start_receiver(struct vfuc *client)
{
    sigset_t all, before;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = -pthread_create(&client->receiver, NULL, client_receive, client);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return err;
}

/* From a path to a connection on which commands may be sent. life_lock held. */
static int establish(struct vfuc *client, enum client_state state)
{
    vfuc_agreed_t agreed;
    int err = connect_socket(client->path, client->options.timeout_ms);

    if (err < 0) {
        return err;
    }
    set_socket(client, err);
    set_state(client, state);
    err = client_negotiate(client, &agreed);
    if (err == 0) {
        set_agreed(client, &agreed);
        err = start_receiver(client);
        client->receiving = err == 0;
    }
    if (err < 0) {
        hang_up(client);
    }
    return err;
}

vfuc_t *vfuc_connect(const char *path, const vfuc_options_t *options)
{
    struct vfuc *client = new_client(path, options);
    int err;

    if (client == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    pthread_mutex_lock(&client->life_lock);
    err = establish(client, CLIENT_CONNECTED);
    pthread_mutex_unlock(&client->life_lock);
    if (err < 0) {
        free_client(client);
        errno = -err;
        return NULL;
    }
    return client;
}

/* Connecting again */

int client_begin_setup(struct vfuc *client)
{
    if (client_on_receiver(client)) {
        return -EDEADLK;
    }
    pthread_rwlock_rdlock(&client->setup_lock);
    return 0;
}

int client_end_setup(struct vfuc *client, int r)
{
    pthread_rwlock_unlock(&client->setup_lock);
    return (int)client_result(r);
}

static bool same_iommu(const vfuc_iommu_proposal_t *a, const vfuc_iommu_proposal_t *b)
{
    return a->pasid_bits == b->pasid_bits && a->pasid_exec == b->pasid_exec &&
           a->pasid_priv == b->pasid_priv && a->ats_queue_depth == b->ats_queue_depth &&
           a->ats_page_shift == b->ats_page_shift && a->ats_max_entries == b->ats_max_entries &&
           a->pri_max_requests == b->pri_max_requests;
}

static int restore_memory(struct vfuc *client)
{
    vfuc_memory_t *list;
    ssize_t n = client_list_memory(client, &list);
    int err = n < 0 ? (int)n : 0;

    for (ssize_t i = 0; i < n && err == 0; i++) {
        err = client_send_map(client, &list[i]);
    }
    free(list);
    return err;
}

static int restore(struct vfuc *client, const vfuc_agreed_t *before)
{
    int err;

    if (!same_iommu(&before->iommu, &client->agreed.iommu)) {
        client_log(client, "the server that came back agreed to another IOMMU than before");
        return -ESTALE;
    }
    err = restore_memory(client);
    err = err < 0 ? err : client_restore_irqs(client);
    return err < 0 ? err : client_restore_mappings(client);
}

/* Unless the connection has been lost meanwhile. */
static int finish_restoring(struct vfuc *client)
{
    int err = -ENOTCONN;

    pthread_mutex_lock(&client->lock);
    if (client->state == CLIENT_RESTORING) {
        client->state = CLIENT_CONNECTED;
        client->ending = false;
        err = 0;
    }
    pthread_mutex_unlock(&client->lock);
    return err;
}

int vfuc_reconnect(vfuc_t *client)
{
    vfuc_agreed_t before;
    int err;

    if (client_on_receiver(client)) {
        return (int)client_result(-EDEADLK);
    }
    pthread_mutex_lock(&client->life_lock);
    hang_up(client);
    before = client->agreed;
    err = establish(client, CLIENT_RESTORING);
    if (err == 0) {
        /* Until others may send: what they could only record would not be what the server has. */
        pthread_rwlock_wrlock(&client->setup_lock);
        err = restore(client, &before);
        err = err < 0 ? err : finish_restoring(client);
        pthread_rwlock_unlock(&client->setup_lock);
        if (err < 0) {
            set_agreed(client, &before);
            hang_up(client);
        }
    }
    pthread_mutex_unlock(&client->life_lock);
    return (int)client_result(err);
}

void vfuc_disconnect(vfuc_t *client)
{
    if (client == NULL) {
        return;
    }
    if (client_on_receiver(client)) {
        client_log(client, "vfuc_disconnect() inside a callback: ignored");
        return;
    }
    pthread_mutex_lock(&client->life_lock);
    hang_up(client);
    pthread_mutex_unlock(&client->life_lock);
    free_client(client);
}

void vfuc_agreed(vfuc_t *client, vfuc_agreed_t *agreed)
{
    pthread_mutex_lock(&client->lock);
    *agreed = client->agreed;
    pthread_mutex_unlock(&client->lock);
}
