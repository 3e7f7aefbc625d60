/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A GPIO card around an event loop: the library never blocks, and one thread serves the client, the
 * world behind the lines, a timer and signals.
 *
 * What it teaches: LIBVFIO_USER_FLAG_ATTACH_NB, vfu_get_event_fd(), and what EAGAIN, EBUSY and
 * ENOTCONN mean there (attach_client(), serve_client()).
 */

#include "../common/service.h"
#include "card.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>

#define EXIT_USAGE 2
#define MAX_PULSE_MS 3600000
#define COMMAND_SIZE 64

static const char usage[] =
    "Usage: gpio --socket PATH [--pulse MS] [--verbose]\n"
    "Serve a PCI card with 32 input and output lines on a vfio-user socket.\n"
    "\n"
    "  -s, --socket PATH   socket to listen on; removed at the end\n"
    "  -p, --pulse MS      line 0 rises and falls by itself, every MS milliseconds\n"
    ACCESS_USAGE
    "  -v, --verbose       say what clients do\n"
    "  -h, --help          print this text\n"
    "\n"
    "Prints \"gpio: listening on PATH\" when clients may connect. \"3=1\" on standard input drives\n"
    "line 3 high; on standard output it says that the card does (z: it is an input).\n"
    "SIGTERM and SIGINT end it.\n";

static const struct option long_options[] = {
    { "socket", required_argument, NULL, 's' }, { "pulse", required_argument, NULL, 'p' },
    { "verbose", no_argument, NULL, 'v' },      { "help", no_argument, NULL, 'h' },
    ACCESS_LONG_OPTIONS,                        { NULL, 0, NULL, 0 },
};

struct options {
    const char *socket_path;
    struct access_rules access;
    unsigned long pulse_ms; /* 0: no pulses */
    int log_level;
};

struct server {
    struct card card;
    int signal_fd;
    int timer_fd;
    bool input_ended;
    bool attached;
    char command[COMMAND_SIZE]; /* what has come of a line of standard input */
    size_t command_len;
};

/*
 * Standard input: the world
 */

static void run_command(struct server *server, const char *command)
{
    unsigned line;
    char level, rest;

    if (sscanf(command, "%u=%c%c", &line, &level, &rest) != 2 || line >= GPIO_LINES ||
        (level != '0' && level != '1')) {
        fprintf(stderr, "gpio: '%s' is not LINE=LEVEL, such as 3=1, with lines 0 to %d\n", command,
                GPIO_LINES - 1);
        return;
    }
    gpio_drive(&server->card.gpio, line, level == '1');
}

static void add_input(struct server *server, char c)
{
    if (c != '\n') {
        /* What is too long is no command, however it goes on. */
        if (server->command_len < sizeof(server->command) - 1) {
            server->command[server->command_len++] = c;
        }
        return;
    }
    server->command[server->command_len] = '\0';
    server->command_len = 0;
    run_command(server, server->command);
}

static void read_input(struct server *server)
{
    char buf[256];
    ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));

    if (n <= 0) {
        /* Nobody drives the lines any more; the card goes on. */
        server->input_ended = n == 0 || (errno != EINTR && errno != EAGAIN);
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        add_input(server, buf[i]);
    }
}

/*
 * The client
 */

static void attach_client(struct server *server)
{
    if (vfu_attach_ctx(server->card.ctx) == 0) {
        server->attached = true;
        return;
    }
    switch (errno) {
    case EAGAIN: /* nobody there after all, or somebody who has not said hello yet */
    case EINTR:
        return;
    default: /* this client is no good; the next may be */
        vfu_log(server->card.ctx, LOG_WARNING, "a client could not attach: %s", strerror(errno));
    }
}

static int serve_client(struct server *server)
{
    if (vfu_run_ctx(server->card.ctx) >= 0) {
        return 0;
    }
    switch (errno) {
    case EAGAIN: /* nothing there after all */
    case EINTR:
    case EBUSY: /* quiesce() asked for time: card_pulse() goes on with it */
        return 0;
    case ENOTCONN: /* the client is gone, and the library back at listening */
        server->attached = false;
        vfu_log(server->card.ctx, LOG_INFO, "the client is gone; waiting for the next one");
        return 0;
    default:
        return -1;
    }
}

/*
 * The event loop
 */

static void tick(struct server *server)
{
    uint64_t ticks;

    if (read(server->timer_fd, &ticks, sizeof(ticks)) == (ssize_t)sizeof(ticks)) {
        card_pulse(&server->card);
    }
}

enum event {
    SIGNAL,
    TIMER,
    INPUT,
    CLIENT,
    NR_EVENTS
};

