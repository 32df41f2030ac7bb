//! The lab itself: features that the host may lack, its output, and the reports of its failures.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "asking for Landlock is a system call without a wrapper")]

use magikvm::vmm::kvm;
use magikvm_lab::{Lab, LabCommand, LabError, LabOutput, OUT, Room, inside};
use nix::libc;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn run(command: &LabCommand) -> Result<LabOutput, LabError> {
    Lab::from_environment().unwrap().run(command)
}

fn sh(script: &str) -> LabCommand {
    LabCommand::new("sh").arg("-c").arg(script).limit(LIMIT)
}

/// The output of a command, which must succeed.
#[track_caller]
fn printed(command: &LabCommand) -> String {
    let output = run(command).unwrap_or_else(|error| panic!("{error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.code, &*stderr), (0, ""), "{}", output.console);
    String::from_utf8(output.stdout).unwrap()
}

/// The probe times a loop in a guest's ring 0; a KVM that only emulates does not pass it.
#[test]
fn kvm_is_real() {
    inside!(|| {
        let verdict = kvm::open().and_then(|device| kvm::measure(&device)).and_then(kvm::judge);
        let verdict = verdict.unwrap_or_else(|error| panic!("{error}"));
        println!("a turn took {:?}", verdict.per_turn);
    });
}

#[test]
fn cgroups_are_unified_and_limits_hold() {
    inside!(Room { memory_mib: 1024, ..Room::default() }, || {
        let root = Path::new("/sys/fs/cgroup");
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap().trim().to_owned();
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap().trim(), "0::/lab");
        let enabled = read("cgroup.subtree_control");
        for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
            assert!(enabled.split(' ').any(|name| name == controller), "{controller} is not in {enabled}");
        }
        fs::create_dir(root.join("small")).unwrap();
        fs::write(root.join("small/memory.max"), "16M").unwrap();
        fs::write(root.join("small/pids.max"), "1").unwrap();
        assert_eq!(read("small/memory.max"), (16 << 20).to_string());
        let in_small = |script: &str| {
            let script = format!("echo $$ >/sys/fs/cgroup/small/cgroup.procs; {script}");
            std::process::Command::new("sh").arg("-c").arg(script).output().unwrap()
        };
        let forked = in_small("/bin/true; echo not reached");
        assert!(!forked.status.success() && forked.stdout.is_empty(), "{forked:?}");
        let hog = in_small("exec dd if=/dev/zero of=/dev/null bs=64M count=1");
        assert!(!hog.status.success(), "{hog:?}");
        let events = read("small/memory.events");
        assert!(events.lines().any(|line| line == "oom_kill 1"), "{events}");
    });
}

#[test]
fn landlock_is_there() {
    inside!(|| {
        const VERSION: u32 = 1;
        // SAFETY: with this flag the call reads no attributes, and answers with a number.
        let abi = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION)
        };
        assert!(abi >= 4, "Landlock ABI {abi}: {}", std::io::Error::last_os_error());
    });
}

/// Opening a device loads its module.
#[test]
fn devices_and_file_systems_come_when_they_are_used() {
    let script = "for device in vhost-vsock net/tun loop-control fuse; do : <>/dev/$device || exit 1; done
        modprobe erofs && grep -c 'erofs$' /proc/filesystems
        busybox ip link add type veth && ls /sys/class/net | wc -l";
    assert_eq!(printed(&sh(script)), "1\n3\n");
}

#[test]
fn output_comes_back_byte_for_byte_and_apart() {
    let zeros =
        "dd if=/dev/zero bs=1M count=1 2>&-; printf '\\001\\377\\n\\r\\n'; printf 'error\\000' >&2; exit 7";
    let output = run(&sh(zeros)).unwrap();
    assert_eq!((output.code, output.stderr.as_slice()), (7, b"error\0".as_slice()));
    let (first, rest) = output.stdout.split_at(1 << 20);
    assert!(first.iter().all(|&byte| byte == 0));
    assert_eq!(rest, b"\x01\xff\n\r\n");
    assert!(
        output.boot > Duration::ZERO && output.boot < output.took,
        "{:?} of {:?}",
        output.boot,
        output.took
    );
    println!("booted in {:?}, all in {:?}", output.boot, output.took);
}

#[test]
fn a_signal_is_told_as_a_shell_tells_it() {
    assert_eq!(run(&sh("kill -9 $$")).unwrap().code, 137);
}

