# SPDX-License-Identifier: BSD-3-Clause
"""
A device on standard input and output, until its client goes away; status 0 when all was well.

Usage: python3 -m vfiouser.api.pipe_device LIBRARY FLAGS
"""

import errno
import os
import select
import sys

from . import abi
from .device import Device
from .library import Library


def main():
    flags = int(sys.argv[2])
    device = Device(Library(sys.argv[1]), flags=flags, trans=abi.TRANS_PIPE, path="unused")
    device.memory_region(0, 0x10)
    device.realize()
    assert device.poll_fd == 0, "before a client has attached"
    device.attach()
    assert device.poll_fd > 2, "a copy"
    assert os.fstat(device.poll_fd).st_ino == os.fstat(0).st_ino
    try:
        while True:
            if flags & abi.NB:
                select.select([device.poll_fd], [], [])
            device.run()
    except OSError as error:
        assert error.errno == errno.ENOTCONN, error
    device.destroy()
    os.fstat(0)
    os.fstat(1)


if __name__ == "__main__":
    main()
