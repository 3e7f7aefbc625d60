# SPDX-License-Identifier: BSD-3-Clause
"""The NVMe controller's PCI functions and registers, and starting and stopping it (3.1, 7.6)."""

import pytest

from vfiouser.client import VfioUserError
from vfiouser.nvme_spec import (ACQ, ADMIN_IDENTIFY, AQA, ASQ, CAP, CC, CC_ENABLE, CC_IO_ENTRIES,
                                CC_SHN_ABRUPT, CC_SHN_NORMAL, CNS_CONTROLLER, CSTS, CSTS_CFS,
                                CSTS_RDY, CSTS_SHST_DONE, CSTS_SHST_MASK, DOORBELLS, INTMC, INTMS,
                                NSSR, SUCCESS, VS)
from vfiouser.wire import BAR0, CONFIG, MSI, MSIX


def test_class_code(nvme):
    assert nvme.client.read_int(CONFIG, 0x08, 4) >> 8 == 0x010802


def test_bar0_is_64_bit_memory(nvme):
    assert nvme.client.read_int(CONFIG, 0x10, 4) & 0xF == 0x4
    info, _ = nvme.client.region_info(BAR0)
    assert info.size >= 0x2000 and info.size & (info.size - 1) == 0


@pytest.mark.parametrize("cap_id", [0x01, 0x10, 0x11])
def test_capabilities(nvme, cap_id):
    """Power management, PCI Express and MSI-X (2.2 to 2.5)."""
    assert nvme.find_capability(cap_id)


def test_interrupts(nvme):
    assert nvme.client.irq_info(MSIX).count >= 2
    assert nvme.client.irq_info(MSI).count >= 1
    assert nvme.client.irq_info(0).count == 1


def test_msix_table_has_the_vectors(nvme):
    at = nvme.find_capability(0x11)
    assert (nvme.client.read_int(CONFIG, at + 2, 2) & 0x7FF) + 1 == nvme.client.irq_info(MSIX).count


def test_cap(nvme):
    cap = nvme.cap
    assert cap.css & 1, "the NVM command set"
    assert cap.mpsmin == 0 and cap.mpsmax >= cap.mpsmin
    assert cap.mqes >= 1
    assert cap.dstrd == 0


def test_version(nvme):
    assert nvme.read(VS) == 0x00010400


def test_registers_of_8_bytes_in_halves(nvme):
    assert nvme.read(CAP) | nvme.read(CAP + 4) << 32 == nvme.read(CAP, 8)
    nvme.write(ASQ, 0x12345000)
    nvme.write(ASQ + 4, 0x9)
    assert nvme.read(ASQ, 8) == 0x912345000


@pytest.mark.parametrize("register, size", [(CAP, 8), (VS, 4), (CSTS, 4)])
def test_read_only(nvme, register, size):
    before = nvme.read(register, size)
    nvme.write(register, (1 << 8 * size) - 1, size)
    assert nvme.read(register, size) == before


@pytest.mark.parametrize("register, value, size, seen", [
    (AQA, 0xFFFFFFFF, 4, 0x0FFF0FFF),
    (ASQ, 0x123456789ABCDEF0, 8, 0x123456789ABCD000),
    (ACQ, 0xFFFFFFFFFFFFFFFF, 8, 0xFFFFFFFFFFFFF000),
])
def test_reserved_bits(nvme, register, value, size, seen):
    nvme.write(register, value, size)
    assert nvme.read(register, size) == seen


def test_interrupt_masks(nvme):
    nvme.write(INTMS, 0x5)
    nvme.write(INTMS, 0x2)
    assert nvme.read(INTMS) == nvme.read(INTMC) == 0x7
    nvme.write(INTMC, 0x6)
    assert nvme.read(INTMS) == nvme.read(INTMC) == 0x1


def test_start_and_stop(nvme):
    assert nvme.csts & CSTS_RDY == 0
    nvme.start()
    assert nvme.csts & (CSTS_RDY | CSTS_CFS) == CSTS_RDY
    assert nvme.read(CC) & CC_ENABLE
    nvme.disable()
    assert nvme.csts & CSTS_RDY == 0


def test_stopping_keeps_the_admin_queue_registers(nvme):
    nvme.start()
    before = nvme.read(AQA), nvme.read(ASQ, 8), nvme.read(ACQ, 8)
    nvme.disable()
    assert (nvme.read(AQA), nvme.read(ASQ, 8), nvme.read(ACQ, 8)) == before


def test_start_again_and_again(nvme):
    for _ in range(20):
        nvme.start()
        nvme.identify(CNS_CONTROLLER)


@pytest.mark.parametrize("how", [CC_SHN_NORMAL, CC_SHN_ABRUPT])
def test_shutdown(nvme, how):
    nvme.start_io()
    nvme.write(CC, CC_ENABLE | CC_IO_ENTRIES | how)
    nvme.poll(lambda: nvme.csts & CSTS_SHST_MASK == CSTS_SHST_DONE, "the shutdown does not end")
    nvme.start()
    assert nvme.csts & CSTS_SHST_MASK == 0
    nvme.identify(CNS_CONTROLLER)