#[test]
fn a_file_is_copied_out_and_goes_with_the_result() {
    let output = run(&sh("mkdir $MAGIKVM_LAB_OUT/sub && uname -r >$MAGIKVM_LAB_OUT/sub/file")).unwrap();
    let (dir, file) = (output.out_dir(), output.out_dir().join("sub/file"));
    assert!(fs::read_to_string(file).unwrap().starts_with("6.12."), "{}", output.console);
    drop(output);
    assert!(!dir.exists());
}

#[test]
fn profiles_are_copied_to_where_they_were_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo \"$LLVM_PROFILE_FILE\"; echo profile >\"${LLVM_PROFILE_FILE%/*}/1-2.profraw\"";
    let wanted = format!("{OUT}/profiles/%p-%m.profraw\n");
    for _ in 0..2 {
        assert_eq!(printed(&sh(script).profiles(dir.path())), wanted);
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "one of each boot, though the processes had the same number: {names:?}");
}

/// The host's files are there and cannot be changed. Changes are visible only inside.
#[test]
fn the_host_is_seen_and_not_touched() {
    let dir = tempfile::Builder::new().prefix("magikvm-seen-").tempdir_in("/tmp").unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "of the host").unwrap();
    let script =
        "cat $1; echo changed >$1; cat $1; ls /tmp | grep -c slot; ls /run; echo x >/etc/magikvm-lab-was-here
        mkdir /lower; mount -t virtiofs lab /lower; rm -rf /lower$1 /lower/etc/hostname 2>&1
        mount -o remount,rw /lower; echo x >/lower$1";
    let output = run(&sh(script).arg("sh").arg(&file)).unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.starts_with("of the hostchanged\n0\nbusybox\nlab\nlock\n"), "{stdout}");
    assert_eq!(stdout.matches("Read-only file system").count(), 2, "{stdout}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("Read-only file system").count(), 1, "{stderr}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "of the host");
    assert!(Path::new("/etc/hostname").exists() && !Path::new("/etc/magikvm-lab-was-here").exists());
}

#[test]
fn what_the_command_does_not_name_in_tmp_is_not_there() {
    let dir = tempfile::Builder::new().prefix("magikvm-unseen-").tempdir_in("/tmp").unwrap();
    let name = dir.path().file_name().unwrap();
    let listed = printed(&LabCommand::new("ls").arg("/tmp").cwd("/").limit(LIMIT));
    assert!(!listed.lines().any(|line| *line == *name), "{listed}");
}

#[test]
fn a_hang_is_killed_and_what_was_said_is_shown() {
    let began = Instant::now();
    let script = "echo so far; echo and this >&2; echo 'on the console' >/dev/console; exec sleep 1234";
    let error = run(&sh(script).limit(Duration::from_secs(40))).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, LabError::Hung { .. }), "{text}");
    let parts = ["so far", "and this", "on the console", "sleep 1234", "Show Blocked State"];
    for part in parts.into_iter().chain(["RIP=", "not syncing: NMI"]) {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    println!("after {:?}: {text}", began.elapsed());
}

#[test]
fn a_panic_of_the_lab_s_kernel_is_told_at_once() {
    let error = run(&sh("echo before; echo c >/proc/sysrq-trigger; sleep 1000")).unwrap_err();
    let LabError::Died { after, .. } = &error else { panic!("{error}") };
    assert!(*after < Duration::from_secs(30), "{after:?}");
    let text = error.to_string();
    assert!(text.contains("sysrq triggered crash") && text.contains("before"), "{text}");
}

#[test]
fn what_cannot_start_has_the_shell_s_exit_code() {
    let output = run(&LabCommand::new("/no/such/program").limit(LIMIT)).unwrap();
    assert_eq!(output.code, 127);
    assert!(String::from_utf8(output.stderr).unwrap().contains("/no/such/program"));
}

/// This never passes: it fails in the lab, and the failure must be visible here.
#[test]
fn a_failure_inside_is_a_failure_outside() {
    if magikvm_lab::is_inside() {
        panic!("broken on purpose");
    }
    let error = magikvm_lab::rerun("a_failure_inside_is_a_failure_outside").unwrap_err();
    assert!(matches!(error, LabError::TestFailed { code: 101, .. }), "{error}");
    assert!(error.to_string().contains("broken on purpose"), "{error}");
}

#[test]
fn a_test_that_does_not_exist_has_not_passed() {
    let error = magikvm_lab::rerun("no_such_test").unwrap_err();
    assert!(matches!(error, LabError::NotOneTest { .. }), "{error}");
}
