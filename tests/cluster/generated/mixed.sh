#!/bin/sh
# configure-stonith.sh, made by fencetool 0.1.0 from /tmp/mixed.yml.
# It may hold passwords: mode 0700, and not into a repository.
# Run it as root on one node of the cluster, and again after every change of the cluster file. It
# works on a copy of the cluster's configuration and hands that in as one change at the end: when
# anything fails, the cluster keeps what it has, and it is at no moment without its fencing.
#   --dry-run   show what would change, and change nothing
#   --cib FILE  work on a CIB in a file instead of the cluster's: a rehearsal
#   --adopt     take over devices of the same names that somebody else has made

# Values stand in single quotes on purpose; lists of ids and nodes hold no blanks.
# shellcheck disable=SC1003,SC2013,SC2016,SC2046,SC2086
set -eu
set -f
umask 077
export LC_ALL=C.UTF-8

fail() {
    printf '%s: %s\nNothing has been changed.\n' "$0" "$*" >&2
    exit 1
}

# look_up XPATH: put what it finds in the copy into $found; to find nothing is no error.
look_up() {
    code=0
    CIB_file=$copy cibadmin --query --xpath "$1" >"$found" 2>"$work/problem" || code=$?
    if [ "$code" -eq 105 ]; then
        : >"$found"
    elif [ "$code" -ne 0 ]; then
        fail "$(cat "$work/problem")"
    fi
}

# list ATTRIBUTE ELEMENT: its values in the elements of $found.
list() {
    sed -n "s/^ *<$2 \(.* \)*$1=\"\([^\"]*\)\".*/\2/p" "$found"
}

# discard XPATH: take what it finds out of the copy.
discard() {
    look_up "$1"
    if [ -s "$found" ]; then
        CIB_file=$copy cibadmin --delete-all --force --xpath "$1"
    fi
}

# discard_device ID: with the constraints on it, which cannot be without it.
discard_device() {
    discard "//rsc_location[@rsc='$1']"
    discard "//primitive[@id='$1']"
}

# is_among WORD WORD...: whether the first is one of the others.
is_among() {
    word=$1
    shift
    case " $* " in *" $word "*) ;; *) return 1 ;; esac
}

# has_option NAME OPTION=VALUE...: whether one of the options has this name.
has_option() {
    name=$1
    shift
    for option in "$@"; do
        case $option in "$name="*) return ;; esac
    done
    return 1
}

# device ID AGENT INTERVAL OPTION=VALUE...: create a device, or bring it to exactly these options.
device() {
    id=$1 agent=$2 interval=$3
    shift 3
    devices="$devices $id"
    look_up "//primitive[@id='$id']"
    if [ -s "$found" ] && [ "$adopt" = no ] && ! is_among "$id" $ours; then
        fail "$id is not of this tool's making: rename it, or give --adopt"
    fi
    if [ "$(list type primitive)" != "$agent" ]; then
        discard_device "$id"
        pcs -f "$copy" stonith create "$id" "$agent" "$@" \
            op monitor interval="$interval" timeout="$timeout" meta "$mark"
        return
    fi
    look_up "//primitive[@id='$id']/instance_attributes/nvpair"
    for present in $(list name nvpair); do
        # An empty value removes the option.
        if ! has_option "$present" "$@"; then set -- "$@" "$present="; fi
    done
    look_up "//primitive[@id='$id']/operations/op[@interval='$interval' and @timeout='$timeout']"
    if [ ! -s "$found" ]; then set -- "$@" op monitor interval="$interval" timeout="$timeout"; fi
    pcs -f "$copy" stonith update "$id" "$@" meta "$mark"
}

# bans ID NODE...: keep a device off these nodes, and off no others.
bans() {
    id=$1
    shift
    look_up "//rsc_location[@rsc='$id']"
    for node in $(list node rsc_location); do
        if ! is_among "$node" "$@"; then
            discard "//rsc_location[@id='location-$id-$node--INFINITY']"
        fi
    done
    pcs -f "$copy" constraint location "$id" avoids "$@"
}

# level NODE ID...: these devices fence the node, in this order, and all of them must succeed.
level() {
    target=$1
    shift
    look_up "//fencing-level[@target='$target' and @index='1']"
    case $(list devices fencing-level) in
    "$(printf '%s,' "$@" | sed 's/,$//')") return ;;
    "" | "fence-$target" | "fence-$target,fence-verify-$target") ;;
    *) fail "level 1 of $target is not of this tool's making" ;;
    esac
    discard "//fencing-level[@target='$target' and @index='1']"
    pcs -f "$copy" stonith level add 1 "$target" "$@"
}

# show FILE: a configuration without the values of secrets.
show() {
    CIB_file=$1 cibadmin --query --scope configuration |
        sed 's/\(name="\(passw[a-z]*\|fence_pass\|fence_options\)" value="\)[^"]*/\1***/'
}

