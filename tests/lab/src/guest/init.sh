# shellcheck shell=dash
# The lab's PID 1 runs this with busybox once the host's files are at /lower and overlay can be mounted. It creates the root directory of
# the command at /new, and switches to it. Any failure here ends the lab, and the console shows the reason.
set -eu
b=/bin/busybox
lab="$("$b" cat /lower/run/lab-dir)"
release="$("$b" uname -r)"

"$b" mkdir -p /up /new /fresh
"$b" mount -t tmpfs -o mode=755 upper /up
"$b" mkdir /up/files /up/work
"$b" mount -t overlay -o lowerdir=/lower,upperdir=/up/files,workdir=/up/work root /new

"$b" mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp
"$b" mount -t sysfs -o nosuid,nodev,noexec sysfs /new/sys
"$b" mount -t securityfs -o nosuid,nodev,noexec securityfs /new/sys/kernel/security
"$b" mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /new/sys/fs/bpf
"$b" mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup2 /new/sys/fs/cgroup
for controller in $("$b" cat /new/sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/new/sys/fs/cgroup/cgroup.subtree_control
done
"$b" mount -t devtmpfs -o nosuid,mode=755 devtmpfs /new/dev
"$b" mkdir -p /new/dev/pts /new/dev/shm /new/dev/mqueue /new/dev/net
"$b" mount -t devpts -o nosuid,noexec,mode=620,gid=5,ptmxmode=666 devpts /new/dev/pts
"$b" mount -t tmpfs -o nosuid,nodev,mode=1777 shm /new/dev/shm
"$b" mount -t mqueue -o nosuid,nodev,noexec mqueue /new/dev/mqueue
for name in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
    "$b" ln -sf "${name#*:}" "/new/dev/${name%%:*}"
done

# Entries of the host's /tmp are visible only if the command names them.
"$b" mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /fresh
while IFS= read -r name; do
    if [ -d "/new/tmp/$name" ]; then
        "$b" mkdir "/fresh/$name"
    else
        : >"/fresh/$name"
    fi
    "$b" mount -o bind "/new/tmp/$name" "/fresh/$name"
done </lower/run/temporary-names
"$b" mount -o move /fresh /new/tmp
# The lab must not use the host's state directory.
if [ -d /new/var/lib/magikvm ]; then
    "$b" mount -t tmpfs -o mode=755 state /new/var/lib/magikvm
fi
"$b" mount -t tmpfs -o nosuid,nodev,mode=755 run /new/run
"$b" mkdir /new/run/lab /new/run/lock
"$b" mount -o bind /lower/run /new/run/lab
"$b" cp "$b" /new/run/busybox

# Other modules are loaded on demand: by a file system's name, or by opening one of these devices.
for module in irqbypass kvm kvm-amd; do
    "$b" insmod "/$module.ko"
done
"$b" mkdir -p /new/lib/modules
"$b" ln -sfn "$lab/modules/lib/modules/$release" "/new/lib/modules/$release"
"$b" mknod -m 666 /new/dev/net/tun c 10 200
"$b" mknod -m 660 /new/dev/loop-control c 10 237
"$b" mknod -m 660 /new/dev/vhost-net c 10 238
"$b" mknod -m 660 /new/dev/vhost-vsock c 10 241
"$b" ip link set lo up
"$b" hostname lab
# As on a host that systemd has booted.
ulimit -Hn 524288
"$b" mount -o move /proc /new/proc
exec "$b" switch_root /new /run/busybox sh /run/lab/serve.sh
