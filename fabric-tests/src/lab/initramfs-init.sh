#!/bin/busybox sh
# The first process of a guest: mounts the machine's own root, read-only, below a memory file system, and hands over to the agent that the
# kernel's command line names (lab.agent=PATH).
busybox=/bin/busybox
$busybox mount -t devtmpfs dev /dev
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
while read -r module; do
    $busybox insmod "$module" || echo "lab: cannot load $module"
done </modules/list
read -r arguments </proc/cmdline
for word in $arguments; do
    case $word in lab.agent=*) agent=${word#lab.agent=} ;; esac
done
fail() {
    echo "lab: $1"
    echo o >/proc/sysrq-trigger
    $busybox sleep 10
}
$busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower ||
    fail "cannot mount the machine's root"
$busybox mount -t tmpfs -o size=75% upper /upper
$busybox mkdir /upper/files /upper/work
$busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new ||
    fail "cannot lay a memory file system over the root"
for folder in dev proc sys; do
    $busybox mount --move /$folder /new/$folder
done
exec $busybox switch_root /new "$agent" init
fail "cannot start $agent"
