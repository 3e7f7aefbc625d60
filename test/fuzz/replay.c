/* SPDX-License-Identifier: BSD-3-Clause */
/* Feeds a fuzz target with files, for compilers without libFuzzer: replay-<target> FILE|DIRECTORY... */
#include "fuzz.h"

#include <dirent.h>
#include <err.h>
#include <sys/stat.h>

#define LARGEST_INPUT (8u << 20)

static unsigned inputs;

static void replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = malloc(LARGEST_INPUT), *exact;
    size_t size;

    if (file == NULL || data == NULL) {
        err(1, "%s", path);
    }
    size = fread(data, 1, LARGEST_INPUT, file);
    if (ferror(file)) {
        err(1, "%s", path);
    }
    fclose(file);
    /* At the end of its memory, where a sanitizer sees a read beyond it. */
    exact = malloc(size + 1);
    if (exact == NULL) {
        err(1, "%s", path);
    }
    memcpy(exact + 1, data, size);
    free(data);
    fprintf(stderr, "%s: %zu bytes\n", path, size);
    LLVMFuzzerTestOneInput(exact + 1, size);
    free(exact);
    inputs++;
}

static void replay(const char *path)
{
    struct stat status;
    struct dirent *entry;
    char inside[4096];
    DIR *dir;

    if (stat(path, &status) == -1) {
        err(1, "%s", path);
    }
    if (!S_ISDIR(status.st_mode)) {
        replay_file(path);
        return;
    }
    dir = opendir(path);
    if (dir == NULL) {
        err(1, "%s", path);
    }
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.') {
            snprintf(inside, sizeof(inside), "%s/%s", path, entry->d_name);
            replay(inside);
        }
    }
    closedir(dir);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        replay(argv[i]);
    }
    if (inputs == 0) {
        errx(1, "no input");
    }
    printf("%u inputs\n", inputs);
    return 0;
}
