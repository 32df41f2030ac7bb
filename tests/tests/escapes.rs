//! What a program of a container in namespaces tries in order to get out (`programs/escape.c`): with the rights that every container has, with all
//! capabilities in the users of its pod, and with the users of the host.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::Pod;
use magikvm_tests::escape::{IMAGE, import, none_is_open, prisoner};
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::wait::until;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use std::fs::{self, File};

fn host() -> VmHost {
    let host = VmHost::with(Driver::Containers);
    import(&host);
    host
}

#[test]
fn no_way_out_is_open() {
    none_is_open(&host());
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
