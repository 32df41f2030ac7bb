# shellcheck shell=dash
# The lab's PID 1, once the root is there: runs the command in a cgroup and a session of its own, says how it ended, and ends the lab.
b=/run/busybox
"$b" mkdir /sys/fs/cgroup/lab
: >/run/lab/ready
(
    echo 0 >/sys/fs/cgroup/lab/cgroup.procs
    # A shell has its background jobs ignore these two, and they would go on doing so.
    exec "$b" setsid /usr/bin/env --default-signal=INT,QUIT "$b" sh /run/lab/command.sh
) </dev/null >/run/lab/stdout 2>/run/lab/stderr &
wait $!
echo $? >/run/lab/code.new
"$b" mv /run/lab/code.new /run/lab/code
exec "$b" reboot -f
