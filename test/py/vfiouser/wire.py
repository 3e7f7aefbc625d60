# SPDX-License-Identifier: BSD-3-Clause
"""The vfio-user wire format as tables: commands, flags and the layout of every message."""

import enum
import struct
from types import SimpleNamespace


class Layout:
    """A packed structure in host byte order, described as "name:format name:format ..."."""

    def __init__(self, fields):
        pairs = [field.split(":") for field in fields.split()]
        self.names = [name for name, _ in pairs]
        self._struct = struct.Struct("=" + "".join(fmt for _, fmt in pairs))
        self.size = self._struct.size

    def pack(self, **values):
        unknown = set(values) - set(self.names)
        if unknown:
            raise TypeError(f"no such field: {sorted(unknown)}")
        return self._struct.pack(*(values.get(name, 0) for name in self.names))

    def unpack(self, data, offset=0):
        return SimpleNamespace(**dict(zip(self.names, self._struct.unpack_from(data, offset))))

    def unpack_array(self, data, count):
        return [self.unpack(data, i * self.size) for i in range(count)]


class Cmd(enum.IntEnum):
    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18
    ATS_TRANSLATE = 64
    ATS_INVALIDATE = 65
    PAGE_REQUEST = 66


HEADER = Layout("msg_id:H cmd:H msg_size:I flags:I error_no:I")
VERSION = Layout("major:H minor:H")
DMA_MAP = Layout("argsz:I flags:I offset:Q addr:Q size:Q")
DMA_UNMAP = Layout("argsz:I flags:I addr:Q size:Q")
BITMAP = Layout("pgsize:Q size:Q")
DEVICE_INFO = Layout("argsz:I flags:I num_regions:I num_irqs:I")
REGION_INFO = Layout("argsz:I flags:I index:I cap_offset:I size:Q offset:Q")
CAP_HEADER = Layout("id:H version:H next:I")
SPARSE_MMAP = Layout("id:H version:H next:I nr_areas:I reserved:I")
SPARSE_AREA = Layout("offset:Q size:Q")
REGION_IO_FDS = Layout("argsz:I flags:I index:I count:I")
IOEVENTFD = Layout("gpa_offset:Q size:Q fd_index:I type:I flags:I shadow_mem_fd_index:I "
                   "shadow_offset:Q datamatch:Q")
IRQ_INFO = Layout("argsz:I flags:I index:I count:I")
IRQ_SET = Layout("argsz:I flags:I index:I start:I count:I")
REGION_ACCESS = Layout("offset:Q region:I count:I")
DMA_ACCESS = Layout("addr:Q count:Q")
WRITE_MULTI = Layout("wr_cnt:Q")
WRITE_MULTI_ENTRY = Layout("offset:Q region:I count:I data:8s")
FEATURE = Layout("argsz:I flags:I")
FEATURE_MIGRATION = Layout("flags:Q")
FEATURE_MIG_STATE = Layout("device_state:I data_fd:I")
LOGGING_CONTROL = Layout("page_size:Q num_ranges:I reserved:I")
LOGGING_REPORT = Layout("iova:Q length:Q page_size:Q")
MIG_DATA = Layout("argsz:I size:I")
PASID_PREFIX = Layout("pasid:I attrs:I")
ATS_TRANSLATE = Layout("argsz:I flags:I address:Q length:Q")
ATS_REPLY = Layout("argsz:I flags:I nr_entries:I reserved:I")
ATS_ENTRY = Layout("address:Q translated:Q length:Q perm:I reserved:I")
ATS_INVALIDATE = Layout("argsz:I flags:I address:Q length:Q")
PAGE_REQUEST = Layout("argsz:I flags:I group:H reserved:H nr_entries:I")
PAGE_REQUEST_ENTRY = Layout("address:Q nr_pages:I perm:I")
PAGE_RESPONSE = Layout("argsz:I group:H code:H")

# The fixed part of each request that a client sends; a shorter payload is malformed.
CLIENT_REQUESTS = {
    Cmd.DMA_MAP: DMA_MAP,
    Cmd.DMA_UNMAP: DMA_UNMAP,
    Cmd.DEVICE_GET_INFO: DEVICE_INFO,
    Cmd.DEVICE_GET_REGION_INFO: REGION_INFO,
    Cmd.DEVICE_GET_REGION_IO_FDS: REGION_IO_FDS,
    Cmd.DEVICE_GET_IRQ_INFO: IRQ_INFO,
    Cmd.DEVICE_SET_IRQS: IRQ_SET,
    Cmd.REGION_READ: REGION_ACCESS,
    Cmd.REGION_WRITE: REGION_ACCESS,
    Cmd.REGION_WRITE_MULTI: WRITE_MULTI,
    Cmd.DEVICE_FEATURE: FEATURE,
    Cmd.MIG_DATA_READ: MIG_DATA,
    Cmd.MIG_DATA_WRITE: MIG_DATA,
}

# Header flags
TYPE_MASK = 0xF
COMMAND = 0
REPLY = 1
NO_REPLY = 0x10
ERROR = 0x20
F_PASID = 1 << 8
F_TRANSLATED = 1 << 9

# DMA_MAP flags
MAP_READ, MAP_WRITE, MAP_MMAP, MAP_FILE_IO = 1, 2, 4, 8
MAP_RW = MAP_READ | MAP_WRITE

# DMA_UNMAP flags
UNMAP_GET_DIRTY, UNMAP_ALL = 1, 2

# Region info flags and capability ids
REGION_READ, REGION_WRITE, REGION_MMAP, REGION_CAPS = 1, 2, 4, 8
CAP_SPARSE_MMAP = 1

# Region indexes of a PCI device
BAR0, ROM, CONFIG, VGA, NUM_REGIONS = 0, 6, 7, 8, 9

# Interrupt indexes
INTX, MSI, MSIX, ERR, REQ, NUM_IRQS = 0, 1, 2, 3, 4, 5

# SET_IRQS flags: one data type, one action
DATA_NONE, DATA_BOOL, DATA_EVENTFD = 1, 2, 4
ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER = 8, 16, 32

# DEVICE_FEATURE
FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 1 << 16, 1 << 17, 1 << 18
(FEAT_MIGRATION, FEAT_MIG_STATE, FEAT_LOGGING_START, FEAT_LOGGING_STOP,
 FEAT_LOGGING_REPORT) = 1, 2, 6, 7, 8

# IOMMU extension
ATS_NO_WRITE = 1
(PERM_READ, PERM_WRITE, PERM_EXEC, PERM_PRIV, PERM_GLOBAL, PERM_UNTRANSLATED,
 PERM_NO_SNOOP) = 1, 2, 4, 8, 16, 32, 64
PERM_RW = PERM_READ | PERM_WRITE
PASID_EXEC, PASID_PRIV = 1, 2
INV_GLOBAL, INV_ALL = 1, 2
PAGE_LAST, PAGE_STOP = 1, 2
PAGE_SUCCESS, PAGE_INVALID, PAGE_FAILURE = 0, 1, 15

MAX_DATA_XFER = 1 << 20
MAX_MESSAGE = HEADER.size + REGION_ACCESS.size + MAX_DATA_XFER


def message(cmd, payload=b"", msg_id=1, flags=COMMAND, error_no=0, msg_size=None):
    """The bytes of one message; msg_size lies when it is given."""
    size = HEADER.size + len(payload) if msg_size is None else msg_size
    return HEADER.pack(msg_id=msg_id, cmd=cmd, msg_size=size, flags=flags,
                       error_no=error_no) + payload
