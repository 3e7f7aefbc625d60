# SPDX-License-Identifier: BSD-3-Clause
"""
The interface for authors of devices in terms of ctypes, written from libvfio-user.h and
libvfio-user-iommu.h: constants, structures, callback types and the prototype of every function.
"""

import ctypes
from ctypes import (CFUNCTYPE, POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t,
                    c_ssize_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p)

NB = 1
TRANS_SOCK, TRANS_PIPE = 0, 1
DEV_PCI = 0

# Regions
READ, WRITE, RW, MEM, ALWAYS_CB, BITS_64, PREFETCH = 1, 2, 3, 4, 8, 16, 32

# Reset types
RESET_DEVICE, RESET_LOST_CONN, RESET_FLR = 0, 1, 2

# Migration states as the device sees them
STOP, RUNNING, STOP_AND_COPY, PRE_COPY, RESUME = range(5)
MIGR_VERS = 2

# PCI
CONVENTIONAL, PCI_X_1, PCI_X_2, EXPRESS = range(4)
CAP_EXTENDED, CAP_CALLBACK, CAP_READONLY = 1, 2, 4

PROT_READ, PROT_WRITE = 1, 2
DIRECT = 1
MAX_DMA_REGIONS = 1000 * 1000

# IOMMU
NO_PASID = 0xFFFFFFFF
PASID_EXEC, PASID_PRIV = 1, 2
NO_FAULT, NO_TRANSLATE = 1, 2


class Iovec(Structure):
    _fields_ = [("iov_base", c_void_p), ("iov_len", c_size_t)]


class DmaInfo(Structure):
    _fields_ = [("iova", Iovec), ("vaddr", c_void_p), ("mapping", Iovec), ("page_size", c_size_t),
                ("prot", c_uint32)]


class Sg(Structure):
    """The five fields that existing programs read; the entry's identity is opaque."""
    _fields_ = [("dma_addr", c_void_p), ("region", c_void_p), ("length", c_uint64),
                ("offset", c_uint64), ("writeable", c_bool), ("_private", c_uint8 * 7)]


class IommuState(Structure):
    _fields_ = [("pasid", c_bool), ("exec", c_bool), ("priv", c_bool), ("ats", c_bool),
                ("pri", c_bool), ("page_shift", c_uint32)]


class Translation(Structure):
    _fields_ = [("first", c_uint64), ("last", c_uint64), ("translated", c_uint64),
                ("perm", c_uint32)]


class PageRange(Structure):
    _fields_ = [("addr", c_uint64), ("nr_pages", c_uint32), ("perm", c_uint32)]


class IommuStats(Structure):
    _fields_ = [(name, c_uint64) for name in (
        "atc_hits atc_misses atc_entries atc_evictions translations translations_joined "
        "translations_discarded invalidations invalidations_pending page_requests page_groups "
        "page_groups_pending page_requests_joined page_failures faults protocol_errors "
        "late_replies").split()]


def callback(result, *args):
    """The type of a callback; its first argument is always the context."""
    return CFUNCTYPE(result, c_void_p, *args, use_errno=True)


LOG = callback(None, c_int, c_char_p)
REGION_ACCESS = callback(c_ssize_t, c_void_p, c_size_t, c_int64, c_bool)
QUIESCE = callback(c_int)
RESET = callback(c_int, c_int)
DMA_REGISTER = callback(None, POINTER(DmaInfo))
IRQ_STATE = callback(None, c_uint32, c_uint32, c_bool)
TRANSITION = callback(c_int, c_int)
MIGRATION_DATA = callback(c_ssize_t, c_void_p, c_uint64)
INVALIDATE = callback(c_int, c_uint32, c_bool, c_uint64, c_uint64, c_void_p)
IOMMU_STATE = callback(None, POINTER(IommuState))
TRANSLATED = callback(None, c_void_p, c_int, POINTER(Translation))
PAGES_CAME = callback(None, c_void_p, c_int, c_uint32)


class ClientInfo(Structure):
    _fields_ = [("pid", c_int), ("uid", c_uint32), ("gid", c_uint32)]


CLIENT = callback(c_int, POINTER(ClientInfo), c_void_p)


class MigrationCallbacks(Structure):
    _fields_ = [("version", c_int), ("transition", TRANSITION), ("read_data", MIGRATION_DATA),
                ("write_data", MIGRATION_DATA)]


