# SPDX-License-Identifier: BSD-3-Clause
# What nvme.sh leaves out: two disks with different blocks, commands without data, nvme-cli, and a
# driver that is given other queues. The second disk is memory of the server, in blocks of 4096.

load nvme
load ext4

find_disks() {
    find_namespace 1 && small=$disk && find_namespace 2 && large=$disk
}
step "the disks appear" find_disks

# block <disk> <size>
block() {
    [ "$(cat "/sys/block/$(basename "$1")/queue/logical_block_size")" = "$2" ]
}
blocks() {
    block $small 512 && block $large 4096
}
step "blocks of 512 and 4096 bytes" blocks

# zeros <disk> <MiB> <count>: what lies there
zeros() {
    dd if="$1" bs=1M skip="$2" count="$3" iflag=direct 2>/dev/null | tr -d '\000' | wc -c |
        grep -qx 0
}
# fill <disk> <MiB> <count>: something else than zeros
fill() {
    tr '\000' U </dev/zero | dd of="$1" bs=1M seek="$2" count="$3" oflag=direct \
        iflag=fullblock 2>/dev/null && ! zeros "$1" "$2" "$3"
}

# By their paths, as busybox has some of the same name.
# gone <disk> <command>...: it takes MiB 4 to 8, and nothing beside them
gone() {
    disk=$1
    shift
    fill $disk 0 12 && "$@" $disk && zeros $disk 4 4 && ! zeros $disk 3 1 && ! zeros $disk 8 1
}
for disk in $small $large; do
    step "blkdiscard" /bin/blkdiscard $disk
    step "blkdiscard -z" gone $disk /bin/blkdiscard -z -o 4M -l 4M
    step "blkdiscard of a part" gone $disk /bin/blkdiscard -o 4M -l 4M
    step "fallocate -z" gone $disk /bin/fallocate -z -o 4M -l 4M
    step "fallocate -p" gone $disk /bin/fallocate -p -o 4M -l 4M
done

trim() {
    for disk in $small $large; do
        mkfs.ext4 -q $disk && mount -t ext4 -o discard $disk /mnt && cp -r /bin /mnt/one &&
            cp -r /bin /mnt/two && sync && rm -r /mnt/one && /bin/fstrim -v /mnt &&
            echo 3 >/proc/sys/vm/drop_caches && diff -r /bin /mnt/two && umount /mnt &&
            e2fsck -fn $disk >/tmp/e2fsck 2>&1 || return 1
    done
}
step "ext4 on both, trimmed" trim

# jobs <words> <option>...: several of them, each with its own share of both disks, verified at once
jobs() {
    words=$1
    shift
    step "$words" fio --output=/tmp/fio.out --eta=never --group_reporting --direct=1 \
        --ioengine=libaio --verify=crc32c --verify_fatal=1 --verify_backlog=64 --numjobs=2 \
        --offset_increment=16m --size=16m --iodepth=16 "$@" \
        --name=small --filename=$small --rw=randwrite --bsrange=512-128k \
        --name=pages --filename=$large --rw=randwrite --bs=4k \
        --name=mixed --filename=$large --rw=randrw --bsrange=4k-512k --offset=64m
}
jobs "several jobs on both"

# cli <words> <part of the answer> <nvme arguments>...
cli() {
    words=$1
    part=$2
    shift 2
    step "nvme $words" answers "$part" nvme "$@"
}
answers() {
    part=$1
    shift
    "$@" >/tmp/answer 2>&1 || { cat /tmp/answer; return 1; }
    grep -qiE "$part" /tmp/answer || { cat /tmp/answer; return 1; }
}
fails() {
    ! "$@" >/tmp/answer 2>&1
}

head -c 4096 /dev/urandom >/tmp/written
cli "write" success write $large --start-block=7 --block-count=0 --data-size=4096 --data=/tmp/written
cli "compare" success compare $large --start-block=7 --block-count=0 --data-size=4096 \
    --data=/tmp/written
cli "read" success read $large --start-block=7 --block-count=0 --data-size=4096 --data=/tmp/read
step "what was read" cmp /tmp/written /tmp/read
step "nvme compare with another block" fails nvme compare $large --start-block=8 --block-count=0 \
    --data-size=4096 --data=/tmp/written
