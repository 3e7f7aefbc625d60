# SPDX-License-Identifier: BSD-3-Clause
# The NVMe controller as a disk: found, partitioned, a file system on it, verified I/O, resets.

load nvme
load ext4
find_namespace 1 || { dmesg | tail -30; end "failed: no disk"; }
device=$(basename "$(readlink -f /sys/class/nvme/nvme0/device)")

# verify <words> <option>...: writes and reads back with checksums
verify() {
    words=$1
    shift
    step "$words" fio --name=verify --filename=$disk --direct=1 --ioengine=libaio --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --output=/tmp/fio.out --eta=never "$@"
}

step "lspci" lspci -nv -s "$device"
identify() {
    nvme id-ctrl /dev/nvme0 | grep -E '^(vid|sn|mn|fr|mdts|oacs|oncs|vwc|sgls) '
}
smart() {
    nvme smart-log /dev/nvme0 | grep -iE 'warning|temperature|commands|shutdowns'
}
step "identify" identify
step "SMART" smart
grep -i nvme /proc/interrupts | sed 's/^/  /'

verify "sequential writes, verified" --rw=write --bs=64k --size=128m --iodepth=8
verify "random 4 KiB writes, verified" --rw=randwrite --bs=4k --size=64m --iodepth=32 --numjobs=1
verify "mixed block sizes, verified" --rw=randwrite --bsrange=512-256k --size=64m --iodepth=16

controller_reset() {
    echo 1 >/sys/class/nvme/nvme0/reset_controller && cat /sys/class/nvme/nvme0/state | grep -q live
}
step "controller reset" controller_reset
verify "verified after the reset" --rw=randwrite --bs=4k --size=16m --iodepth=32

# Resets while fio writes: the driver requeues, and nothing is lost.
fio --name=load --filename=$disk --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --size=64m \
    --iodepth=32 --verify=crc32c --verify_fatal=1 --do_verify=1 --output=/tmp/fio.load --eta=never &
load=$!
for i in 1 2 3; do
    usleep 300000
    step "controller reset under load" controller_reset
done
step "the load, verified" wait $load

function_reset() {
    echo 1 >"/sys/bus/pci/devices/$device/reset"
}
step "function level reset" function_reset

partition() {
    printf 'label: gpt\n,512M\n,\n' | sfdisk -q $disk && blockdev --rereadpt $disk
}
files() {
    mount -t ext4 ${disk}p1 /mnt && cp -r /bin /mnt/ && sync &&
        umount /mnt && mount -t ext4 -o ro ${disk}p1 /mnt && diff -r /bin /mnt/bin && umount /mnt
}
step "partitions" partition
step "ext4" mkfs.ext4 -q ${disk}p1
step "files, copied and compared" files
step "e2fsck" e2fsck -fn ${disk}p1

# Unplug and plug.
unplug() {
    echo 1 >"/sys/bus/pci/devices/$device/remove" && [ ! -b $disk ]
}
plug() {
    echo 1 >/sys/bus/pci/rescan
    find_namespace 1 && appears ${disk}p1
}
step "unplug" unplug
step "plug" plug
step "e2fsck" e2fsck -fn ${disk}p1
if dmesg | grep -E 'nvme.*(timeout|I/O error|failed|abort)|DMAR:.*fault'; then
    end "failed: the kernel complains"
fi