class IommuConfig(Structure):
    _fields_ = [("size", c_size_t), ("pasid_bits", c_uint32), ("pasid_exec", c_bool),
                ("pasid_priv", c_bool), ("ats", c_bool), ("ats_queue_depth", c_uint32),
                ("ats_page_shift", c_uint32), ("ats_max_entries", c_uint32),
                ("atc_entries", c_size_t), ("pri", c_bool), ("pri_max_requests", c_uint32),
                ("pri_timeout_ms", c_uint32), ("retries", c_uint32), ("invalidate", INVALIDATE),
                ("state", IOMMU_STATE)]


class DmaRequest(Structure):
    pass


DONE = callback(None, POINTER(DmaRequest), c_int)
REVOKED = callback(None, POINTER(DmaRequest))
DmaRequest._fields_ = [
    ("addr", c_uint64), ("len", c_uint64), ("pasid", c_uint32), ("attrs", c_uint32),
    ("prot", c_int), ("flags", c_uint32), ("sgl", POINTER(Sg)), ("iov", POINTER(Iovec)),
    ("max_nr_sgs", c_size_t), ("pvt", c_void_p), ("done", DONE), ("revoked", REVOKED),
    ("nr_sgs", c_size_t), ("fault_addr", c_uint64), ("priv", c_uint64 * 24)]

CTX, SGL, REQ = c_void_p, POINTER(Sg), POINTER(DmaRequest)

