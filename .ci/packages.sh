# shellcheck shell=bash disable=SC2034
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by quickstart and run-tests.

# as_root <command>...
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# apt_get <argument>...: waits while another apt-get is at work. DPkg::Lock::Timeout is about
# installing only, so an update that finds the lists locked is tried again, for 10 minutes.
apt_get() {
    local output tries

    for ((tries = 60; tries > 0; tries--)); do
        output=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq \
            -o DPkg::Lock::Timeout=600 "$@" </dev/null 2>&1) && return
        case $output in
        *lists/lock*) sleep 10 ;;
        *) break ;;
        esac
    done
    printf '%s\n' "$output" >&2
    return 1
}

# need_packages <package>...: installs those that are missing (Debian).
need_packages() {
    local missing=() package

    for package in "$@"; do
        if ! dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
            missing+=("$package")
        fi
    done
    if [ ${#missing[@]} -eq 0 ]; then
        return
    fi

    echo "Installing missing Debian packages: ${missing[*]}"
    apt_get update
    apt_get install -y --no-install-recommends "${missing[@]}"
}

build_packages=(gcc libc6-dev cmake ninja-build pkg-config liburing-dev)
