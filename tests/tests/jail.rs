//! The jail beyond the conformance list: for an ordinary user, when its builder dies, and the messages about missing layers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::command::Cmd;
use magikvm_tests::host::program;
use magikvm_tests::inmate::Inmate;
use magikvm_tests::layout::write_layout_for;
use magikvm_tests::virtual_machine::{VmHost, busybox, guest_image, in_path};
use magikvm_tests::{Host, Pod, processes};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A user ID without an account.
const UNKNOWN_UID: u32 = 54_321;

/// The host of an unprivileged user with a private copy of the program, a guest image and a home directory.
struct Ordinary {
    host: VmHost,
    home: tempfile::TempDir,
}

fn copy(from: &Path, to: &Path, mode: u32) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
}

impl Ordinary {
    fn new() -> Self {
        let host = VmHost::new();
        let home = tempfile::Builder::new().prefix("magikvm-test-").tempdir().unwrap();
        let base = home.path().to_owned();
        let at = |name: &str| base.join(name);
        copy(program(), &at("magikvm"), 0o755);
        copy(&in_path("vhost-device-vsock"), &at("vhost-device-vsock"), 0o755);
        for dir in ["guest", "root", "layout"] {
            fs::create_dir(at(dir)).unwrap();
        }
        for part in ["vmlinux", "initramfs", "manifest.json"] {
            copy(&Path::new(&guest_image()).join(part), &at("guest").join(part), 0o644);
        }
        fs::remove_dir(at("layout")).unwrap();
        let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
        write_layout_for(magikvm_tests::layout::goarch(), &at("layout"), busybox(), &config);
        for path in [home.path(), &at("root"), &at("guest")] {
            chown(path, Some(UNKNOWN_UID), Some(UNKNOWN_UID)).unwrap();
        }
        let own = Self { host, home };
        own.cmd(&["image", "import", &format!("oci:{}:1", at("layout").display()), "--name", "test/app:1"])
            .ok();
        own
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn cmd(&self, arguments: &[&str]) -> Cmd {
        let path = |name: &str| self.at(name).to_string_lossy().into_owned();
        Cmd::new("setpriv")
            .args([format!("--reuid={UNKNOWN_UID}"), format!("--regid={UNKNOWN_UID}")])
            .args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
            .arg(path("magikvm"))
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", path(""))
            .env("MAGIKVM_ROOT", path("root"))
            .env("MAGIKVM_GUEST", path("guest"))
            .env("MAGIKVM_VHOST_DEVICE_VSOCK", path("vhost-device-vsock"))
            .env("MAGIKVM_VMM", "qemu")
            .env("MAGIKVM_ACCEL", "tcg")
            .env("MAGIKVM_QUIET", "1")
            .current_dir(self.home.path())
    }

    fn run(&self, pod: &Pod) -> Cmd {
        let path = self.at(&format!("{}.yaml", pod.name()));
        fs::write(&path, pod.text()).unwrap();
        self.cmd(&["run"]).arg(path)
    }
}

#[test]
fn an_ordinary_users_pod_is_jailed_and_says_what_is_missing() {
    let user = Ordinary::new();
    user.run(&Pod::simple("mine")).arg("-d").ok();
    let pod: Value = serde_json::from_str(&user.cmd(&["inspect", "-o", "json", "mine"]).ok().stdout).unwrap();
    let layers = pod["metadata"]["annotations"]["magikvm.dev/jail"].as_str().unwrap();
    let layers: Value = serde_json::from_str(layers).unwrap();
    for process in ["qemu", "vhost-device-vsock"] {
        let had = layers[process]["had"].as_array().unwrap();
        for layer in
            ["user", "files", "processes", "ipc", "hostname", "network", "capabilities", "limits", "syscalls"]
        {
            assert!(had.contains(&json!(layer)), "{process} has no {layer}: {layers}");
        }
        // Each missing layer is an event. An ordinary user without a delegated control group lacks that layer.
        let missing = layers[process]["missing"].as_array().cloned().unwrap_or_default();
        let events = user.cmd(&["events", "mine"]).ok().stdout;
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
    user.cmd(&["rm", "-f", "mine"]).ok();
    if layers["qemu"].get("missing").is_some() {
        let refused = user.run(&Pod::simple("strict")).args(["-d", "--require-jail"]).run().expect_code(3);
        refused.complains("--require-jail: the host does not provide the layer `");
        assert_eq!(user.cmd(&["ps", "-q"]).ok().stdout, "");
    }
    drop(user.host);
}

#[test]
fn an_ordinary_users_vmm_finds_nothing_else() {
    let user = Ordinary::new();
    let inmate = Inmate::new(&user.host);
    let program = inmate.outside();
    let secret = user.at("secret");
    fs::write(&secret, "a secret").unwrap();
    chown(&secret, Some(UNKNOWN_UID), Some(UNKNOWN_UID)).unwrap();
    user.run(&Pod::simple("other")).arg("-d").ok();
    let mut arguments = inmate.isolation_arguments(&user.host);
    arguments[1] = secret.to_string_lossy().into_owned();
    arguments[2] = user.at("root/run/pods").to_string_lossy().into_owned();
    arguments[3] = user.at("root/data/images").to_string_lossy().into_owned();
    for process in ["qemu", "vhost-device-vsock"] {
        let output = user
            .run(&Pod::simple("jailed"))
            .arg("-d")
            .env("MAGIKVM_INMATE", format!("{process}|{}|{}", program.display(), arguments.join("|")))
            .env("MAGIKVM_JAIL_LEARN", user.at("root/lesson"))
            .run();
        assert!(output.stderr.contains("tried, 0 open"), "{process}: {}", output.transcript());
    }
    user.cmd(&["rm", "-f", "other"]).ok();
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
    copy(program(), &own, 0o755);
    fs::create_dir(&its).unwrap();
    for path in [base.path(), &its] {
        chown(path, Some(UNKNOWN_UID), Some(UNKNOWN_UID)).unwrap();
    }
    let user = Cmd::new("setpriv")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args([format!("--reuid={UNKNOWN_UID}"), format!("--regid={UNKNOWN_UID}")])
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
