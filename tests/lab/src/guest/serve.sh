# shellcheck shell=dash
# The lab's PID 1, once the root is there: runs the command in a cgroup and a session of its own, says how it ended, and ends the lab.
b=/run/busybox
"$b" mkdir /sys/fs/cgroup/lab
# The kernel measures its time stamp counter a second time when it has been up for about two seconds. A VM that was made before counts at the
# frequency of the first measurement, and where the two differ by much its timers fire at the wrong time or never.
tries=0
until [ "$("$b" cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" = tsc ] || [ $tries = 500 ]; do
    tries=$((tries + 1))
    "$b" usleep 10000
done
: >/run/lab/ready
(
    echo 0 >/sys/fs/cgroup/lab/cgroup.procs
    # A shell has its background jobs ignore these two, and they would go on doing so.
    exec "$b" setsid /usr/bin/env --default-signal=INT,QUIT "$b" sh /run/lab/command.sh
) </dev/null >/run/lab/stdout 2>/run/lab/stderr &
command=$!
# If it hangs, the console says what there was, before the lab is killed.
(
    "$b" sleep "$("$b" cat /run/lab/patience)"
    {
        echo "Still running:"
        "$b" ps -o pid,ppid,stat,args | "$b" grep -v ' \['
    } >/dev/console
    echo 7 >/proc/sys/kernel/printk
    echo w >/proc/sysrq-trigger
) &
wait $command
echo $? >/run/lab/code.new
"$b" mv /run/lab/code.new /run/lab/code
exec "$b" reboot -f
