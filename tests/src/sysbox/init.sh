#!/bin/sh
# The first process of a box, until systemd takes its place: init.sh BOX CGROUP DATA
#
# It runs as pid 1 of fresh mount, pid, uts and ipc namespaces. The root is an overlay of the
# machine's own; whatever the machine runs, mounts or has switched on is hidden. Nothing that
# the box does reaches the machine: /proc/sys and /sys are read-only (a boot would set kernel
# parameters), and there are no devices but the harmless ones.
set -e
box=$1 cgroup=$2 data=$3
root=$box/root

mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$box/upper,workdir=$box/work" "$root"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
# Each boot has an id of its own, as on a machine: what was compared before it is not known after it.
cat /proc/sys/kernel/random/uuid >"$box/boot_id"
mount --bind "$box/boot_id" "$root/proc/sys/kernel/random/boot_id"
# A registered emulator, for reading: whether the machine has one decides nothing.
mkdir -p "$box/binfmt"
case $(uname -m) in
  x86_64) cpu=aarch64 elf=b700 ;;
  *) cpu=x86_64 elf=3e00 ;;
esac
echo enabled >"$box/binfmt/status"
cat >"$box/binfmt/qemu-$cpu" <<EOF
enabled
interpreter /usr/libexec/qemu-binfmt/$cpu
flags: F
offset 0
magic 7f454c460201010000000000000000000200$elf
mask ffffffffffffff00fffffffffffffffffeffffff
EOF
mount --bind "$box/binfmt" "$root/proc/sys/fs/binfmt_misc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 666 "$root/dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 666 "$root/dev/tty" c 5 0
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
# What systemd says before it has a journal.
touch "$root/dev/console"
mount --bind "$box/console" "$root/dev/console"

mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

# Where the lab lies on a file system of its own, the overlay does not show it.
lab=${box%/run/*}
if [ "$(stat -c %d "$lab")" != "$(stat -c %d /)" ]; then
  mkdir -p "$root$lab"
  mount --bind "$lab" "$root$lab"
  mount -o remount,bind,ro "$root$lab"
fi

# An overlay cannot hold the upper layers of another one.
mkdir -p "$root/var/lib/containerd"
mount --bind "$data" "$root/var/lib/containerd"

# The first boot: a machine of its own, on which nothing is switched on yet.
if [ ! -e "$box/booted" ]; then
  units=$root/etc/systemd/system
  rm -rf "$units" "$root"/etc/rc?.d "$root/etc/fstab" "$root/var/lib/edgepull" "$root/etc/edgepull" \
    "$root/etc/containerd" "$root/var/log/journal" "$root/usr/sbin/policy-rc.d"
  mkdir -p "$units"
  # An index of all manual pages would be made anew with every package.
  rm -f "$root/var/lib/man-db/auto-update"
  for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-udev-trigger.service systemd-logind.service getty.target systemd-modules-load.service \
    systemd-sysctl.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
    systemd-random-seed.service kmod-static-nodes.service dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount; do
    ln -s /dev/null "$units/$unit"
  done
  cp -R "$box/files/." "$root/"
  mkdir -p "$units/multi-user.target.wants" "$root/var/log/journal"
  ln -s /etc/systemd/system/containerd.service "$units/multi-user.target.wants/"
  hostname box
  : >"$box/booted"
fi

# Its own tree of control groups, below one of the machine's.
echo 0 >"$cgroup/cgroup.procs"
exec unshare --cgroup sh -c '
  mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
  cd "$1"
  pivot_root . mnt
  # Shared, as on a real machine (systemd leaves that to the manager of a container): credentials
  # reach a service that way.
  exec chroot . sh -c "umount -l /mnt
    mount --make-rshared /
    exec env -i container=edgepull-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
      /lib/systemd/systemd --unit=multi-user.target"
' sh "$root"
