# SPDX-License-Identifier: BSD-3-Clause
# The chipset's PAM registers are written while the disk is at work. They say what lies from 0xc0000
# to 0xfffff, so QEMU takes all of the memory from the device for a moment, and gives it back.

load nvme
step "the disk appears" find_namespace 1
step "the host bridge is q35's" [ "$(lspci -n -s 00:00.0 | cut -d' ' -f3)" = 8086:29c0 ]

fio --name=verify --filename=$disk --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 \
    --do_verify=1 --rw=randwrite --bs=4k --size=16m --iodepth=32 --output=/tmp/fio.out --eta=never &
load=$!
# flip <times>: BIOS memory read-only and writable in turn. Register 0x90 is about what lies before the
# memory from 1 MiB on, and makes one range of both.
flip() {
    for reg in 0x90 0x91 0x92 0x93 0x94 0x95 0x96; do
        flip-config /sys/bus/pci/devices/0000:00:00.0/config $reg 0x11 0x33 "$1" || return 1
    done
}
flips=0
while kill -0 $load 2>/dev/null && [ $flips -lt 50 ]; do
    flip 20 || end "failed: a PAM register cannot be written"
    flips=$((flips + 1))
done
echo "  $((flips * 20)) flips of seven registers"
step "some while the disk was at work" [ $flips -gt 1 ]
step "the load, verified" wait $load
step "and idle" flip 20
step "after it, verified" fio --name=after --filename=$disk --direct=1 --ioengine=libaio --rw=randwrite \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --bs=4k --size=4m --iodepth=8 \
    --output=/tmp/fio.out --eta=never
if dmesg | grep -E 'nvme.*(timeout|I/O error|failed|abort|reset|down)'; then
    end "failed: the kernel complains"
fi
