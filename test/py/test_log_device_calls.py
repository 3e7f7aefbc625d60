# SPDX-License-Identifier: BSD-3-Clause
"""Each refused DMA or IOMMU call of the device leaves one line that says why."""

import contextlib
import errno

import pytest

from test_api_iommu import RW, Access, Guarded, setup_iommu
from vfiouser.api import abi
from vfiouser.api.abi import PASID_EXEC, PROT_READ
from vfiouser.software_iommu import PAGE

LOG_ERR, LOG_INFO = 3, 6


@contextlib.contextmanager
def refused(device, error, reason, level=LOG_INFO):
    """The body is refused with this errno and leaves one line with the reason."""
    lines = []
    device.setup_log(lambda *line: lines.append((line[0], line[1].decode())), LOG_INFO)
    with pytest.raises(OSError) as info:
        yield
    assert info.value.errno == error, info.value
    assert len(lines) == 1 and lines[0][0] == level and reason in lines[0][1], lines
    device.setup_log(None, LOG_INFO)


# Without an IOMMU


def test_without_dma(device):
    with refused(device, errno.EINVAL, "vfu_setup_device_dma() was not called", LOG_ERR):
        device.sgl(0, 8)
    with refused(device, errno.ENOTCONN, "vfu_setup_device_dma() first", LOG_ERR):
        setup_iommu(device)


def test_scatter_lists(workshop, device):
    device.setup_dma()
    client = workshop.attach(device)
    client.add_memory(0x10000, PAGE, share=False)
    client.add_memory(0x20000, PAGE, writable=False)
    with refused(device, errno.ENOENT, "address 0x11000, 0x8 bytes, is not mapped"):
        device.sgl(0x10FF8, 16)
    with refused(device, errno.EACCES, "address 0x20000, 0x8 bytes, is not mapped for this"):
        device.sgl(0x20000, 8, prot=RW)
    with refused(device, errno.EFAULT, "cannot be mapped"):
        device.sgl_get(device.sgl(0x10000, 8))
    readable = device.sgl(0x10000, 8, prot=PROT_READ)
    with refused(device, errno.EPERM, "not made for writing"):
        device.sgl_write(readable, bytes(8))
    with refused(device, errno.EINVAL, "unknown flags", LOG_ERR):
        device.sgl_read(readable, flags=2)
    client.close()
    with pytest.raises(OSError):
        device.run()
    with refused(device, errno.ESTALE, "unmapped meanwhile"):
        device.sgl_read(readable)


# With one


def test_without_iommu(workshop, device):
    device.setup_dma()
    workshop.attach(device)
    request = Access(type("Dev", (), {"device": device, "lib": device.lib, "ctx": device.ctx}))
    for call in (request.start,
                 lambda: device.lib.vfu_page_request(device.ctx, 1, 0, None, 0,
                                                     abi.PAGES_CAME(lambda *_: None), None)):
        with refused(device, errno.EINVAL, "vfu_setup_device_iommu() was not called", LOG_ERR):
            call()


@pytest.mark.parametrize("config,reason", [
    ({"size": 8}, "size is 8"), ({"pasid_bits": 21}, "pasid_bits 21"),
    ({"pri": True}, "PRI without ATS")])
def test_bad_configuration(device, config, reason):
    device.pci_init()
    device.setup_dma()
    with refused(device, errno.EINVAL, reason, LOG_ERR):
        setup_iommu(device, **config)


BAD_REQUESTS = {
    "empty": ({"length": 0}, "empty or wraps"),
    "prot": ({"prot": 0}, "prot is neither"),
    "room": ({"room": 0}, "no room"),
    "PASID": ({"pasid": 1 << 20}, "out of range"),
    "attributes": ({"attrs": PASID_EXEC}, "no PASID that they belong to"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request(workshop, name):
    arguments, reason = BAD_REQUESTS[name]
    dev = Guarded(workshop).on()
    with refused(dev.device, errno.EINVAL, reason, LOG_ERR):
        Access(dev, **arguments).start()


def test_pasid_left_at_0(workshop):
    dev = Guarded(workshop, pasid_bits=0).attach()
    with refused(dev.device, errno.EINVAL, "VFU_NO_PASID is needed", LOG_ERR):
        Access(dev, pasid=0).start()


def fault(dev, error, reason, **arguments):
    access = Access(dev, **arguments)
    with refused(dev.device, error, reason):
        raise OSError(access.resolve(), "")


def test_pasid_off(workshop):
    fault(Guarded(workshop).attach(), errno.EPERM, "has not enabled PASIDs", pasid=3)


def test_not_mapped(workshop):
    dev = Guarded(workshop).on()
    fault(dev, errno.EFAULT, "fails at 0x100000: not mapped", pasid=3, flags=abi.NO_TRANSLATE)


def test_not_present(workshop):
    dev = Guarded(workshop).on()
    fault(dev, errno.EFAULT, "no page is requested", pasid=3, flags=abi.NO_FAULT)
    fault(dev, errno.EFAULT, "the client does not give", pasid=3)


def test_pri_without_allocation(workshop):
    dev = Guarded(workshop).attach()
    dev.iommu.register_memory(True)
    dev.probe.enable_pasid()
    dev.probe.enable_ats()
    dev.probe.enable_pri(0)
    fault(dev, errno.EFAULT, "an allocation of 0", pasid=3)
