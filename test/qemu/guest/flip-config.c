/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes two values in turn to a byte of configuration space, as fast as it can: setpci takes a
 * process for each.
 *
 * flip-config <file in /sys> <offset> <value> <value> <times>
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int fd;

    if (argc != 6) {
        errx(2, "usage: flip-config FILE OFFSET VALUE VALUE TIMES");
    }
    fd = open(argv[1], O_RDWR);
    if (fd < 0) {
        err(1, "%s", argv[1]);
    }
    for (long i = 0, n = 2 * strtol(argv[5], NULL, 0); i < n; i++) {
        uint8_t value = (uint8_t)strtoul(argv[3 + i % 2], NULL, 0);

        if (pwrite(fd, &value, 1, strtol(argv[2], NULL, 0)) != 1) {
            err(1, "write");
        }
    }
    return 0;
}
