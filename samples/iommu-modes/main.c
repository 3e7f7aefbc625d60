/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One device program, five kinds of machines: without an IOMMU; with one, for a server that does
 * not know of it (shadow mappings) and for one that asks (ATS), also for pages that are not there
 * (PRI); and with guests in guests. The machine's code is the same in all of them.
 */
#include "checks.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Above all that the checks fill RAM with. */
#define FIRST_SECRET 0x90

/* Far more than any step takes: what is late by this much does not come. */
#define TIMEOUT_MS 10000

struct step {
    const char *what;
    check_t *run;
};

struct setup {
    const char *what;
    char *server_options[8];
    enum vfuc_iommu_mode mode, expected;
    struct step steps[12];
};

#define TABLES                                                                                     \
    { "scattered pages", check_scattered }, { "unmap, then write", check_unmapped_write },        \
        { "unmap, then read", check_unmapped_read }, { "read only", check_read_only },            \
        { "another page", check_other_page }, { "unmap during DMA", check_under_way },            \
        { "many at once", check_batch }
#define NESTED                                                                                     \
    { "stage 1 changes", check_stage1 }, { "stage 2 changes", check_stage2 },                     \
        { "both change", check_both_stages }

static struct setup setups[] = {
    {
        "no IOMMU", { NULL }, VFUC_IOMMU_NONE, VFUC_IOMMU_NONE,
        { { "identity", check_identity } },
    },
    {
        "IOMMU, server without the extension: shadow mappings", { NULL },
        VFUC_IOMMU_AUTO, VFUC_IOMMU_SHADOW, { TABLES },
    },
    {
        "shadow mappings, server with PASIDs", { "--pasid", "20", NULL },
        VFUC_IOMMU_AUTO, VFUC_IOMMU_SHADOW, { TABLES, { "address spaces", check_spaces } },
    },
    {
        "IOMMU, server that asks: ATS", { "--pasid", "20", "--ats", NULL },
        VFUC_IOMMU_AUTO, VFUC_IOMMU_ATS, { TABLES, { "address spaces", check_spaces } },
    },
    {
        "ATS and page requests", { "--pasid", "20", "--ats", "--pri", NULL },
        VFUC_IOMMU_AUTO, VFUC_IOMMU_ATS,
        { TABLES, { "pages on demand", check_on_demand }, { "no such page", check_no_such_page },
          { "pointers", check_process }, { "eviction", check_evicted } },
    },
    {
        "a guest in a guest, shadow mappings", { NULL }, VFUC_IOMMU_AUTO, VFUC_IOMMU_SHADOW,
        { NESTED },
    },
    {
        "a guest in a guest, ATS", { "--pasid", "20", "--ats", NULL },
        VFUC_IOMMU_AUTO, VFUC_IOMMU_ATS, { NESTED },
    },
};

static const char *const mode_names[] = {
    [VFUC_IOMMU_AUTO] = "auto",
    [VFUC_IOMMU_ATS] = "ATS",
    [VFUC_IOMMU_SHADOW] = "shadow",
    [VFUC_IOMMU_NONE] = "none",
};

struct demo {
    char server[PATH_MAX];
    char dir[PATH_MAX];
    char socket[PATH_MAX + 16];
    bool verbose;
    unsigned failed;
};

static void report(struct demo *demo, const char *what, bool ok, const char *seen)
{
    printf("%-6s  %-18s  %s\n", ok ? "ok" : "FAILED", what, seen);
    fflush(stdout);
    demo->failed += !ok;
}

static int make_socket_path(struct demo *demo)
{
    int err = process_directory("iommu-modes", demo->dir, sizeof(demo->dir));

    if (err == 0) {
        snprintf(demo->socket, sizeof(demo->socket), "%s/edu.sock", demo->dir);
    }
    return err;
}

/* A step in a domain of its own. */
static void run_step(struct demo *demo, struct bench *b, const struct step *step, bool remaps)
{
    struct machine *m = b->machine;
    char seen[256] = "";
    bool ok;

    b->seen = seen;
    b->size = sizeof(seen);
    b->pasid = VFUC_NO_PASID;
    b->domain = vfuc_iommu_domain_create(m->iommu);
    if (remaps) {
        machine_check(m, "attach", vfuc_iommu_attach(m->iommu, VFUC_NO_PASID, b->domain));
    }
    ok = step->run(b);
    if (remaps) {
        machine_check(m, "detach", vfuc_iommu_attach(m->iommu, VFUC_NO_PASID, NULL));
    }
    machine_check(m, "domain", vfuc_iommu_domain_destroy(b->domain));
    report(demo, step->what, ok && machine_ok(m), machine_ok(m) ? seen : m->error);
}

static void run_setup(struct demo *demo, struct setup *setup)
{
    struct machine machine = {
        .server = demo->server,
        .socket_path = demo->socket,
        .verbose = demo->verbose,
        .timeout_ms = TIMEOUT_MS,
    };
    struct bench b = { .machine = &machine, .secret = FIRST_SECRET };
    const vfuc_iommu_options_t options = { .mode = setup->mode, .fault = on_fault, .pvt = &b };
    char seen[64] = "";

    printf("%s\n", setup->what);
    machine_start(&machine, setup->server_options, &options);
    machine_plug(&machine);
    if (machine_ok(&machine)) {
        enum vfuc_iommu_mode mode = vfuc_iommu_mode(machine.iommu);

        snprintf(seen, sizeof(seen), "mode: %s", mode_names[mode]);
        report(demo, "attach", mode == setup->expected, seen);
    }
    for (const struct step *s = setup->steps; s->run != NULL && machine_ok(&machine); s++) {
        run_step(demo, &b, s, setup->mode != VFUC_IOMMU_NONE);
    }
    if (!machine_ok(&machine) && seen[0] == '\0') {
        report(demo, "attach", false, machine.error);
    }
    machine_stop(&machine);
}

int main(int argc, char **argv)
{
    static struct demo demo;
    int err;

    demo.verbose = argc == 2 && strcmp(argv[1], "--verbose") == 0;
    if (argc > 1 && !demo.verbose) {
        fputs("Usage: iommu-modes [--verbose]\n"
              "Drive the edu device behind every kind of IOMMU. --verbose: show what it complains\n"
              "about as well, which is mostly that it did not get what was taken away.\n",
              strcmp(argv[1], "--help") == 0 ? stdout : stderr);
        return strcmp(argv[1], "--help") == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    err = process_sibling("edu", demo.server, sizeof(demo.server));
    err = err != 0 ? err : make_socket_path(&demo);
    if (err != 0) {
        fprintf(stderr, "iommu-modes: cannot begin: %s\n", strerror(-err));
        return EXIT_FAILURE;
    }
    for (size_t i = 0; i < sizeof(setups) / sizeof(setups[0]); i++) {
        run_setup(&demo, &setups[i]);
    }
    rmdir(demo.dir);
    if (demo.failed != 0) {
        printf("%u FAILED\n", demo.failed);
        return EXIT_FAILURE;
    }
    printf("all ok\n");
    return EXIT_SUCCESS;
}
