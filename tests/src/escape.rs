//! What a program of a container without a VM tries in order to get out (`programs/escape.c`).

use crate::layout::Tar;
use crate::manifest::Pod;
use crate::programs::ESCAPE;
use crate::virtual_machine::{VmHost, busybox};
use serde_json::json;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// The image that has the program.
pub const IMAGE: &str = "escape:1";

/// Imports it.
pub fn import(host: &VmHost) {
    let image: Tar = busybox()
        .file("escape", 0o755, ESCAPE)
        // Whoever executes this executes the program of the process that calls execve.
        .file("lure", 0o755, b"#!/proc/self/exe\n");
    host.import(IMAGE, image, &json!({}));
}

/// An abstract socket of the host, whose name ends with a number that nothing else has.
fn door() -> (UnixListener, u16) {
    let number = TcpListener::bind("127.0.0.1:0")
        .expect("a socket of the host")
        .local_addr()
        .expect("a socket of the host")
        .port();
    let address = SocketAddr::from_abstract_name(format!("magikvm-{number}")).expect("a socket of the host");
    (UnixListener::bind_addr(&address).expect("a socket of the host"), number)
}

/// A pod that waits for the program to be executed.
pub fn prisoner(name: &str) -> Pod {
    Pod::new(name).container_of("web", IMAGE, &["sleep", "43351"])
}

/// Everything that worked in a pod, and how much was tried.
pub fn attempts(host: &VmHost, pod: &str) -> (Vec<String>, u32) {
    let (_door, number) = door();
    let supervisor = host.process(pod, "supervisor");
    let sandbox = host.process(pod, "sandbox");
    let pids = format!("{supervisor},{sandbox},{}", std::process::id());
    let output = host.cmd(["exec", pod, "--", "/escape", &pids, &number.to_string()]).run();
    assert_eq!(output.code, 7, "{}", output.transcript());
    let (mut open, mut tried) = (Vec::new(), 0);
    for line in output.stdout.lines() {
        match line.strip_suffix(" tried") {
            Some(count) => tried = count.parse().expect("a number"),
            None => open.push(line.to_owned()),
        }
    }
    (open, tried)
}

/// Pods with the usual rights, with all capabilities in users of their own, with the users of the host, and with processes that see each other.
/// Fails unless no way out of any of them is open.
pub fn none_is_open(host: &VmHost) {
    let before = host.holdings();
    let all = json!({ "capabilities": { "add": ["ALL"] } });
    let pods = [
        prisoner("usual"),
        prisoner("mighty").with("securityContext", all),
        prisoner("hosts").set("spec/hostUsers", true),
        prisoner("shared").set("spec/shareProcessNamespace", true),
    ];
    for pod in &pods {
        host.start(pod);
        let (open, tried) = attempts(host, pod.name());
        assert!(tried > 90, "{}: {tried}", pod.name());
        assert_eq!(open, Vec::<String>::new(), "{}", pod.name());
        host.cmd(["rm", "-f", pod.name()]).ok();
        host.assert_as_before(&before);
    }
}
