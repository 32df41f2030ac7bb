//! VMs that fail: each failure has its name, is detected in time, and leaves nothing.

use crate::row::{Difference, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::command::Output;
use magikvm_tests::guest::{BadGuest, initramfs, kernel_of_one_fault};
use magikvm_tests::host::FIRST_BOOT_WAIT;
use magikvm_tests::memory::MemoryLimit;
use magikvm_tests::processes;
use magikvm_tests::virtual_machine::{Driver, guest_image, in_path};
use magikvm_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) static GROUP: Group = Group {
    name: "failures",
    title: "VMs that fail",
    pods: Pods::Own,
    rows: &[
        Row::code("vmm_killed", "A VMM that is killed while its pod runs is `VmmKilled`.", vmm_killed).of("`status.reason`"),
        Row::code(
            "vmm_killed_while_it_boots",
            "A VMM that is killed while its VM boots with a hostPath is `VmmKilled`.",
            vmm_killed_while_it_boots,
        )
        .of("`run`"),
        Row::code(
            "vmm_out_of_memory",
            "A VMM that the host's kernel kills because memory ran out is `VmmOutOfMemory`.",
            vmm_out_of_memory,
        )
        .of("`status.reason`"),
        Row::code(
            "panic_at_boot",
            "A kernel that panics before the agent runs is `GuestPanicked`, with the last lines of its console.",
            panic_at_boot,
        )
        .of("`run`"),
        Row::code("panic_later", "A kernel that panics while its pod runs is `GuestPanicked`, with its words.", panic_later)
            .of("`status.reason`"),
        Row::code("triple_fault", "A triple fault of the guest's processor is `TripleFault`.", triple_fault).of("`run`").differs(&[
            Difference {
                drivers: &[Driver::Qemu],
                why: "QEMU ends with 0 on a triple fault as on a restart: `GuestEnded`",
                says: "GuestEnded",
            },
        ]),
        Row::code(
            "unasked_restart",
            "A guest that restarts without a request before the agent runs is `GuestEnded`.",
            unasked_restart,
        )
        .of("`run`"),
        Row::code(
            "kernel_missing_or_cut_short",
            "A guest image with a missing or truncated part is refused before anything is started.",
            kernel_missing_or_cut_short,
        )
        .of("`run`"),
        Row::code("no_kernel", "A file that is not a kernel does not boot, and the VMM's error message is shown.", no_kernel).of("`run`"),
        Row::code(
            "disk_cut_short",
            "A missing or truncated file of an image fails the run, and the message names the file.",
            disk_cut_short,
        )
        .of("`run`"),
        Row::code(
            "silent_agent",
            "A guest that boots and stays silent is booted once more, and is `AgentSilent` after 60 s.",
            silent_agent,
        )
        .of("`run`")
        .within(Duration::from_secs(150)),
    ],
};

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
}

fn status(subject: &Subject, pod: &str) -> Value {
    subject.inspect(pod).expect("the pod is there")["status"].clone()
}

/// A running pod has failed for this reason, and everything of it can be removed.
#[track_caller]
fn failed_while_it_ran(subject: &Subject, pod: &str, reason: &str, words: &str, within: Duration) {
    let begun = Instant::now();
    subject.wait_for_phase(pod, "Failed");
    assert!(begun.elapsed() < within, "{:?}", begun.elapsed());
    let status = status(subject, pod);
    assert_eq!(status["reason"], reason, "{status}");
    assert!(status["message"].as_str().unwrap().contains(words), "{status}");
    subject.cmd(["rm", pod]).ok();
    subject.assert_as_new();
}

fn bad_guest(subject: &Subject) -> BadGuest {
    let dir = subject.file("guest");
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    BadGuest::copy(Path::new(&guest_image()), &dir)
}

