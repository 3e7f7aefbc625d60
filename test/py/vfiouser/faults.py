# SPDX-License-Identifier: BSD-3-Clause
"""
Calls of a program that fail, one place in its code after the other: the other half of
test/faults/shim.c, which is preloaded into the program.
"""

import ctypes
import errno
import mmap
import os
import pathlib
import shutil
import subprocess

SHIM = pathlib.Path(__file__).resolve().parents[2] / "faults" / "shim.c"
NR_SITES = 2048
FOREVER = 1 << 62
SHORT = 0  # a transfer that ends after a byte

# What each function can really fail with: its manual page.
_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_FILE = (errno.EINTR, errno.EIO, SHORT)
ERRORS = {
    "malloc": (errno.ENOMEM,), "calloc": (errno.ENOMEM,), "realloc": (errno.ENOMEM,),
    "reallocarray": (errno.ENOMEM,), "aligned_alloc": (errno.ENOMEM,),
    "posix_memalign": (errno.ENOMEM,), "strdup": (errno.ENOMEM,),
    "mmap": (errno.ENOMEM, errno.EAGAIN, errno.ENODEV),
    "madvise": (errno.ENOMEM, errno.EAGAIN, errno.EINVAL),
    "eventfd": _FDS, "epoll_create1": _FDS, "signalfd": _FDS, "memfd_create": _FDS,
    "socket": _FDS + (errno.ENOBUFS,), "socketpair": _FDS, "open": _FDS + (errno.EINTR,),
    "fopen": _FDS + (errno.ENOENT,),
    "fcntl": (errno.EINVAL, errno.EMFILE),
    "epoll_ctl": (errno.ENOMEM, errno.ENOSPC),
    "epoll_wait": (errno.EINTR,),
    "poll": (errno.EINTR, errno.ENOMEM),
    "bind": (errno.EADDRINUSE, errno.ENOMEM), "listen": (errno.EADDRINUSE,),
    "connect": (errno.ECONNREFUSED, errno.EINTR, errno.EAGAIN),
    "accept4": (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EINTR,
                errno.EAGAIN),
    "getsockopt": (errno.ENOBUFS,),
    "read": (errno.EINTR, errno.EAGAIN), "write": (errno.EINTR, errno.EAGAIN),
    "recv": (errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.ECONNRESET),
    "recvmsg": (errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.ECONNRESET, SHORT),
    "send": (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.EPIPE, errno.ECONNRESET),
    "sendmsg": (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EPIPE,
                errno.ECONNRESET, errno.ETOOMANYREFS, SHORT),
    "pread": _FILE, "pwrite": _FILE + (errno.ENOSPC, errno.EFBIG),
    "preadv2": _FILE + (errno.EAGAIN, errno.EOPNOTSUPP),
    "pwritev2": _FILE + (errno.ENOSPC, errno.EFBIG, errno.EAGAIN, errno.EOPNOTSUPP),
    "fdatasync": (errno.EINTR, errno.EIO, errno.ENOSPC),
    "fallocate": (errno.EINTR, errno.ENOSPC, errno.EOPNOTSUPP),
    "fstat": (errno.ENOMEM, errno.EOVERFLOW), "statx": (errno.ENOMEM, errno.ENOSYS),
    "ftruncate": (errno.EINTR, errno.ENOMEM, errno.EIO),
    "readlink": (errno.ENOMEM, errno.ENOENT),
    "pthread_create": (errno.EAGAIN,),
    "io_uring_submit": (errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOMEM),
    "io_uring_queue_init_params": (errno.ENOMEM, errno.EPERM, errno.ENOSYS),
    "syscall": (errno.EAGAIN, errno.ENOSYS),
}

# A caller may try again for as long as these come: they do not come for ever.
PASSING = {errno.EINTR, errno.EAGAIN}
# As long as these fail there is no session, or, in a program of its own, no event loop.
PASSING_CALLS = {"accept4", "poll"}


def passes(function, error):
    return error in PASSING or function in PASSING_CALLS


class _Site(ctypes.Structure):
    _fields_ = [("module", ctypes.c_char * 40), ("function", ctypes.c_char * 32),
                ("offset", ctypes.c_uint64), ("calls", ctypes.c_uint64)]


class _Control(ctypes.Structure):
    _fields_ = [("armed", ctypes.c_uint32), ("error", ctypes.c_int32), ("skip", ctypes.c_int64),
                ("left", ctypes.c_int64), ("failed", ctypes.c_uint32),
                ("nr_sites", ctypes.c_uint32), ("live", ctypes.c_int64), ("lock", ctypes.c_uint32),
                ("reserved", ctypes.c_uint32), ("sites", _Site * NR_SITES)]


class Fault:
    """One call that fails: where, with what (an errno or SHORT), after how many, how often."""

    def __init__(self, names, site, error, skip=0, left=1):
        self.names, self.site, self.error, self.skip, self.left = names, site, error, skip, left

    def __str__(self):
        error = errno.errorcode[self.error] if self.error else "a short transfer"
        often = "from then on" if self.left == FOREVER else "once"
        return f"{self.names[self.site]}: {error} {often}, after {self.skip} calls"


def compile_shim(directory):
    """Returns its path."""
    library = pathlib.Path(directory) / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-builtin",
                    "-o", library, SHIM], check=True)
    return library


class Shim:
    """The preloaded library, and the file by which it is told what is to fail."""

    def __init__(self, library, directory, modules):
        self.library = library
        self.path = pathlib.Path(directory) / "faults"
        self.modules = modules
        self.path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with open(self.path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)
        self.control = _Control.from_buffer(self.map)

    @property
    def environment(self):
        """For the program."""
        options = os.environ.get("ASAN_OPTIONS", "")
        return {"LD_PRELOAD": str(self.library), "VFU_FAULTS": str(self.path),
                "VFU_FAULTS_IN": ":".join(self.modules),
                "ASAN_OPTIONS": f"{options}:verify_asan_link_order=0"}

    def arm(self, fault):
        self.disarm()
        self.control.failed = 0
        self.control.error = fault.error
        self.control.skip = fault.skip
        self.control.left = fault.left
        self.control.armed = fault.site + 1

    def disarm(self):
        self.control.armed = 0

    @property
    def failed(self):
        """How many calls have failed."""
        return self.control.failed

    def calls(self):
        """How often each site has been passed so far."""
        return [site.calls for site in self.control.sites[:self.control.nr_sites]]

    def function(self, site):
        return self.control.sites[site].function.decode()

    def place(self, site):
        """(module, offset) of the call."""
        found = self.control.sites[site]
        return found.module.decode(), found.offset


class Names:
    """Sites as a person reads them: function, file and line of the call."""

    def __init__(self, shim, build):
        self.shim = shim
        self.files = {}
        for path in sorted(pathlib.Path(build).glob("*/*")):
            if path.is_file() and os.access(path, os.X_OK):
                self.files.setdefault(path.name, path)
        self.names = {}

    def __getitem__(self, site):
        if site not in self.names:
            module, offset = self.shim.place(site)
            self.names[site] = f"{self.shim.function(site)} at {self._line(module, offset)}"
        return self.names[site]

    def _line(self, module, offset):
        addr2line = shutil.which("addr2line")
        if module not in self.files or addr2line is None:
            return f"{module}+{offset:#x}"
        # The return address is behind the call.
        line = subprocess.run([addr2line, "-sfpie", self.files[module], hex(offset - 1)],
                              stdout=subprocess.PIPE, text=True, check=False).stdout
        return " <- ".join(part.replace(" (inlined by) ", "") for part in line.strip().split("\n"))
