# Functions for the steps of guests; every step begins with this.
# shellcheck shell=bash

# Fails the step with a sentence.
fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# until_true SECONDS COMMAND...: repeats the command until it succeeds.
until_true() {
    local limit=$1 start=$SECONDS
    shift
    # In a subshell: what fails may end it.
    until ("$@") >/dev/null 2>&1; do
        [ $((SECONDS - start)) -lt "$limit" ] || fail "after $limit s still not: $*"
        sleep 0.1
    done
}

# controllers NQN: names (nvme0) of the controllers of a subsystem, connected from here.
controllers() {
    local folder
    for folder in /sys/class/nvme/nvme*; do
        [ -e "$folder/subsysnqn" ] && [ "$(<"$folder/subsysnqn")" = "$1" ] && printf '%s\n' "${folder##*/}"
    done
    return 0
}

# namespace_now NQN NSID: its block device, if it is there and has a size.
namespace_now() {
    local folder device
    for folder in /sys/class/nvme-subsystem/*; do
        [ -e "$folder/subsysnqn" ] && [ "$(<"$folder/subsysnqn")" = "$1" ] || continue
        for device in "$folder"/nvme*n*; do
            # The controllers' own paths (nvme0c0n1) are no devices to use.
            [[ ${device##*/} =~ ^nvme[0-9]+n[0-9]+$ ]] || continue
            [ -e "$device/nsid" ] && [ "$(<"$device/nsid")" = "$2" ] && [ -b "/dev/${device##*/}" ] || continue
            [ "$(<"$device/size")" != 0 ] || continue
            printf '/dev/%s\n' "${device##*/}"
            return 0
        done
    done
    return 1
}

# namespace NQN [NSID [SECONDS]]: waits for a namespace and prints its block device. The number in its name is not the NSID.
namespace() {
    local nsid=${2:-1} limit=${3:-20} start=$SECONDS
    until namespace_now "$1" "$nsid"; do
        [ $((SECONDS - start)) -lt "$limit" ] || fail "namespace $nsid of $1 has not appeared after $limit s"
        sleep 0.05
    done
}

# pci_nvme SERIAL: name (nvme0) of the drive with this serial number.
pci_nvme() {
    local folder
    for folder in /sys/class/nvme/nvme*; do
        [ -e "$folder/serial" ] && [ "$(tr -d ' ' <"$folder/serial")" = "$1" ] && [ "$(<"$folder/transport")" = pcie ] || continue
        printf '%s\n' "${folder##*/}"
        return 0
    done
    fail "no drive has the serial number $1"
}

# pci_address SERIAL: PCI address of the drive with this serial number.
pci_address() {
    cat "/sys/class/nvme/$(pci_nvme "$1")/address"
}

# drive_block SERIAL NSID: the block device of a namespace of a drive.
drive_block() {
    local name folder device
    name=$(pci_nvme "$1")
    # Where a namespace can have several paths, its device is its subsystem's.
    for folder in "/sys/class/nvme/$name" /sys/class/nvme-subsystem/*; do
        [ "$folder" = "/sys/class/nvme/$name" ] || [ -e "$folder/$name" ] || continue
        for device in "$folder"/nvme*n*; do
            [[ ${device##*/} =~ ^nvme[0-9]+n[0-9]+$ ]] && [ -e "$device/nsid" ] || continue
            [ "$(<"$device/nsid")" = "$2" ] || continue
            printf '/dev/%s\n' "${device##*/}"
            return 0
        done
    done
    fail "drive $1 has no namespace $2"
}

# --- Linux's NVMe target --------------------------------------------------------------------------------------------------------------

NVMET=/sys/kernel/config/nvmet

# nvmet_subsystem NQN: makes a subsystem that every host may use.
nvmet_subsystem() {
    modprobe nvmet
    mkdir "$NVMET/subsystems/$1"
    echo 1 >"$NVMET/subsystems/$1/attr_allow_any_host"
}

# nvmet_namespace NQN NSID DEVICE: adds a block device or a file.
nvmet_namespace() {
    local folder=$NVMET/subsystems/$1/namespaces/$2
    mkdir "$folder"
    printf %s "$3" >"$folder/device_path"
    echo 1 >"$folder/enable"
}

# nvmet_port NUMBER TRANSPORT ADDRESS SERVICE NQN...: listens and offers the subsystems there. Other attributes of a port must be set
# before it has subsystems: make it without any, then link them with nvmet_offer.
nvmet_port() {
    local number=$1 transport=$2 folder=$NVMET/ports/$1
    modprobe "nvmet-$transport"
    mkdir "$folder"
    printf %s "$transport" >"$folder/addr_trtype"
    case $3 in *:*) echo ipv6 ;; *) echo ipv4 ;; esac >"$folder/addr_adrfam"
    printf %s "$3" >"$folder/addr_traddr"
    printf %s "$4" >"$folder/addr_trsvcid"
    shift 4
    nvmet_offer "$number" "$@"
}

# nvmet_offer PORT NQN...: offers subsystems at a port.
nvmet_offer() {
    local number=$1 nqn
    shift
    for nqn in "$@"; do
        ln -s "$NVMET/subsystems/$nqn" "$NVMET/ports/$number/subsystems/$nqn"
    done
}

# ram_disk MIB: a disk in memory (brd); prints its device. One of a kind per test.
ram_disk() {
    modprobe brd rd_nr=1 rd_size=$(($1 << 10))
    printf '/dev/ram0\n'
}