/// `run -d` of a pod with a guest image that does not start. Nothing is left of the pod.
#[track_caller]
fn does_not_boot(subject: &Subject, guest: &BadGuest) -> Output {
    let run = subject.run(&Pod::simple("bad")).arg("-d").arg("--guest").arg(guest.dir());
    // In the lab, VMs have no second boot unless a row is about that.
    let run = run.env(FIRST_BOOT_WAIT, "30000");
    let output = run.limit(Duration::from_secs(120)).run();
    assert_eq!(output.stdout, "", "{}", output.transcript());
    assert_eq!(subject.cmd(["ps", "-q"]).ok().stdout, "");
    subject.assert_as_new();
    output
}

#[track_caller]
fn fails_for(output: Output, reason: &str) -> Output {
    output.expect_code(70).complains("(stage: boot)").complains(&format!("Reason: {reason}\n"))
}

fn vmm_killed(subject: &Subject) {
    subject.start(&Pod::simple("victim"));
    let vm = subject.vm_process();
    kill9(subject.process("victim", vm));
    let words = format!("{vm} was killed by SIGKILL");
    failed_while_it_ran(subject, "victim", "VmmKilled", &words, subject.seconds(20));
}

fn vmm_killed_while_it_boots(subject: &Subject) {
    let shared = subject.file("shared");
    fs::create_dir_all(&shared).unwrap();
    // Each time the VM has got a little further.
    for ticks in [0, 10, 40] {
        let pod = Pod::simple("victim").volume("shared", json!({ "hostPath": { "path": shared } })).mount(
            "shared",
            "/shared",
            json!({}),
        );
        let run = subject.run(&pod).arg("-d").spawn();
        let vmm = subject.process("victim", subject.vm_process());
        until("the VMM has worked", || processes::processor_ticks(vmm) >= ticks);
        kill9(vmm);
        run.wait().expect_code(3).complains("(stage: boot)").complains("Reason: VmmKilled\n");
        subject.assert_as_new();
    }
}

fn vmm_out_of_memory(subject: &Subject) {
    subject.start(&Pod::simple("hungry"));
    let pid = subject.process("hungry", subject.vm_process());
    let limit = MemoryLimit::on(pid, &format!("magikvm-test-{pid}"), 8 << 20);
    // More memory than the host allows, and less than the guest believes to have.
    let eats = subject.cmd([
        "exec",
        "hungry",
        "--",
        "sh",
        "-c",
        "head -c 150000000 /dev/zero | tail -c 140000000 | wc -c",
    ]);
    let eats = eats.spawn();
    subject.wait_for_phase("hungry", "Failed");
    drop(limit);
    eats.wait();
    let words = "the host was out of memory";
    failed_while_it_ran(subject, "hungry", "VmmOutOfMemory", words, subject.seconds(20));
}

fn panic_at_boot(subject: &Subject) {
    let guest = bad_guest(subject);
    let length = guest.part("initramfs").len();
    guest.damage("initramfs", &vec![0x55; length]);
    let output = fails_for(does_not_boot(subject, &guest), "GuestPanicked");
    output
        .complains("the guest's kernel panicked: ")
        .complains("The pod's console, last lines:")
        .complains("Kernel panic");
}

fn panic_later(subject: &Subject) {
    // Makes the kernel panic instead of killing a container that has used up its memory.
    let hungry = Pod::new("panics")
        .script("web", "until [ -e /tmp/go ]; do sleep 0.1; done; exec tail /dev/zero")
        .with("resources/limits/memory", "24Mi");
    subject.run(&hungry).arg("-d").env("MAGIKVM_KERNEL_PARAMETERS", "sysctl.vm.panic_on_oom=2").ok();
    // The panic may come before the answer.
    subject.cmd(["exec", "panics", "--", "touch", "/tmp/go"]).run();
    let words = "the guest's kernel panicked: Out of memory: compulsory panic_on_oom is enabled";
    failed_while_it_ran(subject, "panics", "GuestPanicked", words, subject.seconds(30));
}

