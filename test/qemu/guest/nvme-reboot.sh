# SPDX-License-Identifier: BSD-3-Clause
# Files outlive a reboot of the guest, which resets the machine under the driver.

load nvme
load ext4
files() {
    mount -t ext4 $disk /mnt && cp -r /bin /mnt/ && umount /mnt
}
compare() {
    mount -t ext4 -o ro $disk /mnt && diff -r /bin /mnt/bin && umount /mnt
}

step "the disk appears" find_namespace 1
if [ "$(dd if=$disk bs=1 skip=1080 count=2 2>/dev/null | od -An -tx1 | tr -d ' ')" != 53ef ]; then
    step "ext4" mkfs.ext4 -q $disk
    step "files" files
    echo "guest: reboot"
    reboot -f
    sleep 60
fi
step "e2fsck" e2fsck -fn $disk
step "files, compared" compare