# name: (how it fails, result, arguments...)
INT, POINTER_OR_NULL, OFFSET_OR_0, NEVER = "int", "pointer", "offset", "never"
PROTOTYPES = {
    "vfu_create_ctx": (POINTER_OR_NULL, c_void_p, c_int, c_char_p, c_int, c_void_p, c_int),
    "vfu_destroy_ctx": (NEVER, None, CTX),
    "vfu_realize_ctx": (INT, c_int, CTX),
    "vfu_attach_ctx": (INT, c_int, CTX),
    "vfu_run_ctx": (INT, c_int, CTX),
    "vfu_get_poll_fd": (INT, c_int, CTX),
    "vfu_get_private": (NEVER, c_void_p, CTX),
    # Variadic: c_int and c_char_p are what the tests pass.
    "vfu_log": (NEVER, None, CTX, c_int, c_char_p),
    "vfu_setup_log": (INT, c_int, CTX, LOG, c_int),
    "vfu_setup_region": (INT, c_int, CTX, c_int, c_size_t, REGION_ACCESS, c_int, POINTER(Iovec),
                         c_uint32, c_int, c_uint64),
    "vfu_create_ioeventfd": (INT, c_int, CTX, c_uint32, c_int, c_size_t, c_uint32, c_uint32,
                             c_uint64, c_int, c_size_t),
    "vfu_setup_device_reset_cb": (INT, c_int, CTX, RESET),
    "vfu_setup_device_quiesce_cb": (NEVER, None, CTX, QUIESCE),
    "vfu_device_quiesced": (INT, c_int, CTX, c_int),
    "vfu_setup_device_dma": (INT, c_int, CTX, c_size_t, DMA_REGISTER, DMA_REGISTER),
    "vfu_setup_device_dma_v0": (INT, c_int, CTX, DMA_REGISTER, DMA_REGISTER),
    "dma_sg_size": (NEVER, c_size_t),
    "vfu_addr_to_sgl": (INT, c_int, CTX, c_void_p, c_size_t, SGL, c_size_t, c_int),
    "vfu_sgl_get": (INT, c_int, CTX, SGL, POINTER(Iovec), c_size_t, c_int),
    "vfu_sgl_mark_dirty": (NEVER, None, CTX, SGL, c_size_t),
    "vfu_sgl_put": (NEVER, None, CTX, SGL, POINTER(Iovec), c_size_t),
    "vfu_sgl_read": (INT, c_int, CTX, SGL, c_size_t, c_void_p, c_int),
    "vfu_sgl_read_v0": (INT, c_int, CTX, SGL, c_size_t, c_void_p),
    "vfu_sgl_write": (INT, c_int, CTX, SGL, c_size_t, c_void_p, c_int),
    "vfu_sgl_write_v0": (INT, c_int, CTX, SGL, c_size_t, c_void_p),
    "vfu_sg_is_mappable": (NEVER, c_bool, CTX, SGL),
    "vfu_setup_device_nr_irqs": (INT, c_int, CTX, c_int, c_uint32),
    "vfu_setup_irq_state_callback": (INT, c_int, CTX, c_int, IRQ_STATE),
    "vfu_irq_trigger": (INT, c_int, CTX, c_uint32),
    "vfu_irq_trigger_type": (INT, c_int, CTX, c_int, c_uint32),
    "vfu_setup_client_cb": (INT, c_int, CTX, CLIENT, c_void_p),
    "vfu_set_region_file": (INT, c_int, CTX, c_int, c_int, c_uint64),
    "vfu_remove_ioeventfds": (INT, c_int, CTX, c_uint32),
    "vfu_setup_device_keep_state": (NEVER, None, CTX, c_bool),
    "vfu_setup_device_migrate_state": (NEVER, None, CTX, c_bool),
    "vfu_setup_device_migration_callbacks": (INT, c_int, CTX, POINTER(MigrationCallbacks)),
    "vfu_pci_init": (INT, c_int, CTX, c_int, c_int, c_int),
    "vfu_pci_set_id": (NEVER, None, CTX, c_uint16, c_uint16, c_uint16, c_uint16),
    "vfu_pci_set_class": (NEVER, None, CTX, c_uint8, c_uint8, c_uint8),
    # NULL is an answer, not a failure.
    "vfu_pci_get_config_space": (NEVER, c_void_p, CTX),
    "vfu_pci_add_capability": (INT, c_ssize_t, CTX, c_size_t, c_int, c_void_p),
    "vfu_pci_find_capability": (OFFSET_OR_0, c_size_t, CTX, c_bool, c_int),
    "vfu_pci_find_next_capability": (OFFSET_OR_0, c_size_t, CTX, c_bool, c_size_t, c_int),
    "vfu_setup_device_iommu": (INT, c_int, CTX, POINTER(IommuConfig)),
    "vfu_iommu_get_state": (NEVER, None, CTX, POINTER(IommuState)),
    "vfu_addr_to_sgl_pasid": (INT, c_int, CTX, c_void_p, c_uint32, c_size_t, SGL, c_size_t, c_int),
    "vfu_dma_resolve": (INT, c_int, CTX, REQ),
    "vfu_dma_resolve_wait": (INT, c_int, CTX, REQ),
    "vfu_dma_move": (INT, c_int, CTX, REQ, c_uint64, c_void_p, c_size_t, c_bool),
    "vfu_dma_release": (NEVER, None, CTX, REQ),
    "vfu_dma_cancel": (INT, c_int, CTX, REQ),
    "vfu_dma_read": (INT, c_int, CTX, REQ, c_void_p),
    "vfu_dma_write": (INT, c_int, CTX, REQ, c_void_p),
    "vfu_ats_translate": (INT, c_int, CTX, c_uint32, c_uint32, c_uint64, c_bool, TRANSLATED,
                          c_void_p),
    "vfu_page_request": (INT, c_int, CTX, c_uint32, c_uint32, POINTER(PageRange), c_size_t,
                         PAGES_CAME, c_void_p),
    "vfu_pasid_stop": (INT, c_int, CTX, c_uint32),
    "vfu_invalidate_done": (NEVER, None, CTX, c_void_p),
    "vfu_iommu_get_stats": (NEVER, None, CTX, POINTER(IommuStats)),
    # -1 says that there is no deadline.
    "vfu_next_timeout": (NEVER, c_int, CTX),
    "vfu_get_event_fd": (INT, c_int, CTX),
    "vfu_set_limit": (INT, c_int, CTX, c_uint32, c_uint64),
    "vfu_get_limit": (NEVER, c_uint64, CTX, c_uint32),
    "vfu_set_memory_files": (INT, c_int, CTX, c_char_p),
}

LIMIT_QUEUED_OUTPUT, LIMIT_OUTPUT_TIME, LIMIT_VERSION_TIME = 5, 6, 7

# A function of the device that the interface does not call back.
NULL = {kind: ctypes.cast(None, kind) for kind in (
    LOG, REGION_ACCESS, QUIESCE, RESET, DMA_REGISTER, IRQ_STATE, TRANSITION, MIGRATION_DATA,
    INVALIDATE, IOMMU_STATE, TRANSLATED, PAGES_CAME, DONE, REVOKED, CLIENT)}
