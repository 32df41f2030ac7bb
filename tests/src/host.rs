//! A private host for each test: a state directory, an environment without the caller's variables, and the program under test.

use crate::command::{Cmd, Output};
use crate::layout::{Tar, goarch, write_layout_for};
use crate::leaks::{self, Holdings};
use crate::manifest::Pod;
use crate::{processes, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The image that every host has.
pub const IMAGE: &str = "test/app:1";
const ADVICE: &str = "run the tests with ci/test.sh, which builds everything they need";

/// The program under test: `MAGIKVM_BIN`, or else the one beside this test in cargo's directory. It must be built with the feature
/// `testing`.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let named = std::env::var_os("MAGIKVM_BIN").map(PathBuf::from);
        let beside = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("magikvm"));
        let program = named.or_else(beside).expect(ADVICE);
        assert!(program.is_file(), "{} is not there: {ADVICE}", program.display());
        let help = Cmd::new(&program).args(["run", "--help"]).ok().stdout;
        assert!(
            help.contains("fake"),
            "{} was built without the feature `testing`: {ADVICE}",
            program.display()
        );
        program
    })
}

/// Sets how long a first boot may be silent, in milliseconds.
pub const FIRST_BOOT_WAIT: &str = "MAGIKVM_FIRST_BOOT_WAIT_MS";
/// The time that all boots have together.
pub const NO_SECOND_BOOT: &str = "60000";

/// A state directory, its environment, files and processes, which all go with the value.
#[derive(Debug)]
pub struct Host {
    dir: tempfile::TempDir,
    environment: BTreeMap<String, String>,
    /// A command that runs magikvm with the arguments that follow, as somebody else.
    wrapper: Vec<OsString>,
}

impl Host {
    /// A host for the fake VMM, with a small image.
    pub fn fake() -> Self {
        let host = Self::bare();
        let layer = Tar::default().dir("bin/", 0o755).file("bin/app", 0o755, b"#!/bin/true\n");
        host.import(IMAGE, layer, &json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/app"] }));
        host
    }

    pub fn bare() -> Self {
        let dir = tempfile::Builder::new().prefix("magikvm-test-").tempdir().expect("a temporary directory");
        for name in ["home", "root", "tmp", "files"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let below = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let mut environment = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("HOME".to_owned(), below("home")),
            ("TMPDIR".to_owned(), below("tmp")),
            ("LC_ALL".to_owned(), "C.UTF-8".to_owned()),
            ("MAGIKVM_ROOT".to_owned(), below("root")),
            ("MAGIKVM_QUIET".to_owned(), "1".to_owned()),
        ]);
        // For those who measure the lists of system calls with these tests.
        const MEASURE: &str = "MAGIKVM_JAIL_MEASURE";
        environment.extend(std::env::var(MEASURE).map(|file| (MEASURE.to_owned(), file)));
        Self { dir, environment, wrapper: Vec::new() }
    }