def test_shutdown_of_a_controller_that_is_not_enabled(nvme):
    nvme.write(CC, CC_SHN_NORMAL)
    nvme.poll(lambda: nvme.csts & CSTS_SHST_MASK == CSTS_SHST_DONE, "the shutdown does not end")


@pytest.mark.parametrize("ready", [True, False])
def test_shutdown_is_over_when_enabled_again(nvme, ready):
    """A later one is carried out, also when the controller is being enabled still."""
    nvme.set_admin_queue()
    nvme.write(CC, CC_SHN_NORMAL)
    nvme.write(CC, 0)
    nvme.write(CC, CC_ENABLE | CC_IO_ENTRIES)
    if ready:
        nvme.wait_ready(1)
        assert nvme.csts & CSTS_SHST_MASK == 0
    nvme.write(CC, CC_ENABLE | CC_IO_ENTRIES | CC_SHN_NORMAL)
    nvme.poll(lambda: nvme.csts & CSTS_SHST_MASK == CSTS_SHST_DONE, "the shutdown does not end")
    nvme.wait_ready(1)


def test_no_subsystem_reset(nvme):
    """NSSR is for controllers that have it (3.1.7)."""
    nvme.start()
    if not nvme.cap.nssrs:
        nvme.write(NSSR, 0x4E564D65)
        assert nvme.csts & CSTS_RDY


@pytest.mark.parametrize("cc, aqa", [
    (CC_ENABLE | 15 << 7, 0x001F001F),  # memory page size
    (CC_ENABLE | 7 << 4, 0x001F001F),  # command set
    (CC_ENABLE | 7 << 11, 0x001F001F),  # arbitration
    (CC_ENABLE, 0),  # queues of one entry
])
def test_wrong_configuration(nvme, cc, aqa):
    """Undefined by the specification; a reset must make good of it."""
    nvme.set_admin_queue()
    nvme.write(AQA, aqa)
    nvme.write(CC, cc)
    nvme.poll(lambda: nvme.csts & (CSTS_RDY | CSTS_CFS), "neither ready nor fatal")
    nvme.start()
    nvme.identify(CNS_CONTROLLER)


def test_admin_queue_at_no_memory(nvme):
    nvme.set_admin_queue()
    nvme.write(ASQ, 0x7FFF0000000, 8)
    nvme.write(CC, CC_ENABLE)
    nvme.poll(lambda: nvme.csts & (CSTS_RDY | CSTS_CFS), "neither ready nor fatal")
    nvme.doorbell(0, 1)
    nvme.start()
    nvme.identify(CNS_CONTROLLER)


def test_admin_completions_at_no_memory(nvme):
    nvme.set_admin_queue()
    nvme.write(ACQ, 0x7FFF0000000, 8)
    nvme.write(CC, CC_ENABLE)
    nvme.poll(lambda: nvme.csts & (CSTS_RDY | CSTS_CFS), "neither ready nor fatal")
    nvme.admin.submit(ADMIN_IDENTIFY, prp1=nvme.alloc(4096), cdw10=CNS_CONTROLLER)
    nvme.start()
    nvme.identify(CNS_CONTROLLER)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_odd_accesses_do_no_harm(nvme, size):
    """What they do is undefined (3.1); the controller goes on."""
    nvme.start()
    end = nvme.client.region_info(BAR0)[0].size
    for offset in [*range(0x38, 0x48), 0xFFE, DOORBELLS - 1, DOORBELLS + 1, end - size]:
        if offset + size > end:
            continue
        try:
            nvme.client.region_read(BAR0, offset, size)
            nvme.client.region_write(BAR0, offset, bytes(size))
        except VfioUserError:
            pass
    nvme.identify(CNS_CONTROLLER)


def test_nothing_happens_before_the_start(nvme):
    """A doorbell of a controller that is not enabled (3.1.24)."""
    nvme.set_admin_queue()
    nvme.admin.submit(ADMIN_IDENTIFY, prp1=nvme.alloc(4096), cdw10=CNS_CONTROLLER)
    nvme.set_admin_queue()
    nvme.enable()
    completion = nvme.admin.run(ADMIN_IDENTIFY, prp1=nvme.alloc(4096), cdw10=CNS_CONTROLLER)
    assert completion.status == SUCCESS and completion.sqhd == 1
    assert not nvme.done, "a command that nobody submitted"


def test_small_admin_queue_wraps(nvme):
    nvme.start(entries=2)
    for _ in range(9):
        nvme.identify(CNS_CONTROLLER)


def test_admin_queue_with_all_entries(nvme):
    nvme.start(entries=4096)
    for _ in range(9):
        nvme.identify(CNS_CONTROLLER)


def test_next_client_finds_it_after_reset(nvme_server, nvme):
    nvme.start_io()
    nvme.client.close()
    client = nvme_server.client()
    again = type(nvme)(client)
    assert again.csts & CSTS_RDY == 0
    again.start_io()