fn triple_fault(subject: &Subject) {
    let guest = bad_guest(subject);
    guest.replace("vmlinux", &kernel_of_one_fault());
    let output = does_not_boot(subject, &guest);
    // Less than a guest may be silent.
    assert!(output.took < subject.seconds(28), "{:?}", output.took);
    fails_for(output, "TripleFault").complains("triple fault");
}

fn unasked_restart(subject: &Subject) {
    let guest = bad_guest(subject);
    guest.replace("initramfs", &init_of(subject, "exec /bin/busybox reboot -f\n"));
    fails_for(does_not_boot(subject, &guest), "GuestEnded").complains("the guest ended by itself");
}

fn init_of(subject: &Subject, script: &str) -> Vec<u8> {
    let dir = subject.file("initramfs");
    let packed = initramfs(&dir, &in_path("busybox"), script);
    fs::remove_dir_all(&dir).unwrap();
    packed
}

fn kernel_missing_or_cut_short(subject: &Subject) {
    let guest = bad_guest(subject);
    let whole = guest.part("vmlinux");
    for damaged in [Some(&whole[..whole.len() / 2]), None] {
        match damaged {
            Some(bytes) => guest.damage("vmlinux", bytes),
            None => fs::remove_file(guest.dir().join("vmlinux")).unwrap(),
        }
        let output = does_not_boot(subject, &guest).expect_code(3);
        output
            .complains("its part vmlinux is missing or damaged")
            .complains("Hint: Make one with `magikvm-image build`");
    }
}

fn no_kernel(subject: &Subject) {
    let guest = bad_guest(subject);
    let whole = guest.part("vmlinux");
    // Zeros of the right length, and half a kernel with a matching manifest.
    for bytes in [vec![0; whole.len()], whole[..whole.len() / 2].to_vec()] {
        guest.replace("vmlinux", &bytes);
        // The fault lies in the guest image, which is a part of the environment.
        let output = does_not_boot(subject, &guest)
            .expect_code(3)
            .complains("(stage: boot)")
            .complains("Hint: Check ");
        let reasons = ["NotMade", "VmmFailed"];
        assert!(
            reasons.iter().any(|reason| output.stderr.contains(&format!("Reason: {reason}\n"))),
            "{}",
            output.stderr
        );
    }
}

fn rootfs(subject: &Subject) -> PathBuf {
    let dir = subject.root().join("data/images/rootfs");
    let mut files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "erofs")).expect("an image")
}

fn disk_cut_short(subject: &Subject) {
    let path = rootfs(subject);
    let whole = fs::read(&path).unwrap();
    let run = || {
        let output = subject.run(&Pod::simple("bad").with("imagePullPolicy", "Never")).arg("-d").run();
        assert_eq!(subject.cmd(["ps", "-q"]).ok().stdout, "");
        subject.assert_as_new();
        output
    };
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = run();
    fs::remove_file(&path).unwrap();
    let missing = run();
    fs::write(&path, &whole).unwrap();
    for output in [cut, missing] {
        assert!(output.code != 0 && output.stderr.contains("container web: "), "{}", output.transcript());
    }
    subject.run(&Pod::new("good").script("web", "true")).ok();
    subject.cmd(["rm", "good"]).ok();
}

fn silent_agent(subject: &Subject) {
    let guest = bad_guest(subject);
    guest.replace("initramfs", &init_of(subject, "echo the guest sleeps; exec /bin/busybox sleep 100000\n"));
    let output = does_not_boot(subject, &guest);
    let limit = Duration::from_secs(60);
    assert!((limit..limit + subject.seconds(45)).contains(&output.took), "{:?}", output.took);
    let output =
        fails_for(output, "AgentSilent").complains("did not answer within 60 s of its start, in two starts");
    output.complains("the pod's sandbox is started again").complains("the guest sleeps");
    until("nothing of it runs", || subject.cmd(["ps", "-q"]).ok().stdout.is_empty());
}