prepare() {
    file="" dry_run=no adopt=no devices="" strangers=""
    while [ $# -gt 0 ]; do
        case $1 in
        --dry-run) dry_run=yes ;;
        --adopt) adopt=yes ;;
        --cib) file=${2:?--cib needs a file} && shift ;;
        *)
            sed -n '/^# Run it/,/^$/s/^# //p' "$0" >&2
            exit 2
            ;;
        esac
        shift
    done
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    copy=$work/after.xml found=$work/found
    if [ -z "$file" ]; then
        pcs cluster cib "$work/before.xml"
    else
        cp "$file" "$work/before.xml"
    fi
    cp "$work/before.xml" "$copy"
    look_up "//primitive[meta_attributes/nvpair[@name='${mark%=*}' and @value='${mark#*=}']]"
    ours=$(list id primitive)
    # Nodes that the cluster file does not know are kept from verifying: nobody knows what they see.
    look_up "//nodes/node"
    for node in $(list uname node); do
        if ! is_among "$node" $known_nodes; then
            strangers="$strangers $node"
            echo "warning: node $node is not in the cluster file: it gets no fence device" >&2
        fi
    done
}

finish() {
    for id in $ours; do
        if is_among "$id" $devices; then continue; fi
        discard "//fencing-level[@devices='$id' or @devices='$id,fence-verify-${id#fence-}']"
        discard_device "$id"
    done
    pcs -f "$copy" stonith level verify
    if crm_diff --no-version --original "$work/before.xml" --new "$copy" >"$work/diff"; then
        echo "Nothing to change." >&2
        return
    fi
    show "$work/before.xml" >"$work/before"
    show "$copy" >"$work/after"
    diff -u "$work/before" "$work/after" || [ $? -eq 1 ]
    if [ "$dry_run" = yes ]; then
        echo "Nothing has been changed: this is what would be." >&2
    elif [ -n "$file" ]; then
        cp "$copy" "$file.new"
        mv "$file.new" "$file"
    else
        pcs cluster cib-push "$copy" diff-against="$work/before.xml"
    fi
}

mark=managed-by=fencetool
timeout=40s
known_nodes='storage-a storage-b quorum'

configure() {
    device fence-storage-a fence_ipmilan 60s lanplus=1 ip=10.20.20.101 username=bmcadmin \
        password=s3cret cipher=3 pcmk_host_list=storage-a pcmk_off_timeout=60 pcmk_on_timeout=60 \
        pcmk_reboot_timeout=60
    device fence-verify-storage-a fence_check 300s fence_ip=10.20.20.101 fence_user=bmcadmin \
        password=s3cret fence_options=cipher=3 target_mgmt_ip=10.20.20.1 \
        target_storage_ip=10.10.10.1 target_ips=client=10.30.30.1 \
        witness_ips=mgmt=10.20.20.3,mgmt=10.20.20.101,client=10.30.30.254 \
        direct_networks=storage fence_method=ipmi pcmk_host_list=storage-a verify_wait=2 \
        pcmk_off_timeout=90 pcmk_off_retries=1
    device fence-storage-b fence_kasa 60s ip=10.20.20.202 device_mac=CC:32:E5:00:00:01 \
        pcmk_host_map=storage-b:2 pcmk_off_timeout=60 pcmk_on_timeout=60 pcmk_reboot_timeout=60 \
        pcmk_reboot_action=off
    device fence-verify-storage-b fence_check 300s fence_ip=10.20.20.202 \
        device_mac=CC:32:E5:00:00:01 fence_plug=2 target_mgmt_ip=10.20.20.2 \
        target_storage_ip=10.10.10.2 target_ips=client=10.30.30.2 \
        witness_ips=mgmt=10.20.20.3,mgmt=10.20.20.202,client=10.30.30.254 \
        direct_networks=storage fence_method=kasa pcmk_host_list=storage-b verify_wait=2 \
        pcmk_off_timeout=90 pcmk_off_retries=1
    device fence-quorum fence_http 60s device=tasmota ip=10.20.20.201 username=admin \
        password=s3cret device_mac=CC:32:E5:00:00:02 pcmk_host_list=quorum pcmk_off_timeout=60 \
        pcmk_on_timeout=60 pcmk_reboot_timeout=60
    device fence-verify-quorum fence_check 300s fence_ip=10.20.20.201 fence_user=admin \
        password=s3cret device_mac=CC:32:E5:00:00:02 target_mgmt_ip=10.20.20.3 \
        witness_ips=mgmt=10.20.20.1,mgmt=10.20.20.2,mgmt=10.20.20.201 fence_method=tasmota \
        pcmk_host_list=quorum verify_wait=2 pcmk_off_timeout=90 pcmk_off_retries=1
    bans fence-storage-a storage-a
    bans fence-verify-storage-a storage-a quorum $strangers
    bans fence-storage-b storage-b
    bans fence-verify-storage-b storage-b quorum $strangers
    bans fence-quorum quorum
    bans fence-verify-quorum quorum $strangers
    level storage-a fence-storage-a fence-verify-storage-a
    level storage-b fence-storage-b fence-verify-storage-b
    level quorum fence-quorum fence-verify-quorum
    pcs -f "$copy" property set stonith-enabled=true stonith-timeout=90s
}

prepare "$@"
configure
finish
