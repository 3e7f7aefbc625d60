# SPDX-License-Identifier: BSD-3-Clause
"""samples/edu: what a guest sees of it, and what is left of one client for the next."""

import pytest

from vfiouser import edu as hw
from vfiouser.config_space import EXTENDED, STANDARD, u16, u32, walk_extended, walk_standard
from vfiouser.edu import Edu
from vfiouser.wire import CONFIG

WITH_IOMMU = ["--pasid", "20", "--ats", "--pri"]
FLR_CAPABLE = 1 << 28
INITIATE_FLR = 1 << 15


def config_space(client):
    info, _ = client.region_info(CONFIG)
    return client.region_read(CONFIG, 0, info.size)


@pytest.mark.server_args(*WITH_IOMMU)
def test_a_guest_finds_pasid_ats_and_pri(client):
    """Linux looks for extended capabilities only behind a PCI Express one."""
    config = config_space(client)
    standard = walk_standard(config)
    express = standard[STANDARD["EXP"]]
    assert len(config) == 4096
    assert u16(config, express + 2) & 0xFF == 2, "version 2, endpoint"
    assert u32(config, express + 4) & FLR_CAPABLE
    assert u32(config, express + 0x24) & 1 << 21, "no end-to-end prefix, which carries a PASID"
    assert STANDARD["PM"] in standard and STANDARD["MSI"] in standard
    assert set(walk_extended(config)) == {EXTENDED[name] for name in ("ATS", "PRI", "PASID")}


@pytest.mark.parametrize("options", [
    pytest.param(options, marks=pytest.mark.server_args(*options))
    for options in (["--ats"], ["--ats", "--pri"], ["--pasid", "1"])])
def test_any_of_the_three_makes_it_express(client, options):
    assert STANDARD["EXP"] in walk_standard(config_space(client)), options


def test_without_options_it_is_conventional(client):
    config = config_space(client)
    assert len(config) == 256
    assert set(walk_standard(config)) == {STANDARD["MSI"]}


@pytest.mark.server_args(*WITH_IOMMU)
def test_function_level_reset(client, edu):
    edu.write(hw.REG_LIVENESS, 0x1234)
    control = walk_standard(config_space(client))[STANDARD["EXP"]] + 8
    client.write_int(CONFIG, control, client.read_int(CONFIG, control, 2) | INITIATE_FLR, 2)
    assert edu.read(hw.REG_LIVENESS) == 0
    assert not client.read_int(CONFIG, control, 2) & INITIATE_FLR


REGISTERS = {hw.REG_LIVENESS: 4, hw.REG_FACTORIAL: 4, hw.REG_STATUS: 4, hw.REG_IRQ_STATUS: 4,
             hw.REG_DMA_SRC: 8, hw.REG_DMA_DST: 8, hw.REG_DMA_COUNT: 8, hw.REG_DMA_CMD: 8}


def registers(edu):
    return {reg: edu.read(reg, size) for reg, size in REGISTERS.items()}


@pytest.mark.parametrize("share", [True, False])
def test_nothing_is_left_for_the_next_client(server, edu, share):
    """Registers, the buffer with the guest's data, and the right to do DMA."""
    untouched = registers(edu)
    edu.client.add_memory(0, 0x1000, share=share).write(0, b"secret" * 100)
    edu.from_ram(0, 600)
    edu.write(hw.REG_LIVENESS, 0x1234)
    edu.write(hw.REG_STATUS, hw.STATUS_RAISE_IRQ)
    edu.write(hw.REG_FACTORIAL, 5)
    edu.poll(hw.REG_STATUS, hw.STATUS_COMPUTING)
    assert all(edu.read(reg, size) != untouched[reg] for reg, size in REGISTERS.items()
               if reg not in (hw.REG_DMA_SRC, hw.REG_DMA_CMD))
    edu.client.close()

    edu = Edu(server.client())
    assert registers(edu) == untouched
    edu.enable_bus_master()
    ram = edu.client.add_memory(0, 0x1000)
    ram.write(0, b"x" * 600)
    edu.to_ram(0, 600)
    assert ram.read(0, 600) == bytes(600)


@pytest.mark.server_args(*WITH_IOMMU)
@pytest.mark.parametrize("to_ram", [False, True])
def test_nothing_is_left_of_a_transfer_that_was_under_way(server, edu, to_ram):
    """With an IOMMU nothing quiesces the device: the transfer is cancelled."""
    untouched = registers(edu)
    edu.client.add_memory(0, 0x1000, share=False)
    edu.client.hold()
    edu.start_dma(*((hw.BUFFER, 0) if to_ram else (0, hw.BUFFER)), 64,
                  hw.DMA_TO_RAM if to_ram else 0)
    edu.client.next_command()
    edu.client.close()
    assert registers(Edu(server.client())) == untouched
