//! The system calls that a program in a container can make, even with every capability.

use crate::row::{Difference, Group, NAMESPACES, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::layout::Tar;
use magikvm_tests::programs::PROBE;
use magikvm_tests::virtual_machine::busybox;
use serde_json::{Value, json};

const POD: &str = "probe";
/// One container with default capabilities, one with all of them.
const CONTAINERS: [&str; 2] = ["plain", "mighty"];

pub(crate) static GROUP: Group = Group {
    name: "isolation",
    title: "Containers can reach neither the agent nor the kernel's dangerous calls",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "an_image_with_one_program",
            "An image runs that contains one program and neither /etc nor /proc nor /dev.",
            an_image_with_one_program,
        )
        .of("`image`"),
        Row::code("usual_sockets", "It may open network sockets and Unix sockets.", usual_sockets),
        Row::code(
            "no_sockets_of_the_vm",
            "It cannot open vsock sockets, which lead to the agent, in any way.",
            no_sockets_of_the_vm,
        ),
        Row::code(
            "no_rare_calls",
            "It can neither set up an io_uring nor load another kernel.",
            no_rare_calls,
        ),
        Row::code(
            "labels_of_an_image",
            "Labels of an image that are named as the annotations of a Pod change nothing.",
            labels_of_an_image,
        )
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "it sees the processors and the memory of the host",
            says: "much",
        }]),
        Row::code(
            "calls_nobody_knows",
            "An unknown system call returns ENOSYS, so that programs fall back to older ones.",
            calls_nobody_knows,
        ),
    ],
};

/// Annotations of a Pod that change its VM.
const ANNOTATIONS: [(&str, &str); 4] = [
    ("magikvm.dev/memory-mib", "2048"),
    ("magikvm.dev/vcpus", "3"),
    ("magikvm.dev/network", "tsi"),
    ("magikvm.dev/nested-virtualization", "true"),
];

/// Prints the number of processors, whether they can make VMs, whether memory is more than a GiB, and the network devices.
const LOOK: &str = "nproc; grep -cwE 'vmx|svm' /proc/cpuinfo; awk '/MemTotal/ { print ($2 > 1048576 ? \"much\" : \"little\") }' /proc/meminfo; ls /sys/class/net | grep -v sit";

fn labels_of_an_image(subject: &Subject) {
    let processors = std::thread::available_parallelism().unwrap().get().min(2);
    assert_eq!(subject.logs(POD, "labelled"), format!("{processors}\n0\nlittle\nlo\n"));
}

fn start(subject: &Subject) {
    // No PATH, no /etc, no /proc, no /dev.
    subject.import("probe:1", Tar::default().file("probe", 0o755, PROBE), &json!({ "Cmd": ["/probe"] }));
    let labels: Value = ANNOTATIONS.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    subject.import("labelled:1", busybox(), &json!({ "Labels": labels }));
    let [plain, mighty] = CONTAINERS;
    let pod = Pod::new(POD)
        .container_of(plain, "probe:1", &["/probe"])
        .with("securityContext", json!({}))
        .container_of(mighty, "probe:1", &["/probe"])
        .with("securityContext", json!({ "capabilities": { "add": ["ALL"] } }))
        .container_of("labelled", "labelled:1", &["sh", "-c", LOOK]);
    subject.run(&pod).ok();
}

/// The probe's results for ten calls, in each container.
fn said(subject: &Subject) -> [Vec<String>; 2] {
    CONTAINERS.map(|container| subject.logs(POD, container).lines().map(str::to_owned).collect())
}

fn an_image_with_one_program(subject: &Subject) {
    assert_eq!(said(subject).map(|lines| lines.len()), [10, 10]);
    assert_eq!(subject.phase(POD), "Succeeded");
}

fn usual_sockets(subject: &Subject) {
    for lines in said(subject) {
        assert_eq!(lines[..2], ["inet: works", "unix: works"]);
    }
}

fn no_sockets_of_the_vm(subject: &Subject) {
    for lines in said(subject) {
        for line in &lines[2..6] {
            assert!(line.starts_with("vsock") && !line.ends_with("works"), "{lines:?}");
        }
    }
}

fn no_rare_calls(subject: &Subject) {
    for lines in said(subject) {
        for (line, call) in [(6, "io_uring"), (8, "kexec_load")] {
            assert!(lines[line].starts_with(call) && !lines[line].ends_with("works"), "{lines:?}");
        }
    }
}

fn calls_nobody_knows(subject: &Subject) {
    for lines in said(subject) {
        assert_eq!(lines[9], "no such call: ENOSYS");
    }
}
