//! The jail around a VM, tested by a program that replaces the VMM and acts like a guest that has taken its VMM over.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::command::Cmd;
use magikvm_tests::inmate::{Inmate, MARK};
use magikvm_tests::virtual_machine::Driver;
use magikvm_tests::{Pod, wait};
use serde_json::Value;
use std::collections::BTreeSet;

pub(crate) static GROUP: Group = Group {
    name: "jail",
    title: "What a guest owns that has taken over its VMM",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "all_layers",
            "Each process of the VM has all isolation layers that the host supports.",
            all_layers,
        )
        .of("`run --require-jail`, `inspect`, `doctor`"),
        Row::code(
            "nothing_else_is_there",
            "Every isolation layer holds without the list of system calls: no other files, no device, no process, no network, no privilege.",
            nothing_else_is_there,
        ),
        Row::code(
            "calls_beyond_the_list",
            "A system call that is not on the list ends the VM and is `FilterViolated`, with the name of the call.",
            calls_beyond_the_list,
        )
        .of("`status.reason`"),
        Row::code(
            "calls_that_are_absent",
            "Calls for which programs have a fallback return ENOSYS.",
            calls_that_are_absent,
        ),
    ],
};

/// The present or the missing isolation layers of each process.
fn layers(pod: &Value, process: &str, kind: &str) -> BTreeSet<String> {
    let text = pod["metadata"]["annotations"]["magikvm.dev/jail"].as_str().expect("the annotation");
    let all: Value = serde_json::from_str(text).expect("JSON in the annotation");
    let name = |layer: &Value| layer.as_str().or(layer["layer"].as_str()).expect("a layer").to_owned();
    all[process][kind].as_array().map(|layers| layers.iter().map(name).collect()).unwrap_or_default()
}

/// The isolation layers that `doctor` reports as present.
fn given(subject: &Subject) -> BTreeSet<String> {
    let found = subject.cmd(["doctor", "-o", "json"]).run().stdout;
    let found: Value = serde_json::from_str(&found).expect("JSON of doctor");
    let checks = found["checks"].as_array().expect("checks").iter();
    let fine = checks.filter(|check| check["state"] == "ok");
    fine.filter_map(|check| Some(check["name"].as_str()?.strip_prefix("jail: ")?.to_owned())).collect()
}

fn all_layers(subject: &Subject) {
    let mut expected: BTreeSet<String> = [
        "capabilities",
        "cgroup",
        "files",
        "hostname",
        "ipc",
        "limits",
        "network",
        "processes",
        "syscalls",
        "user",
    ]
    .map(str::to_owned)
    .into();
    let given = given(subject);
    // Not every kernel has it; the lab's has.
    if subject.driver() == Driver::Krun || given.contains("landlock") {
        expected.insert("landlock".to_owned());
    }
    assert_eq!(given, expected);
    let mut run = subject.run(&Pod::simple("walled")).arg("-d");
    if expected.contains("landlock") {
        run = run.arg("--require-jail");
    }
    run.ok();
    let pod = subject.inspect("walled").unwrap();
    for process in subject.driver().processes() {
        assert_eq!(layers(&pod, process, "had"), expected, "{process}");
        let pid = subject.process("walled", process);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name} of {process}: {status}")).trim().to_owned()
        };
        for capabilities in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(capabilities), "0000000000000000", "{capabilities} of {process}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()), "{process}");
        assert_eq!(field("NSpid").split_whitespace().count(), 2, "{process}");
        let uid: u32 = field("Uid").split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(uid >> 24, 0x70, "{process} is a user that nobody else is");
    }
    subject.cmd(["rm", "-f", "walled"]).ok();
}

fn of(subject: &Subject) -> Inmate {
    Inmate::new(subject)
}

fn nothing_else_is_there(subject: &Subject) {
    subject.start(&Pod::simple("other"));
    let inmate = of(subject);
    // The system call lists allow everything, so that the test reaches the layers behind them.
    let lesson = subject.file("lesson");
    let arguments = inmate.isolation_arguments(subject);
    let run = subject
        .run(&Pod::simple("jailed"))
        .arg("-d")
        .env("MAGIKVM_INMATE", inmate.instead_of(subject.vm_process(), &arguments))
        .env("MAGIKVM_JAIL_LEARN", &lesson);
    let output = run.run();
    assert!(output.stderr.contains("tried, 0 open"), "{}", output.transcript());
    let learnt = std::fs::read_to_string(&lesson).unwrap();
    assert!(learnt.contains(" ptrace ") && learnt.contains(" mount "), "it has tried: {learnt}");
    if subject.driver() == Driver::Qemu {
        let run = subject
            .run(&Pod::simple("jailed"))
            .arg("-d")
            .env("MAGIKVM_INMATE", inmate.instead_of("vhost-device-vsock", &arguments))
            .env("MAGIKVM_JAIL_LEARN", &lesson);
        let output = run.run();
        assert!(output.stderr.contains("tried, 0 open"), "{}", output.transcript());
    }
    // The other pod is unaffected.
    assert_eq!(subject.phase("other"), "Running");
    subject.cmd(["rm", "-f", "other"]).ok();
    // The program finds open doors where there are some.
    let outside = Cmd::new("setpriv")
        .env("PATH", "/usr/bin:/bin")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs"])
        .arg(inmate.outside())
        .args(&arguments)
        .run();
    for door in ["read /etc/passwd", "connect to 127.0.0.1", "execute /bin/sh", "new privileges", "no filter"]
    {
        let seen = outside.stderr.contains(&format!("{MARK}OPEN: {door}"));
        assert_eq!(seen, door != "new privileges", "{door}: {}", outside.transcript());
    }
    drop(inmate);
    wait::until("nothing of it runs", || subject.cmd(["ps", "-q"]).ok().stdout.is_empty());
}

fn calls_beyond_the_list(subject: &Subject) {
    let inmate = of(subject);
    let process = subject.vm_process();
    for call in [
        "ptrace",
        "mount",
        "umount2",
        "unshare",
        "setns",
        "bpf",
        "perf_event_open",
        "add_key",
        "keyctl",
        "request_key",
        "open_by_handle_at",
        "process_vm_readv",
        "kexec_load",
        "init_module",
        "chroot",
        "pivot_root",
        "execve",
        "execveat",
        "setuid",
        "io_uring_enter",
        "fanotify_init",
        "personality",
        "socket",
        "clone",
    ] {
        let instead = inmate.instead_of(process, &["call".to_owned(), call.to_owned()]);
        let run = subject.run(&Pod::simple("jailed")).arg("-d").env("MAGIKVM_INMATE", instead);
        run.run()
            .expect_code(70)
            .complains(&format!("filter: {process} called {call}"))
            .complains("Reason: FilterViolated\n");
    }
}

fn calls_that_are_absent(subject: &Subject) {
    let inmate = of(subject);
    for call in ["io_uring_setup", "userfaultfd", "clone3"] {
        let instead = inmate.instead_of(subject.vm_process(), &["call".to_owned(), call.to_owned()]);
        let run = subject.run(&Pod::simple("jailed")).arg("-d").env("MAGIKVM_INMATE", instead);
        run.run().expect_code(3).complains(&format!("{MARK}{call}: ENOSYS"));
    }
}
