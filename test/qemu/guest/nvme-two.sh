# SPDX-License-Identifier: BSD-3-Clause
# Two servers with default options: two controllers of one vendor, with nothing in common.

load nvme

# controllers: two of them, alive, with a disk each; Linux takes one away that is like the other
controllers() {
    for i in $(seq 300); do
        disks=$(ls -d /sys/block/nvme*n1 2>/dev/null | sed 's/.*\///' | grep -v c)
        [ "$(echo $disks | wc -w)" = 2 ] && return
        dmesg | grep -q uplicate && break
        usleep 300000
    done
    dmesg | grep nvme
    return 1
}
step "two controllers are alive" controllers

# differ <file>...: no two have the same line
differ() {
    [ "$(cat "$@" | sort -u | wc -l)" = $# ] || { cat "$@"; return 1; }
}
for name in serial subsysnqn; do
    step "$name differs" differ $(echo /sys/class/nvme/nvme*/$name)
done
for name in nguid uuid wwid; do
    step "$name differs" differ $(for disk in $disks; do echo /sys/block/$disk/$name; done)
done

both() {
    set -- $disks
    fio --output=/tmp/fio.out --eta=never --direct=1 --ioengine=libaio --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --rw=randwrite --bs=4k --size=8m --iodepth=16 \
        --name=one --filename=/dev/$1 --name=two --filename=/dev/$2
}
step "both, verified" both
if dmesg | grep -E 'nvme.*(uplicate|timeout|I/O error|failed|abort)'; then
    end "failed: the kernel complains"
fi
