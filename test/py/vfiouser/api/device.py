# SPDX-License-Identifier: BSD-3-Clause
"""A context of the library with Python functions as callbacks."""

import ctypes
import errno
import os
import tempfile

from . import abi


class Device:
    """
    What the library does not take as an argument is kept here: callbacks live as long as the
    context. A callback that raises OSError fails with its errno; any other exception goes to
    broken, which must be empty at the end of a test. Calls of the standard callbacks, those that
    record() makes, go to events as tuples.
    """

    def __init__(self, lib, flags=abi.NB, trans=abi.TRANS_SOCK, path=None, pvt=None,
                 dev_type=abi.DEV_PCI):
        self.lib = lib
        self.ctx = None
        self.attached = False
        self.events = []
        self.broken = []
        self._kept = []
        self.directory = None
        if path is None:
            self.directory = tempfile.TemporaryDirectory(prefix="vfu-test-")
            path = os.path.join(self.directory.name, "socket")
        self.path = path
        try:
            self.ctx = lib.vfu_create_ctx(trans, os.fsencode(path), flags, pvt, dev_type)
        except OSError:
            self._clean()
            raise

    def _clean(self):
        if self.directory:
            self.directory.cleanup()

    def destroy(self):
        if self.ctx:
            self.lib.vfu_destroy_ctx(self.ctx)
            self.ctx = None
            self._clean()

    # Callbacks

    def wrap(self, kind, function):
        """A pointer to a function that calls this one, or NULL."""
        if function is None:
            return abi.NULL[kind]
        returns = kind._restype_ is not None

        def call(ctx, *args):
            try:
                assert ctx == self.ctx, "another context"
                result = function(*args)
                return result or 0 if returns else None
            except OSError as error:
                ctypes.set_errno(error.errno)
            except BaseException as error:  # pylint: disable=broad-except
                self.broken.append(error)
                ctypes.set_errno(errno.EIO)
            return -1 if returns else None

        pointer = kind(call)
        self._kept.append(pointer)
        return pointer

    def keep(self, thing):
        """Keeps memory that the library refers to."""
        self._kept.append(thing)
        return thing

    def take_events(self):
        events, self.events = self.events, []
        return events

    def record(self, name, result=None):
        """A callback that notes its arguments; result(*args) gives its result."""
        def call(*args):
            self.events.append((name, *args))
            return result(*args) if result else None
        return call

    # Set-up

    def setup_region(self, index, size=0x1000, access=None, flags=abi.RW, areas=None, nr_areas=None,
                     fd=-1, offset=0):
        """areas are (offset, length); None passes NULL."""
        array = None
        if areas is not None:
            array = (abi.Iovec * len(areas))(*(abi.Iovec(*area) for area in areas))
        if nr_areas is None:
            nr_areas = len(areas) if areas else 0
        return self.lib.vfu_setup_region(self.ctx, index, size,
                                         self.wrap(abi.REGION_ACCESS, access), flags, array,
                                         nr_areas, fd, offset)

    def memory_region(self, index, size=0x1000, flags=abi.RW, **kwargs):
        """A region backed by the bytearray that is returned; accesses are events."""
        data = bytearray(size)

        def access(buf, count, offset, is_write):
            self.events.append(("region", index, offset, count, is_write))
            if is_write:
                data[offset:offset + count] = ctypes.string_at(buf, count)
            else:
                ctypes.memmove(buf, bytes(data[offset:offset + count]), count)
            return count

        self.setup_region(index, size, access, flags, **kwargs)
        return data

    def setup_quiesce(self, function):
        self.lib.vfu_setup_device_quiesce_cb(self.ctx, self.wrap(abi.QUIESCE, function))

    def setup_reset(self, function):
        return self.lib.vfu_setup_device_reset_cb(self.ctx, self.wrap(abi.RESET, function))

    def setup_dma(self, max_regions=64, register=None, unregister=None):
        """What the callbacks get are copies."""
        def copied(function):
            return function and (lambda info: function(abi.DmaInfo.from_buffer_copy(info[0])))
        return self.lib.vfu_setup_device_dma(
            self.ctx, max_regions, self.wrap(abi.DMA_REGISTER, copied(register)),
            self.wrap(abi.DMA_REGISTER, copied(unregister)))

    def setup_irqs(self, irq_type, count):
        return self.lib.vfu_setup_device_nr_irqs(self.ctx, irq_type, count)

    def setup_irq_state(self, irq_type, function):
        return self.lib.vfu_setup_irq_state_callback(self.ctx, irq_type,
                                                     self.wrap(abi.IRQ_STATE, function))

    def setup_migration(self, transition=None, read_data=None, write_data=None,
                        version=abi.MIGR_VERS):
        callbacks = abi.MigrationCallbacks(
            version, self.wrap(abi.TRANSITION, transition),
            self.wrap(abi.MIGRATION_DATA, read_data), self.wrap(abi.MIGRATION_DATA, write_data))
        return self.lib.vfu_setup_device_migration_callbacks(self.ctx, ctypes.byref(callbacks))

    def setup_log(self, function, level):
        return self.lib.vfu_setup_log(self.ctx, self.wrap(abi.LOG, function), level)

    def add_ioeventfd(self, region, fd, offset=0, size=4, flags=0, datamatch=0, shadow_fd=-1,
                      shadow_offset=0):
        return self.lib.vfu_create_ioeventfd(self.ctx, region, fd, offset, size, flags, datamatch,
                                             shadow_fd, shadow_offset)

    def setup_client(self, function, arg=None):
        """What the callback gets is (pid, uid, gid), and arg."""
        def copied(client, arg):
            return function((client[0].pid, client[0].uid, client[0].gid), arg)
        return self.lib.vfu_setup_client_cb(
            self.ctx, self.wrap(abi.CLIENT, function and copied), arg)

    def set_region_file(self, region, fd, offset=0):
        return self.lib.vfu_set_region_file(self.ctx, region, fd, offset)

    def remove_ioeventfds(self, region):
        return self.lib.vfu_remove_ioeventfds(self.ctx, region)

    # PCI

    def pci_init(self, kind=abi.EXPRESS, hdr_type=0, revision=0):
        return self.lib.vfu_pci_init(self.ctx, kind, hdr_type, revision)

    def add_capability(self, data, pos=0, flags=0):
        buf = ctypes.create_string_buffer(bytes(data), len(data))
        return self.lib.vfu_pci_add_capability(self.ctx, pos, flags, buf)

    @property
    def config(self):
        """The first 256 bytes of configuration space, as they are in memory."""
        return (ctypes.c_uint8 * 256).from_address(self.lib.vfu_pci_get_config_space(self.ctx))

    def config_int(self, offset, size):
        return int.from_bytes(bytes(self.config[offset:offset + size]), "little")

    # Life

    def realize(self):
        return self.lib.vfu_realize_ctx(self.ctx)

    def attach(self):
        self.lib.vfu_attach_ctx(self.ctx)
        self.attached = True

    def run(self):
        try:
            return self.lib.vfu_run_ctx(self.ctx)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                self.attached = False
            raise

    def step(self):
        """What an event loop does with a context that can be polled."""
        if self.attached:
            return self.run()
        self.attach()
        return 0

    def quiesced(self, error=0):
        return self.lib.vfu_device_quiesced(self.ctx, error)

    @property
    def poll_fd(self):
        return self.lib.vfu_get_poll_fd(self.ctx)

    @property
    def event_fd(self):
        return self.lib.vfu_get_event_fd(self.ctx)

    # DMA

    def sgl(self, addr, length, room=8, prot=abi.PROT_READ | abi.PROT_WRITE):
        """The entries; a list shorter than what is needed raises E2BIG with the number."""
        array = (abi.Sg * max(room, 1))()
        count = self.lib.vfu_addr_to_sgl(self.ctx, addr, length, array, room, prot)
        if count < 0:
            raise OSError(errno.E2BIG, f"{-count - 1} entries are needed")
        return (abi.Sg * count).from_buffer(array)

    def sgl_get(self, sgl, flags=0):
        iov = (abi.Iovec * len(sgl))()
        self.lib.vfu_sgl_get(self.ctx, sgl, iov, len(sgl), flags)
        return iov

    def sgl_put(self, sgl, iov=None):
        self.lib.vfu_sgl_put(self.ctx, sgl, iov or (abi.Iovec * len(sgl))(), len(sgl))

    def sgl_read(self, sgl, flags=0, count=None):
        """The bytes behind the first count entries."""
        count = len(sgl) if count is None else count
        buf = ctypes.create_string_buffer(sum(sg.length for sg in sgl))
        self.lib.vfu_sgl_read(self.ctx, sgl, count, buf, flags)
        return buf.raw

    def sgl_write(self, sgl, data, flags=0, count=None):
        count = len(sgl) if count is None else count
        return self.lib.vfu_sgl_write(self.ctx, sgl, count, bytes(data), flags)
