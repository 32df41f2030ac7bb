//! The jail beyond the conformance list: for an ordinary user, when its builder dies, and the messages about missing layers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::command::Cmd;
use magikvm_tests::host::program;
use magikvm_tests::inmate::Inmate;
use magikvm_tests::user::{NO_ACCOUNT, Ordinary};
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::{Host, Pod, processes};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

#[test]
fn an_ordinary_users_pod_is_jailed_and_says_what_is_missing() {
    let user = Ordinary::new(Driver::Qemu, NO_ACCOUNT);
    user.run(&Pod::simple("mine")).arg("-d").ok();
    let layers = user.layers("mine");
    for process in ["qemu", "vhost-device-vsock"] {
        let had = layers[process]["had"].as_array().unwrap();
        for layer in
            ["user", "files", "processes", "ipc", "hostname", "network", "capabilities", "limits", "syscalls"]
        {
            assert!(had.contains(&json!(layer)), "{process} has no {layer}: {layers}");
        }
        // Each missing layer is an event. An ordinary user without a delegated control group lacks that layer.
        let missing = layers[process]["missing"].as_array().cloned().unwrap_or_default();
        let events = user.cmd(["events", "mine"]).ok().stdout;
        for layer in &missing {
            let layer = layer["layer"].as_str().unwrap();
            assert!(["cgroup", "landlock"].contains(&layer), "{layers}");
            assert!(
                events.contains(&format!("jail: {process} runs without")) && events.contains(layer),
                "{events}"
            );
        }
        assert_eq!(had.len() + missing.len(), 11, "{layers}");
    }
    user.cmd(["rm", "-f", "mine"]).ok();
    if layers["qemu"].get("missing").is_some() {
        let refused = user.run(&Pod::simple("strict")).args(["-d", "--require-jail"]).run().expect_code(3);
        refused.complains("--require-jail: the host does not provide the layer `");
        assert_eq!(user.cmd(["ps", "-q"]).ok().stdout, "");
    }
}

#[test]
fn an_ordinary_users_vmm_finds_nothing_else() {
    let user = Ordinary::new(Driver::Qemu, NO_ACCOUNT);
    let inmate = Inmate::new(&user);
    let program = inmate.outside();
    user.run(&Pod::simple("other")).arg("-d").ok();
    let mut arguments = inmate.isolation_arguments(&user);
    arguments[1] = user.make("own secret", NO_ACCOUNT, Some("a secret")).to_string_lossy().into_owned();
    for process in ["qemu", "vhost-device-vsock"] {
        let output = user
            .run(&Pod::simple("jailed"))
            .arg("-d")
            .env("MAGIKVM_INMATE", format!("{process}|{}|{}", program.display(), arguments.join("|")))
            .env("MAGIKVM_JAIL_LEARN", user.root().join("lesson"))
            .run();
        assert!(output.stderr.contains("tried, 0 open"), "{process}: {}", output.transcript());
    }
    user.cmd(["rm", "-f", "other"]).ok();
}

/// What a file server must and must not be able to do.
fn expect_of_a_file_server(said: &str, gives_away: bool) {
    for done in [
        "make a file",
        "hide it",
        "read what is hidden",
        "make a pipe",
        "list /proc/self/fd",
        "use the descriptor",
    ] {
        assert!(said.contains(&format!("{done}: done\n")), "{done}: {said}");
    }
    assert_eq!(said.contains("give it to 1000: done\nsee that it is: done\n"), gives_away, "{said}");
    assert!(said.contains("make a device: Operation not permitted"), "{said}");
    assert!(said.contains("list /: Permission denied") || said.contains("list /: proc shared\n"), "{said}");
    assert!(said.contains("unix_wait_status(0))) None\n"), "{said}");
    for layer in ["user", "files", "processes", "network", "capabilities", "syscalls"] {
        assert!(said.contains(&format!("\"{layer}\"")), "{layer}: {said}");
    }
    // The first eight capabilities without CAP_KILL, as the kernel and as the jail say it.
    assert!(said.contains("CapPrm: 00000000000000df\n"), "{said}");
    let names = ["CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "SETGID", "SETUID"];
    let names: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    assert!(said.contains(&format!("\"kept\":{}", json!(names))), "{said}");
}

#[test]
fn a_file_server_may_do_all_with_what_it_serves_and_nothing_else() {
    let host = Host::bare();
    let shared = host.file("shared");
    fs::create_dir(&shared).unwrap();
    let said = host.cmd(["__file_trial"]).arg(&shared).ok().stdout;
    expect_of_a_file_server(&said, true);
    // The same for an ordinary user, who cannot change owners without subordinate IDs.
    let base = tempfile::Builder::new().prefix("magikvm-test-").tempdir().unwrap();
    let (own, its) = (base.path().join("magikvm"), base.path().join("shared"));
    fs::copy(program(), &own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&its).unwrap();
    for path in [base.path(), &its] {
        chown(path, Some(NO_ACCOUNT), Some(NO_ACCOUNT)).unwrap();
    }
    let user = Cmd::new("setpriv")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args([format!("--reuid={NO_ACCOUNT}"), format!("--regid={NO_ACCOUNT}")])
        .args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
        .arg(&own)
        .arg("__file_trial")
        .arg(&its);
    expect_of_a_file_server(&user.ok().stdout, false);
}

/// The builder of a jail stays in contact with its parent and ends when the parent is gone.
#[test]
fn a_jail_whose_starter_died_is_not_finished() {
    let host = Host::bare();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let number = rustix_dup(&theirs);
    drop(theirs);
    let mut jail = std::process::Command::new("sh")
        .args(["-c", &format!("exec {} __jail {number}", program().display())])
        .current_dir(host.root())
        .spawn()
        .unwrap();
    nix::unistd::close(number).unwrap();
    drop(ours);
    let status = jail.wait().unwrap();
    assert!(!status.success(), "{status}");
    assert!(processes::of_directory(&host.root()).is_empty());
}

fn rustix_dup(socket: &std::os::unix::net::UnixStream) -> i32 {
    // Not closed on exec, and with a number in the range of descriptors that are passed to a jail.
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_DUPFD(200)).unwrap()
}

#[test]
fn a_program_that_is_none_is_said_to_be_one() {
    let host = VmHost::new();
    let before = host.holdings();
    let script = host.file("qemu");
    fs::write(&script, "#!/nowhere/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let output = host
        .run(&Pod::simple("bad"))
        .arg("-d")
        .env("MAGIKVM_INMATE", format!("qemu|{}", script.display()))
        .limit(Duration::from_secs(40))
        .run();
    output
        .expect_code(3)
        .complains("cannot start qemu in a jail")
        .complains(&format!("execute {}", script.display()));
    host.assert_as_before(&before);
}
