//! What a program of a container in namespaces tries in order to get out (`programs/escape.c`): with the rights that every container has, with all
//! capabilities in the users of its pod, and with the users of the host.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::Pod;
use magikvm_tests::programs::ESCAPE;
use magikvm_tests::virtual_machine::{Driver, VmHost, busybox};
use magikvm_tests::wait::until;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use serde_json::json;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

const IMAGE: &str = "escape:1";

fn host() -> VmHost {
    let host = VmHost::with(Driver::Containers);
    let image = busybox()
        .file("escape", 0o755, ESCAPE)
        // Whoever executes this executes the program of the process that calls execve.
        .file("lure", 0o755, b"#!/proc/self/exe\n");
    host.import(IMAGE, image, &json!({}));
    host
}

/// An abstract socket of the host, whose name ends with a number that nothing else has.
fn door() -> (UnixListener, u16) {
    let number = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = SocketAddr::from_abstract_name(format!("magikvm-{number}")).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), number)
}

fn prisoner(name: &str) -> Pod {
    Pod::new(name).container_of("web", IMAGE, &["sleep", "43351"])
}

/// Everything that worked, and how much was tried.
fn attempts(host: &VmHost, pod: &str) -> (Vec<String>, u32) {
    let (_door, number) = door();
    let supervisor = host.process(pod, "supervisor");
    let sandbox = host.process(pod, "sandbox");
    let pids = format!("{supervisor},{sandbox},{}", std::process::id());
    let output = host.cmd(["exec", pod, "--", "/escape", &pids, &number.to_string()]).run();
    assert_eq!(output.code, 7, "{}", output.transcript());
    let (mut open, mut tried) = (Vec::new(), 0);
    for line in output.stdout.lines() {
        match line.strip_suffix(" tried") {
            Some(count) => tried = count.parse().unwrap(),
            None => open.push(line.to_owned()),
        }
    }
    (open, tried)
}

#[test]
fn no_way_out_is_open() {
    let host = host();
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
        let (open, tried) = attempts(&host, pod.name());
        assert!(tried > 90, "{}: {tried}", pod.name());
        assert_eq!(open, Vec::<String>::new(), "{}", pod.name());
        host.cmd(["rm", "-f", pod.name()]).ok();
        host.assert_as_before(&before);
    }
}

/// CVE-2019-5736: a container has the program that enters it executed as an interpreter, and writes to it.
#[test]
fn the_program_that_enters_a_container_stays_as_it_is() {
    let host = host();
    let before = host.holdings();
    let program = magikvm_tests::host::program().with_file_name("magikvm-containers");
    let content = fs::read(&program).unwrap();
    for (name, of_host) in [("own", false), ("hosts", true)] {
        host.start(&prisoner(name).set("spec/hostUsers", of_host));
        let watching = host.cmd(["exec", name, "--", "/escape", "exe", "6"]).spawn();
        for _ in 0..100 {
            host.cmd(["exec", name, "--", "/lure"]).run();
        }
        let output = watching.wait();
        assert!(output.stdout.starts_with("seen "), "{name}: {}", output.transcript());
        assert!(fs::read(&program).unwrap() == content, "{name}: the program has been changed");
        if of_host {
            let executed = File::open(format!("/proc/{}/exe", host.process(name, "supervisor"))).unwrap();
            let seals = SealFlag::from_bits_truncate(fcntl(&executed, FcntlArg::F_GET_SEALS).unwrap());
            assert!(seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL), "{seals:?}");
        }
        host.cmd(["rm", "-f", name]).ok();
    }
    host.assert_as_before(&before);
}

/// A working directory that a leaked descriptor would lead out of the container (CVE-2024-21626).
#[test]
fn no_working_directory_is_outside_of_the_container() {
    let host = host();
    let before = host.holdings();
    for number in 3..24 {
        let name = format!("cwd-{number}");
        let pod = Pod::new(&name)
            .set("spec/restartPolicy", "Never")
            .container_of("web", IMAGE, &["/bin/pwd"])
            .with("workingDir", format!("/proc/self/fd/{number}"));
        let output = host.run(&pod).arg("--rm").run();
        // It is no directory of the container, so that it may be made or refused, and nothing of the host is in it.
        assert!(!output.stdout.contains("(unreachable)"), "{}", output.transcript());
        assert!(output.code != 0 || output.stdout.contains("/proc/self/fd"), "{}", output.transcript());
        until("its end", || host.inspect(&name).is_none());
    }
    host.assert_as_before(&before);
}

/// Clients enter a pod while it ends.
#[test]
fn who_enters_a_pod_that_ends_does_not_keep_it() {
    let host = host();
    let before = host.holdings();
    for turn in 0..5 {
        let name = format!("ends-{turn}");
        host.start(&prisoner(&name).set("spec/terminationGracePeriodSeconds", 0));
        let clients: Vec<_> =
            (0..8).map(|_| host.cmd(["exec", &name, "--", "sleep", "43361"]).spawn()).collect();
        host.cmd(["rm", "-f", &name]).ok();
        for client in clients {
            assert_ne!(client.wait().code, 0);
        }
        host.assert_as_before(&before);
    }
}
