# SPDX-License-Identifier: BSD-3-Clause
# The edu device: found, and driven from user space.

load uio_pci_generic
found=$(grep -lx 0x11e8 /sys/bus/pci/devices/*/device) || end "failed: no edu device"
device=$(dirname "$found")
step "lspci" lspci -nv -s "$(basename "$device")"
echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
step "edu, driven from user space" edu-driver "$device" /dev/uio0
