# SPDX-License-Identifier: BSD-3-Clause
# What QEMU's functional test of its client does, and on: the card's driver in Linux drives outputs,
# and reads them back from the inputs that they are wired to, with interrupts.

load gpio-pci-idio-16
found=$(grep -lx 32 /sys/class/gpio/gpiochip*/ngpio) || end "failed: no card"
base=$(cat "$(dirname "$found")/base")

# drive <number> <level>: the lines have names and a fixed direction
drive() {
    echo "$2" >"/sys/class/gpio/OUT$1/value" && [ "$(cat "/sys/class/gpio/IIN$1/value")" = "$2" ]
}
outputs() {
    for i in $(seq 0 31); do
        echo $((base + i)) >/sys/class/gpio/export || return 1
    done
    for i in 0 7 8 15; do
        drive $i 1 && drive $i 0 || return 1
    done
}
interrupts() {
    awk '/gpiolib/ { n += $2 + $3 } END { print n + 0 }' /proc/interrupts
}
edge() {
    echo both >/sys/class/gpio/IIN3/edge && before=$(interrupts) && drive 3 1 &&
        for i in $(seq 300); do
            [ "$(interrupts)" -gt "$before" ] && return
            usleep 100000
        done
    cat /proc/interrupts
    return 1
}
step "outputs, read back" outputs
step "an interrupt" edge