step "and why" grep -qi 'compare' /tmp/answer
cli "error-log" 'compare failure' error-log /dev/nvme0
cli "verify" success verify $large --start-block=7 --block-count=9
cli "write-zeroes" success write-zeroes $large --start-block=7 --block-count=0
cli "read of it" success read $large --start-block=7 --block-count=0 --data-size=4096 \
    --data=/tmp/read
head -c 4096 /dev/zero >/tmp/written
step "zeroes" cmp /tmp/written /tmp/read
cli "dsm" success dsm $large --ad --slbs=0,256 --blocks=16,64
cli "flush" success flush $small

cli "list" 'vfio-user NVMe controller' list
cli "id-ns" 'lbads:12.*in use' id-ns $large
cli "ns-descs" uuid ns-descs $small
cli "list-ns" '0x2' list-ns /dev/nvme0
cli "fw-log" '1.0' fw-log /dev/nvme0
cli "effects-log" 'ACS6.*Identify' effects-log -H /dev/nvme0
cli "show-regs" 'enabled.*yes|csts' show-regs -H /dev/nvme0
for feature in 1 2 4 5 6 7 8 9 0xa 0xb 0xe; do
    cli "get-feature $feature" value get-feature /dev/nvme0 -f $feature
done
cli "set-feature, no write cache" value set-feature /dev/nvme0 -f 6 -V 0
cli "get-feature, of that" 'value:(0x)?0*$' get-feature /dev/nvme0 -f 6
jobs "several jobs, without a write cache"
cli "set-feature, a write cache" value set-feature /dev/nvme0 -f 6 -V 1
# The temperature is beyond it: an event for the driver, which reads the log page.
cli "set-feature, a temperature" value set-feature /dev/nvme0 -f 4 -V 300
cli "smart-log" 'critical_warning.*: *0x2' smart-log /dev/nvme0

reset() {
    nvme reset /dev/nvme0 && grep -q live /sys/class/nvme/nvme0/state
}
step "nvme reset" reset
cli "get-feature after it" 'value:(0x)?0*1$' get-feature /dev/nvme0 -f 6
jobs "several jobs after it"

processor() {
    echo "$1" >/sys/devices/system/cpu/cpu1/online
}
fio --output=/tmp/fio.load --eta=never --direct=1 --ioengine=libaio --verify=crc32c --numjobs=2 \
    --verify_fatal=1 --name=load --filename=$small --rw=randwrite --bs=4k --size=16m --iodepth=16 \
    --offset_increment=16m &
load=$!
for i in 1 2 3; do
    step "a processor goes" processor 0
    step "nvme reset without it" reset
    step "a processor comes" processor 1
done
step "the load, verified" wait $load
jobs "several jobs on both processors"

# parameter <name> <value>: of the driver
parameter() {
    echo "$2" >"/sys/module/nvme/parameters/$1"
}
# Queues and their kinds are looked at when the driver takes the device.
device=$(basename "$(readlink -f /sys/class/nvme/nvme0/device)")
attach() {
    echo "$device" >/sys/bus/pci/drivers/nvme/unbind &&
        echo "$device" >/sys/bus/pci/drivers/nvme/bind && appears /dev/nvme0n1 &&
        appears /dev/nvme0n2
}
parameter sgl_threshold 0
step "nvme reset, no SGLs" reset
jobs "several jobs by PRPs"
parameter sgl_threshold 1
parameter write_queues 1
parameter poll_queues 1
step "the driver, with queues for writes and polled ones" attach
find_disks
dmesg | grep 'default/read/poll' | tail -1
jobs "several jobs by them"
step "polled I/O" fio --output=/tmp/fio.out --eta=never --direct=1 --ioengine=io_uring --hipri=1 \
    --name=poll --filename=$small --rw=randwrite --bs=4k --size=8m --verify=crc32c --verify_fatal=1

if dmesg | grep -E 'nvme.*(timeout|error|failed|abort|warning)|DMAR:.*fault|EXT4-fs error|BUG|WARNING|Call Trace'; then
    end "failed: the kernel complains"
fi
