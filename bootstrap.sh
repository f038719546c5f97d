#!/bin/sh
# From a fresh Debian or Ubuntu machine to a running box, or a finished test run:
#
#   ./bootstrap.sh demo  [ARGS]   install what is missing, then python -m boxlite ARGS
#   ./bootstrap.sh tests [ARGS]   the same, then the checks and tests; ARGS go to pytest
#   ./bootstrap.sh setup          only install
#
# It installs Debian packages with apt-get (through sudo when not root) and
# everything else into .venv. Run again, it finds that nothing is missing.
set -eu
cd "$(dirname "$0")"

say() { printf 'bootstrap: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed for: $*; run that as root, then this again"
    fi
}

apt_updated=
apt_update() {
    [ -n "$apt_updated" ] || as_root apt-get update -qq
    apt_updated=yes
}

# The first interpreter that the project supports and that can make a venv.
find_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c '
import sys, ensurepip, venv
sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

install_packages() {
    missing=
    command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
    # A dynamically linked busybox is of no use in a guest without its libraries.
    [ -n "$(dpkg-query -W -f '${db:Status-Status}' busybox-static 2>/dev/null | grep -x installed)" ] ||
        missing="$missing busybox-static"
    # What images are made into root disks with.
    command -v tar2sqfs >/dev/null || missing="$missing squashfs-tools-ng"
    (PATH=$PATH:/usr/sbin:/sbin; command -v mke2fs >/dev/null) || missing="$missing e2fsprogs"
    [ -n "$(find_python)" ] || missing="$missing python3 python3-venv"
    # Tests build images and pull them from a registry of their own.
    if [ "$what" = tests ]; then
        for program in umoci skopeo docker-registry mmdebstrap fakechroot fakeroot; do
            command -v "$program" >/dev/null || missing="$missing $program"
        done
        [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
    fi
    if [ -n "$missing" ]; then
        say "installing$missing"
        apt_update
        # Tests start registries themselves: a machine does not get one that runs all the time.
        # shellcheck disable=SC2086
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            -o Dpkg::Options::=--path-exclude=/etc/init.d/docker-registry \
            -o Dpkg::Options::=--path-exclude=/lib/systemd/system/docker-registry.service \
            $missing >/dev/null
    fi
    # The kernel is downloaded without being installed, which needs package lists.
    if [ -z "$(apt-cache search --names-only '^linux-image-(cloud-amd64|virtual)$' 2>/dev/null)" ]; then
        apt_update
    fi
}

make_venv() {
    python=$(find_python)
    [ -n "$python" ] || die "no Python from 3.11 to 3.13 with venv was found; set PYTHON to one"
    stamp=.venv/.boxlite-installed
    if ! .venv/bin/python -c '' 2>/dev/null; then
        say "making .venv with $("$python" --version)"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    if ! cmp -s pyproject.toml "$stamp"; then
        say "installing the project into .venv"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,proto]'
        cp pyproject.toml "$stamp"
    fi
}

what=${1:-}
[ $# -eq 0 ] || shift
case $what in
demo | tests | setup) ;;
*) die "usage: $0 demo|tests|setup [arguments]" ;;
esac

install_packages
make_venv
PATH=$PWD/.venv/bin:$PATH
export PATH
case $what in
demo) exec python -m boxlite "$@" ;;
tests) exec nox --no-venv --sessions lint types proto tests -- "$@" ;;
esac