    /// Sets a variable for all commands from now on.
    pub fn set_env(&mut self, name: &str, value: impl Into<String>) {
        self.environment.insert(name.to_owned(), value.into());
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A directory for a test's files, outside of the state directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    /// The directory of a pod in namespace `default`.
    pub fn pod_dir(&self, name: &str) -> PathBuf {
        self.root().join("run/pods").join(format!("default_{name}"))
    }

    /// `magikvm` with these arguments.
    pub fn cmd<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Cmd {
        let words = self.words();
        self.other(&words[0]).args(&words[1..]).args(args)
    }

    /// What runs `magikvm` with the arguments that follow.
    pub fn words(&self) -> Vec<OsString> {
        if self.wrapper.is_empty() { vec![program().into()] } else { self.wrapper.clone() }
    }

    /// Lets this command, with its arguments, run magikvm from now on.
    pub fn wrap(&mut self, wrapper: Vec<OsString>) {
        self.wrapper = wrapper;
    }

    /// Another program in the same environment.
    pub fn other(&self, program: impl AsRef<OsStr>) -> Cmd {
        self.environment
            .iter()
            .fold(Cmd::new(program), |cmd, (name, value)| cmd.env(name, value))
            .current_dir(self.dir.path())
    }

    /// Writes a manifest and returns its path.
    pub fn manifest(&self, pod: &Pod) -> PathBuf {
        let path = self.file(&format!("{}.yaml", pod.name()));
        fs::write(&path, pod.text()).unwrap();
        path
    }

    /// `magikvm run` of a pod with the fake VMM, in the foreground; a test adds `-d` and other options itself. A guest that is silent once is
    /// given up soon.
    pub fn run_fake(&self, pod: &Pod, manner: &str) -> Cmd {
        let run = self.cmd(["run", "--vmm", "fake"]).arg(self.manifest(pod)).env("MAGIKVM_FAKE", manner);
        if manner == "silent-once" { run.env(FIRST_BOOT_WAIT, "200") } else { run }
    }

    /// Starts a pod with the fake VMM in the background.
    #[track_caller]
    pub fn start_fake(&self, pod: &Pod, manner: &str) {
        let output = self.run_fake(pod, manner).arg("-d").ok();
        assert_eq!((output.stdout, output.stderr), (format!("default/{}\n", pod.name()), String::new()));
    }

    /// The same for a pod whose images are pulled, with progress on standard error.
    #[track_caller]
    pub fn start_fake_quietly(&self, pod: &Pod) {
        let output = self.run_fake(pod, "run").arg("-d").ok();
        assert_eq!(output.stdout, format!("default/{}\n", pod.name()));
    }

    /// Imports an image of one layer.
    #[track_caller]
    pub fn import(&self, name: &str, layer: Tar, config: &Value) -> Output {
        self.import_for(goarch(), name, layer, config)
    }

    /// Imports an image of one layer for an architecture, by its name in image configurations.
    #[track_caller]
    pub fn import_for(&self, architecture: &str, name: &str, layer: Tar, config: &Value) -> Output {
        let layout = self.file("layout");
        write_layout_for(architecture, &layout, layer, config);
        let output = self
            .cmd(["image", "import"])
            .arg(format!("oci:{}:1", layout.display()))
            .args(["--name", name, "--platform", &format!("linux/{architecture}")])
            .ok();
        fs::remove_dir_all(&layout).unwrap();
        output
    }

    /// A pod as `inspect` shows it; `None` when there is none.
    pub fn inspect(&self, name: &str) -> Option<Value> {
        let output = self.cmd(["inspect", "-o", "json", name]).run();
        (output.code == 0).then(|| serde_json::from_str(&output.stdout).expect("JSON of inspect"))
    }

    /// The phase of a pod as `ps` shows it; empty when there is none.
    pub fn phase(&self, name: &str) -> String {
        let listed = self.cmd(["ps"]).ok().stdout;
        let row =
            listed.lines().find_map(|line| line.strip_prefix(&format!("default/{name} ")).map(str::to_owned));
        row.and_then(|row| row.split_ascii_whitespace().next().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until `ps` shows a pod in a phase.
    #[track_caller]
    pub fn wait_for_phase(&self, name: &str, phase: &str) {
        wait::until(&format!("pod {name} is {phase} (it is {:?})", self.phase(name)), || {
            self.phase(name) == phase
        });
    }

    /// Waits until the monitor of a pod has ended.
    #[track_caller]
    pub fn wait_for_monitor_end(&self, name: &str) {
        let dir = self.pod_dir(name);
        wait::until(&format!("the monitor of {name} has ended"), || {
            !processes::of_directory(&dir).iter().any(|process| process.command.contains("__monitor"))
        });
    }

    /// Lets an ordinary user use this host, and returns the program with these arguments as that user.
    pub fn as_user<A: AsRef<OsStr>>(&self, uid: u32, args: impl IntoIterator<Item = A>) -> Cmd {
        let (user, dir) = (format!("{uid}:{uid}"), self.dir.path());
        Cmd::new("/bin/chown").args(["-R", &user]).arg(dir).ok();
        let copy = self.file("magikvm");
        if !copy.exists() {
            fs::copy(program(), &copy).expect("copy the program");
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let id = [format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()];
        self.other("/usr/bin/setpriv").args(id).arg(copy).args(args)
    }

    /// The PID of a pod's process, from the pod's state: `monitor`, `fake`, or one of its VMM's.
    #[track_caller]
    pub fn process(&self, pod: &str, name: &str) -> i32 {
        let path = self.pod_dir(pod).join("state.json");
        let find = || {
            let state: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            let process = state["processes"].as_array()?.iter().find(|process| process["name"] == name)?;
            i32::try_from(process["pid"].as_i64()?).ok()
        };
        wait::wait_for(&format!("process {name} of pod {pod}"), std::time::Duration::from_secs(20), find)
    }

    /// Removes a directory in which others may still make files.
    #[track_caller]
    pub fn remove(&self, dir: &Path) {
        wait::until(&format!("{} is removed", dir.display()), || {
            fs::remove_dir_all(dir).is_ok() || !dir.exists()
        });
    }

    /// Everything that the system holds of this host now.
    pub fn holdings(&self) -> Holdings {
        Holdings::of(&self.root(), &self.dir.path().join("tmp"))
    }

    /// Fails the test with the names of leaks unless the system returns to what it held of this host before.
    #[track_caller]
    pub fn assert_as_before(&self, before: &Holdings) {
        leaks::assert_as_before(&self.root(), &self.dir.path().join("tmp"), before);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Monitors first, because nothing new is started without them.
        for _ in 0..100 {
            let left = processes::of_directory(self.dir.path());
            if left.is_empty() && leaks::remove_cgroups(&self.root()) {
                return;
            }
            for process in left {
                // The process may have ended by itself meanwhile.
                kill(Pid::from_raw(process.pid), Signal::SIGKILL).ok();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
