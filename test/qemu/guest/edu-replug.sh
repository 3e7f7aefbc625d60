# SPDX-License-Identifier: BSD-3-Clause
# Unplugged, and plugged in with another server process behind it.

there() {
    grep -qx 0x11e8 /sys/bus/pci/devices/*/device
}
vanishes() {
    for i in $(seq 300); do there || return 0; usleep 100000; done
    return 1
}
appears() {
    for i in $(seq 300); do there && return 0; usleep 100000; done
    return 1
}
step "there" there
echo "guest: replug"
step "vanishes" vanishes
step "appears" appears