/* poll() skips negative descriptors. Returns 0 or a negative errno. */
static int wait_for_event(struct server *server, struct pollfd fds[NR_EVENTS])
{
    const int descriptors[NR_EVENTS] = {
        [SIGNAL] = server->signal_fd,
        [TIMER] = server->timer_fd,
        [INPUT] = server->input_ended ? -1 : STDIN_FILENO,
        [CLIENT] = vfu_get_event_fd(server->card.ctx),
    };

    for (int i = 0; i < NR_EVENTS; i++) {
        fds[i] = (struct pollfd){ .fd = descriptors[i], .events = POLLIN };
    }
    return service_poll(fds, NR_EVENTS);
}

static int run(struct server *server)
{
    struct pollfd fds[NR_EVENTS];
    int err = 0;

    while (err == 0) {
        err = wait_for_event(server, fds);
        if (err != 0 || fds[SIGNAL].revents != 0) {
            break;
        }
        if (fds[INPUT].revents != 0) {
            read_input(server);
        }
        if (fds[TIMER].revents != 0) {
            /* It may serve the client, which makes poll()'s answer about it an old one. */
            tick(server);
        } else if (fds[CLIENT].revents != 0 && server->attached) {
            err = serve_client(server);
        } else if (fds[CLIENT].revents != 0) {
            attach_client(server);
        }
    }
    if (err != 0) {
        fprintf(stderr, "gpio: the server ends: %s\n", strerror(errno));
    }
    return err;
}

/*
 * Start
 */

static int usage_error(void)
{
    fputs("gpio: try 'gpio --help'\n", stderr);
    return EXIT_USAGE;
}

static bool parse_pulse(const char *text, unsigned long *ms)
{
    char *end;

    errno = 0;
    *ms = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || *ms < 1 || *ms > MAX_PULSE_MS) {
        fprintf(stderr, "gpio: --pulse takes milliseconds from 1 to %d, not '%s'\n", MAX_PULSE_MS,
                text);
        return false;
    }
    return true;
}

/* Returns -1 to go on, else the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
    int c;

    while ((c = getopt_long(argc, argv, "s:p:vh", long_options, NULL)) != -1) {
        switch (c) {
        case 's':
            options->socket_path = optarg;
            break;
        case 'p':
            if (!parse_pulse(optarg, &options->pulse_ms)) {
                return usage_error();
            }
            break;
        case 'v':
            options->log_level = LOG_INFO;
            break;
        case 'h':
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        default:
            if (!access_take_option("gpio", c, optarg, &options->access)) {
                return usage_error();
            }
        }
    }
    if (optind < argc) {
        fprintf(stderr, "gpio: '%s' is too much: there are options only\n", argv[optind]);
        return usage_error();
    }
    if (options->socket_path == NULL) {
        fputs("gpio: --socket PATH is missing: where shall clients connect?\n", stderr);
        return usage_error();
    }
    return -1;
}

static int open_events(struct server *server, unsigned long pulse_ms)
{
    const struct timespec period = { .tv_sec = (time_t)(pulse_ms / 1000),
                                     .tv_nsec = (long)(pulse_ms % 1000) * 1000000 };
    const struct itimerspec timer = { .it_interval = period, .it_value = period };

    server->signal_fd = service_open_signals();
    server->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (server->signal_fd < 0 || server->timer_fd < 0 ||
        timerfd_settime(server->timer_fd, 0, &timer, NULL) != 0) {
        fprintf(stderr, "gpio: cannot wait for signals and time: %s\n", strerror(errno));
        return -1;
    }
    server->card.pulsing = pulse_ms > 0;
    return 0;
}

static int serve(struct server *server, struct options *options)
{
    int err;

    server->card.ctx = service_listen("gpio", options->socket_path, &options->access,
                                      LIBVFIO_USER_FLAG_ATTACH_NB, &server->card);
    if (server->card.ctx == NULL) {
        return -1;
    }
    err = card_setup(&server->card, options->log_level);
    if (err != 0) {
        fprintf(stderr, "gpio: cannot set the card up: %s\n", strerror(errno));
    } else {
        printf("gpio: listening on %s\n", options->socket_path);
        fflush(stdout);
        err = run(server);
    }
    vfu_destroy_ctx(server->card.ctx);
    return err;
}

static void close_events(struct server *server)
{
    if (server->signal_fd >= 0) {
        close(server->signal_fd);
    }
    if (server->timer_fd >= 0) {
        close(server->timer_fd);
    }
}

int main(int argc, char **argv)
{
    struct options options = { .log_level = LOG_WARNING };
    struct server server = { .signal_fd = -1, .timer_fd = -1 };
    int status = parse_options(argc, argv, &options);
    int err;

    if (status >= 0) {
        return status;
    }
    err = open_events(&server, options.pulse_ms);
    if (err == 0) {
        err = serve(&server, &options);
    }
    close_events(&server);
    return err == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
