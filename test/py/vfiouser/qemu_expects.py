# SPDX-License-Identifier: BSD-3-Clause
"""What QEMU's functional test of its client reads in the log of a server, behind its "gpio: "."""

QEMU_EXPECTS = [
    "adding DMA region [0, 0xc0000) offset=0 flags=0x3",
    "devinfo flags 0x3, num_regions 9, num_irqs 5",
    *(f"region_info[{i}] offset 0 flags 0 size 0 argsz 32" for i in (0, 1, 3, 4, 5)),
    *(f"region_info[{i}] offset 0 flags 0x3 size 256 argsz 32" for i in (2, 7)),
    "region7: read 256 bytes at 0",
    "region7: read 0 from (0x30:4)",
    "cleared EROM",
    "I/O space enabled",
    "memory space enabled",
    "SERR# enabled",
    "region7: wrote 0x103 to (0x4:2)",
    "region2: wrote 0 to (0x1:1)",
]