# null_disk MIB BLOCK_SIZE: a disk in memory with this block size and discard (null_blk); prints its device.
null_disk() {
    modprobe null_blk nr_devices=0
    local folder number
    number=$(find /sys/kernel/config/nullb -mindepth 1 -maxdepth 1 -type d | wc -l)
    folder=/sys/kernel/config/nullb/lab$number
    mkdir "$folder"
    echo "$1" >"$folder/size"
    echo "$2" >"$folder/blocksize"
    echo 1 >"$folder/memory_backed"
    echo 1 >"$folder/discard"
    echo 1 >"$folder/power"
    if [ -b "/dev/lab$number" ]; then
        printf '/dev/lab%s\n' "$number"
    else
        printf '/dev/nullb%s\n' "$(<"$folder/index")"
    fi
}

# nvmet_clear: takes everything of the target away.
nvmet_clear() {
    local entry
    [ -d $NVMET ] || return 0
    rm -f $NVMET/ports/*/subsystems/* $NVMET/subsystems/*/allowed_hosts/* $NVMET/ports/*/referrals/*/enable 2>/dev/null || true
    for entry in $NVMET/ports/*/referrals/* $NVMET/ports/*/ana_groups/[2-9]* $NVMET/ports/* \
        $NVMET/subsystems/*/namespaces/* $NVMET/subsystems/* $NVMET/hosts/*; do
        [ ! -e "$entry" ] || rmdir "$entry" 2>/dev/null || true
    done
}

# --- RDMA -----------------------------------------------------------------------------------------------------------------------------

# rdma_device KIND DEVICE [ADDRESS...]: an RDMA device in software (rxe: RoCE, siw: iWARP) named KIND0 on a network device, which is found by these
# IPv4 addresses.
rdma_device() {
    local kind=$1 on=$2 module=$1 address octets
    [ "$kind" != rxe ] || module=rdma_rxe
    shift 2
    modprobe -a "$module" rdma_ucm ib_uverbs
    rdma link add "${kind}0" type "$kind" netdev "$on"
    until_true 40 grep -q ACTIVE "/sys/class/infiniband/${kind}0/ports/1/state"
    # The connection manager finds a RoCE device by the addresses that it knows, which follow a moment later.
    [ "$kind" = rxe ] || return 0
    for address in "$@"; do
        IFS=. read -ra octets <<<"$address"
        until_true 40 grep -qi "$(printf '%02x%02x:%02x%02x' "${octets[@]}")" /sys/class/infiniband/rxe0/ports/1/gids/*
    done
}

# An RDMA device in software, rxe0, on a network device of its own with addresses 10.77.0.1 and fd77::1.
soft_roce() {
    modprobe dummy
    ip link add roce0 type dummy
    # Room for a message of 4096 bytes in one packet.
    ip link set roce0 mtu 4200 up
    ip address add 10.77.0.1/24 dev roce0
    ip address add fd77::1/64 dev roce0 nodad
    rdma_device rxe roce0 10.77.0.1
    until_true 40 grep -qi fd77: /sys/class/infiniband/rxe0/ports/1/gids/*
}

rdma_clear() {
    local device
    for device in rxe0 siw0; do
        [ ! -e /sys/class/infiniband/$device ] || rdma link delete $device || true
    done
    [ ! -e /sys/class/net/roce0 ] || ip link delete roce0 || true
}

# --- between tests --------------------------------------------------------------------------------------------------------------------

# What a test may leave behind; a guest is used again only when this is what it was. Without other programs, for it is called often and each
# costs tens of milliseconds under emulation.
lab_state() (
    shopt -s nullglob
    for entry in /sys/class/nvme/* /sys/class/net/* /sys/class/infiniband/* /sys/block/[!l]* \
        /sys/kernel/config/nvmet/{subsystems,ports,hosts}/* /sys/kernel/config/nullb/[!f]*; do
        printf '%s\n' "$entry"
    done
    while read -r device folder kind _; do
        printf 'mount %s %s %s\n' "$device" "$folder" "$kind"
    done </proc/mounts
    for entry in /proc/[0-9]*; do
        # The kernel's threads have no command line, nor has a process that is gone by now; the step itself is no news.
        if [ "${entry#/proc/}" -gt 2 ] && IFS= read -r -d '' command 2>/dev/null <"$entry/cmdline"; then
            [ "$command" = bash ] || printf 'process %s\n' "$command"
        fi
    done
    printf 'taint %s\n' "$(</proc/sys/kernel/tainted)"
)

# Undoes what tests do; fails and says what is left.
lab_clean() {
    local entry
    for entry in $(awk '$2 ~ "^(/run/lab/work|/mnt)" { print $2 }' /proc/mounts | tac); do
        umount "$entry" || true
    done
    [ ! -e /sys/class/nvme-fabrics ] || nvme disconnect-all >/dev/null 2>&1 || true
    nvmet_clear
    rdma_clear
    losetup -D 2>/dev/null || true
    if [ -d /sys/kernel/config/nullb ]; then
        find /sys/kernel/config/nullb -mindepth 1 -maxdepth 1 -type d -exec rmdir {} + 2>/dev/null || true
    fi
    modprobe -raq nvmet_tcp nvmet_rdma nvme_loop nvmet brd null_blk nvme_tcp nvme_rdma 2>/dev/null || true
    find /run/lab/work -mindepth 1 -delete 2>/dev/null || true
    # Deletion of controllers ends a moment after the command.
    for _ in $(seq 30); do
        lab_state >/run/lab/state
        cmp -s /run/lab/baseline /run/lab/state && return 0
        sleep 0.1
    done
    diff /run/lab/baseline /run/lab/state | grep '^[<>]' | head -n 20
    return 1
}
