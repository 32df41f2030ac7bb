//! The VM and the processes around it.

use crate::row::{Difference, Ended, Group, Pods, Row};
use crate::stops::STUBBORN;
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::memory::pss;
use magikvm_tests::processes::is_alive;
use magikvm_tests::virtual_machine::{Driver, VCPUS};
use magikvm_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const NESTED: &str = "magikvm.dev/nested-virtualization";

pub(crate) static GROUP: Group = Group {
    name: "vm",
    title: "The VM, and the processes around it",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "without_its_command_line",
            "A pod continues when its foreground run is killed.",
            without_its_command_line,
        )
        .of("`run`"),
        Row::code(
            "without_its_monitor",
            "When its monitor is killed, a pod is Lost and its VM ends; its logs can still be read, and it can be removed.",
            without_its_monitor,
        )
        .of("`ps`, `rm`"),
        Row::code(
            "without_its_vm",
            "When its VM is killed, a pod is reported as failed, and it can be removed.",
            without_its_vm,
        )
        .of("`status.message`, `rm`"),
        Row::run(
            "two_processors",
            "A VM has as many processors as its pod's annotation says.",
            || Pod::new("two").script("web", "nproc").annotated(VCPUS, "2"),
            Ended { options: &["--no-prefix"], code: 0, stdout: "2\n", stderr: "", phase: "Succeeded" },
        )
        .of("`magikvm.dev/vcpus`"),
        Row::run(
            "nested_virtualization",
            "A pod that asks for nested virtualization sees the processor's extension for VMs.",
            || {
                let script = "grep -qwE 'vmx|svm' /proc/cpuinfo && echo nested";
                Pod::new("nested").script("web", script).annotated(NESTED, "true")
            },
            Ended { options: &["--no-prefix"], code: 0, stdout: "nested\n", stderr: "", phase: "Succeeded" },
        )
        .of("`magikvm.dev/nested-virtualization`"),
        Row::code(
            "freed_memory_goes_back",
            "Memory that a container frees goes back to the host.",
            freed_memory_goes_back,
        )
        .of("virtio-balloon, free page reporting"),
        Row::run(
            "software_emulation",
            "A pod runs by software emulation if this is requested.",
            || Pod::new("slow").script("web", "echo ran"),
            Ended {
                options: &["--accel", "tcg", "--no-prefix"],
                code: 0,
                stdout: "ran\n",
                stderr: "",
                phase: "Succeeded",
            },
        )
        .of("`run --accel tcg`")
        .differs(&[Difference {
            drivers: &[Driver::Krun],
            why: "libkrun runs on hardware virtualization only; without it, `run` refuses",
            says: "needs hardware virtualization",
        }]),
    ],
};

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
}

fn without_its_command_line(subject: &Subject) {
    let mut running = subject.run(&Pod::new("victim").script("web", STUBBORN)).spawn();
    running.wait_for_stdout("web | up");
    running.signal(Signal::SIGKILL);
    running.wait();
    assert_eq!(subject.phase("victim"), "Running");
    assert_eq!(subject.sh("victim", "web", "echo alive"), "alive\n");
}

fn without_its_monitor(subject: &Subject) {
    subject.start(&Pod::new("victim").script("web", STUBBORN));
    until("it is up", || subject.logs("victim", "web") == "up\n");
    let vm: Vec<i32> =
        subject.driver().processes().iter().map(|name| subject.process("victim", name)).collect();
    kill9(subject.process("victim", "monitor"));
    subject.wait_for_phase("victim", "Lost");
    until("the VM has ended with its monitor", || !vm.iter().any(|&pid| is_alive(pid)));
    subject.cmd(["logs", "victim"]).ok().prints("up");
    subject.cmd(["rm", "victim"]).ok();
    subject.assert_as_new();
}

fn freed_memory_goes_back(subject: &Subject) {
    const TAKEN: u64 = 100 << 20;
    let pod = Pod::simple("frees")
        .annotated("magikvm.dev/memory-mib", "384")
        .annotated("magikvm.dev/root", "memory");
    subject.start(&pod);
    let pid = subject.process("frees", subject.vm_process());
    let taken = || pss(pid).expect("the process is there");
    let before = taken();
    // In memory of the guest, as the pod demands of the whole writable layer of its container.
    subject.sh(
        "frees",
        "web",
        &format!("dd if=/dev/urandom of=/tmp/taken bs=1024 count={} 2>/dev/null", TAKEN >> 10),
    );
    let full = taken();
    // Not all of it is new: the guest reuses memory that it freed during the start and had not returned yet.
    assert!(full > before + TAKEN / 2, "{before} bytes, then {full} bytes");
    subject.sh("frees", "web", "rm /tmp/taken");
    until(&format!("most of it is back (it was {before} bytes, then {full} bytes)"), || {
        taken() < full - TAKEN * 3 / 4
    });
}

fn without_its_vm(subject: &Subject) {
    subject.start(&Pod::simple("victim"));
    let vm = subject.vm_process();
    kill9(subject.process("victim", vm));
    subject.wait_for_phase("victim", "Failed");
    let why = subject.inspect("victim").unwrap()["status"]["message"].clone();
    assert!(why.as_str().unwrap().contains(&format!("{vm} was killed by SIGKILL")), "{why}");
    subject.cmd(["rm", "victim"]).ok();
    subject.assert_as_new();
}
