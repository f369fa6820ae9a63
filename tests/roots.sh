#!/usr/bin/env bash
# Other Debians than this machine's, as root file systems in which the tests run with the programs
# of that Debian. A root is made once, and kept in FENCETOOL_ROOTS (/var/cache/fencetool-roots).
set -euo pipefail
shopt -s inherit_errexit

usage() {
    cat >&2 <<EOF
usage: roots.sh make CODENAME               makes the root where there is none of these packages
       roots.sh enter CODENAME COMMAND...   runs a command in it, in this project's folder
       roots.sh test CODENAME               runs the tests that ask the programs of a Debian
       roots.sh cluster CODENAME            runs those of the real cluster
CODENAME: bullseye (Debian 11) or trixie (Debian 13)
EOF
    exit 2
}

cache=${FENCETOOL_ROOTS:-/var/cache/fencetool-roots}
project=$(dirname "$(dirname "$(readlink -f "$0")")")
packages=(python3 pacemaker pacemaker-cli-utils corosync corosync-qdevice corosync-qnetd sbd pcs
          crmsh cluster-glue openipmi ipmitool shellcheck libxml2-utils procps iproute2
          iputils-ping nftables systemd util-linux)
tests=(tests.test_metadata tests.test_plugin tests.test_parameters tests.test_cluster_file
       tests.test_generators tests.test_generators_pcs tests.test_other_names tests.test_versions)
cluster_tests=(tests.cluster.test_harness tests.cluster.test_scenarios
               tests.cluster.test_two_nodes)

# The packages of a Debian. In 13 each fence agent has its own, and all of them take a gigabyte.
list_packages() {
    case $1 in
        bullseye) echo "${packages[@]}" ansible fence-agents ;;
        trixie) echo "${packages[@]}" ansible-core mount fence-virt \
                     fence-agents-{apc-snmp,aws,gce,heuristics-ping,ipmilan,kdump,redfish,scsi} ;;
        *) usage ;;
    esac
}

# Prints this machine's own package source: where it has its own Debian from, the other one is too.
find_source() {
    local own
    own=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    apt-get -o Debug::NoLocking=1 update --print-uris \
        | sed -n "s|^'\(.*\)/dists/$own/InRelease' .*|\1|p" | tail -n 1
}

# Sets root to where the root is, made first where there is none, and holds it open under a lock.
find_root() {
    local name
    name=$1-$(list_packages "$1" | sha256sum | cut -c 1-12)
    root=$cache/$name
    mkdir -p "$cache"
    # One makes it, others wait. What has its name is whole.
    exec 8> "$cache/$1.lock"
    flock 8
    if [ ! -d "$root" ]; then
        remove_roots "$1"
        build_root "$1" "$root.part"
        mv "$root.part" "$root"
    fi
    exec 9< "$root"
    flock --shared 9
    exec 8>&-
}

# Removes roots of other packages, and what a killed run left; not one that somebody is in.
remove_roots() {
    local old
    for old in "$cache/$1-"*; do
        if [ -d "$old" ]; then
            flock --nonblock "$old" rm -rf --one-file-system "$old" || echo "in use: $old" >&2
        fi
    done
}

# As Debian released it: of an old Debian, only that stays where it is.
build_root() {
    local source log=$cache/$1.log
    source=$(find_source)
    echo "making $2 from $source, in some minutes" >&2
    # It ends with this shell, and what it mounts with it, however they end. /bin and its like are
    # links since Debian 10.
    # shellcheck disable=SC2016
    setpriv --pdeathsig KILL unshare --mount-proc --pid --fork --kill-child \
        mmdebstrap --verbose --variant=apt --include="$(list_packages "$1")" \
        --setup-hook='for name in bin sbin lib lib64; do
                          mkdir -p "$1/usr/$name" && ln -s "usr/$name" "$1/$name"
                      done' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$1" "$2" "$source" > "$log" 2>&1 \
        || { tail -n 40 "$log" >&2; exit 1; }
}

# Runs a command in the root, in namespaces that end with it.
enter_root() {
    exec unshare --mount --pid --ipc --net --fork --kill-child "$0" inside "$root" "$@"
}

# As process 1: makes a root of its own from that in the cache, which stays as it is. Programs are
# shown read-only, and without an overlay: the kernel lays two over each other and no more, and the
# tests need theirs.
run_inside() {
    local root=$1 new=$cache/inside
    shift
    mkdir -p "$new"
    mount -t tmpfs -o mode=755 tmpfs "$new"
    show_files "$root" "$new"
    mkdir -p "$new/srv/fencetool" "$new/run/lock" "$new/mnt/old"
    chmod 1777 "$new/tmp"
    mount --bind -o ro "$project" "$new/srv/fencetool"
    mount_devices "$new/dev"
    mount -t proc proc "$new/proc"
    mount -t sysfs sysfs "$new/sys"
    printf '127.0.0.1 localhost\n::1 localhost\n' > "$new/etc/hosts"
    ip link set lo up
    cd "$new"
    pivot_root . mnt/old
    umount --lazy mnt/old
    cd /srv/fencetool
    # The command is not process 1 itself: that would have to collect orphans.
    # shellcheck disable=SC2016
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 FENCETOOL_TEST_ALL="${FENCETOOL_TEST_ALL:-0}" \
        sh -c '"$@"; exit "$?"' sh "$@"
}

show_files() {
    local entry name
    for entry in "$1"/*; do
        name=${entry##*/}
        case $name in
            dev | mnt | proc | run | sys | tmp) mkdir "$2/$name" ;;
            usr) mkdir "$2/$name" && mount --bind -o ro "$entry" "$2/$name" ;;
            *) cp -a "$entry" "$2" ;;
        esac
    done
}

# Of the machine's devices those that programs use. Its watchdog is not among them: corosync, sbd
# and pacemaker would arm it.
mount_devices() {
    local name
    mount -t tmpfs -o mode=755 tmpfs "$1"
    mkdir -m 1777 "$1/shm"
    mkdir "$1/pts"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$1/pts"
    for name in null zero full random urandom tty; do
        : > "$1/$name"
        mount --bind "/dev/$name" "$1/$name"
    done
    ln -s pts/ptmx "$1/ptmx"
    ln -s /proc/self/fd "$1/fd"
    ln -s fd/0 "$1/stdin"
    ln -s fd/1 "$1/stdout"
    ln -s fd/2 "$1/stderr"
}

case ${1:-}:$# in
    make:2) find_root "$2"; echo "$root" ;;
    enter:[12]) usage ;;
    enter:*) find_root "$2"; enter_root "${@:3}" ;;
    test:2) find_root "$2"; enter_root python3 -m unittest "${tests[@]}" ;;
    cluster:2) find_root "$2"
               enter_root env FENCETOOL_TEST_CLUSTER=1 python3 -m unittest "${cluster_tests[@]}" ;;
    inside:*) run_inside "${@:2}" ;;
    *) usage ;;
esac
