# shellcheck shell=dash
# The lab's PID 1 runs this in the new root: it runs the command in its own cgroup and session, records how it ended, and ends the lab.
b=/run/busybox
"$b" mkdir /sys/fs/cgroup/lab
# About two seconds after the boot the kernel measures its time stamp counter a second time. A VM that was created earlier counts at the
# frequency of the first measurement, and if the two differ much, its timers fire at the wrong time or never.
tries=0
until [ "$("$b" cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" = tsc ] || [ $tries = 500 ]; do
    tries=$((tries + 1))
    "$b" usleep 10000
done
: >/run/lab/ready
(
    echo 0 >/sys/fs/cgroup/lab/cgroup.procs
    # A shell makes its background jobs ignore these two signals, and the command would inherit this.
    exec "$b" setsid /usr/bin/env --default-signal=INT,QUIT "$b" sh /run/lab/command.sh
) </dev/null >/run/lab/stdout 2>/run/lab/stderr &
command=$!
# If the command hangs, the console shows the processes before the lab is killed.
(
    "$b" sleep "$("$b" cat /run/lab/half-time)"
    {
        echo "Still running:"
        "$b" ps -o pid,ppid,stat,args | "$b" grep -v ' \['
    } >/dev/console
    echo 7 >/proc/sys/kernel/printk
    echo w >/proc/sysrq-trigger
    echo l >/proc/sysrq-trigger
) &
wait $command
echo $? >/run/lab/code.new
"$b" mv /run/lab/code.new /run/lab/code
exec "$b" reboot -f
