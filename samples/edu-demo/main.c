/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Starts the edu server, a PCI device in a process of its own, and drives the device from this
 * process: no virtual machine, but every step that one would take.
 */

#include "checks.h"
#include "iommu.h"
#include "../common/process.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Far more than any step takes: what is late by this much does not come. */
#define TIMEOUT_MS 10000

#define EXIT_USAGE 2

static const char usage[] =
    "Usage: edu-demo [--help]\n"
    "Start the edu server, drive its device as a virtual machine would, and say what was seen;\n"
    "then once more, with an IOMMU.\n";

struct demo {
    char server[PATH_MAX];
    char dir[PATH_MAX];
    char socket[PATH_MAX + 16];
    struct process process;
    struct driver driver;
    unsigned failed;
};

static void report(struct demo *demo, const char *what, bool ok, const char *seen)
{
    printf("%-6s  %-19s  %s\n", ok ? "ok" : "FAILED", what, seen);
    fflush(stdout);
    demo->failed += !ok;
}

static int make_socket_path(struct demo *demo)
{
    int err = process_directory("edu-demo", demo->dir, sizeof(demo->dir));

    if (err == 0) {
        snprintf(demo->socket, sizeof(demo->socket), "%s/edu.sock", demo->dir);
    }
    return err;
}

static void start_server(struct demo *demo, bool iommu)
{
    char *argv[] = { demo->server, "--socket", demo->socket, NULL, "20", "--ats", "--pri", NULL };
    char line[PATH_MAX + 64] = "", expected[PATH_MAX + 64];
    int err;

    if (iommu) {
        argv[3] = "--pasid";
    }
    err = process_start(&demo->process, argv, true);

    if (err != 0) {
        fprintf(stderr, "edu-demo: cannot start %s: %s\nedu-demo: build the sample edu first\n",
                demo->server, strerror(-err));
        rmdir(demo->dir);
        exit(EXIT_FAILURE);
    }
    err = process_read_line(&demo->process, line, sizeof(line), TIMEOUT_MS);
    snprintf(expected, sizeof(expected), "edu: listening on %s", demo->socket);
    printf("EDU, a PCI device%s, in process %d; its driver in process %d\n",
           iommu ? " behind an IOMMU" : "", (int)demo->process.pid, (int)getpid());
    report(demo, "server ready", err == 0 && strcmp(line, expected) == 0,
           err == 0 ? line : strerror(-err));
}

static void attach(struct demo *demo)
{
    driver_attach(&demo->driver);
    report(demo, "attach", driver_ok(&demo->driver),
           driver_ok(&demo->driver) ? "version negotiated, RAM mapped, bus master enabled"
                                    : demo->driver.error);
}

static void run_checks(struct demo *demo, const struct check *list, size_t nr)
{
    for (size_t i = 0; i < nr && driver_ok(&demo->driver); i++) {
        char seen[256];
        bool ok = list[i].run(&demo->driver, seen, sizeof(seen));

        if (driver_ok(&demo->driver)) {
            report(demo, list[i].what, ok, seen);
        } else {
            report(demo, list[i].what, false, demo->driver.error);
        }
    }
}

static void end_server(struct demo *demo)
{
    struct stat st;
    char seen[128];
    int status = process_end(&demo->process, TIMEOUT_MS);
    bool gone = stat(demo->socket, &st) != 0 && errno == ENOENT;

    if (status < 0) {
        snprintf(seen, sizeof(seen), "SIGTERM did not end it: %s", strerror(-status));
    } else if (WIFSIGNALED(status)) {
        snprintf(seen, sizeof(seen), "killed by signal %d", WTERMSIG(status));
    } else {
        snprintf(seen, sizeof(seen), "on SIGTERM with status %d, socket %s", WEXITSTATUS(status),
                 gone ? "removed" : "LEFT BEHIND");
    }
    report(demo, "server ends", status == 0 && gone, seen);
    if (!gone) {
        unlink(demo->socket);
    }
    rmdir(demo->dir);
}

/* One server from its start to its end, in a machine with or without an IOMMU. */
static int run(struct demo *demo, struct machine_iommu *iommu)
{
    int err = make_socket_path(demo);

    if (err != 0) {
        fprintf(stderr, "edu-demo: no place for the socket: %s\n", strerror(-err));
        return err;
    }
    driver_init(&demo->driver, demo->socket, TIMEOUT_MS);
    demo->driver.iommu = iommu;
    start_server(demo, iommu != NULL);
    attach(demo);
    if (iommu != NULL) {
        run_checks(demo, iommu_checks, nr_iommu_checks);
    } else {
        run_checks(demo, checks, nr_checks);
    }
    driver_detach(&demo->driver);
    end_server(demo);
    driver_destroy(&demo->driver);
    return 0;
}

int main(int argc, char **argv)
{
    static struct demo demo;
    static struct machine_iommu iommu;
    int err;

    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return EXIT_SUCCESS;
    }
    if (argc != 1) {
        fprintf(stderr, "edu-demo: takes no '%s': try 'edu-demo --help'\n", argv[1]);
        return EXIT_USAGE;
    }
    err = process_sibling("edu", demo.server, sizeof(demo.server));
    if (err != 0) {
        fprintf(stderr, "edu-demo: cannot find the server: %s\n", strerror(-err));
        return EXIT_FAILURE;
    }
    err = run(&demo, NULL);
    if (err == 0) {
        err = iommu_init(&iommu) < 0 ? -errno : run(&demo, &iommu);
        iommu_destroy(&iommu);
    }
    if (err != 0 || demo.failed != 0) {
        printf("%u FAILED\n", demo.failed);
        return EXIT_FAILURE;
    }
    printf("all ok\n");
    return EXIT_SUCCESS;
}
