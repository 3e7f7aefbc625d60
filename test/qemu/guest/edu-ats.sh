# SPDX-License-Identifier: BSD-3-Clause
# The edu device with PASID, ATS and PRI: a guest sees them, enables them, and resets the function.

load uio_pci_generic
found=$(grep -lx 0x11e8 /sys/bus/pci/devices/*/device) || end "failed: no edu device"
device=$(basename "$(dirname "$found")")

# shows <pattern>...: each is in what lspci says
shows() {
    lspci -vvv -s "$device" >/tmp/lspci 2>/dev/null
    for pattern in "$@"; do
        grep -qE "$pattern" /tmp/lspci || { cat /tmp/lspci; return 1; }
    done
}
# enable <register> <value>, in the notation of setpci; reads it back
enable() {
    setpci -s "$device" "$1=$2" && [ "$((0x$(setpci -s "$device" "$1")))" = $((0x$2)) ]
}

step "the device is an Express one, with reset" shows 'Express \(v2\) Endpoint' 'FLReset\+'
step "ATS" shows 'Address Translation Service' 'ATSCtl:.*Enable-'
step "PRI" shows 'Page Request Interface' 'PRICtl: Enable-' 'Stopped\+'
step "PASID" shows 'Process Address Space ID' 'Max PASID Width: 14' 'PASIDCtl: Enable-'

# In the order of PCIe 7.8.9: PASID cannot be changed once ATS is on.
step "PASID is enabled" enable ECAP_PASID+6.w 1
step "ATS is enabled" enable ECAP_ATS+6.w 8000
step "PRI gets requests" enable ECAP_PRI+c.l 20
step "PRI is enabled" enable ECAP_PRI+4.w 1
step "lspci sees all three" shows 'PASIDCtl: Enable\+' 'ATSCtl:.*Enable\+' 'PRICtl: Enable\+'

function_reset() {
    grep -q flr "/sys/bus/pci/devices/$device/reset_method" &&
        echo flr >"/sys/bus/pci/devices/$device/reset_method" &&
        echo 1 >"/sys/bus/pci/devices/$device/reset"
}
step "function level reset" function_reset
step "nothing is enabled any more" shows 'PASIDCtl: Enable-' 'ATSCtl:.*Enable-' 'PRICtl: Enable-'

echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
step "edu, driven from user space" edu-driver "/sys/bus/pci/devices/$device" /dev/uio0
