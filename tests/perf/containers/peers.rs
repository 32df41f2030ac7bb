//! The peers: runtimes of OCI bundles, which know no pods, and podman. They use the same image, and keep what they make in the benchmark's directory.

use crate::compare::done;
use magikvm_tests::bench::{Result, var};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The place of the second version of control groups on a host that has both.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// What crun is asked to do: the arguments of one run.
type Job = Vec<String>;

/// A root file system with the configuration that crun writes by itself.
pub(super) struct Bundle {
    dir: PathBuf,
    state: PathBuf,
    crun: Option<Crun>,
}

/// crun 1.8 refuses hosts that have control groups of both versions. It is started by a thread in whose mount namespace there are only those of the
/// first one.
struct Crun {
    jobs: SyncSender<Job>,
    ended: Receiver<io::Result<Output>>,
}

/// A program of Debian's packages that are unpacked in a directory and not installed.
fn unpacked(peers: &Path, program: &str) -> Command {
    let mut command = Command::new(peers.join("usr/bin").join(program));
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    command.env("LD_LIBRARY_PATH", peers.join(libraries));
    command
}

impl Bundle {
    pub(super) fn new(work: &Path) -> Result<Self> {
        let (dir, state) = (work.join("bundle"), work.join("bundle-state"));
        let image = format!("{}:1", var("MAGIKVM_DEMO_IMAGE")?.display());
        done(Command::new("umoci").args(["unpack", "--image", &image]).arg(&dir))?;
        let config = dir.join("config.json");
        fs::remove_file(&config)?;
        let peers = var("MAGIKVM_BENCH_PEERS")?;
        done(unpacked(&peers, "crun").arg("spec").current_dir(&dir))?;
        let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(["/bin/true"]);
        fs::write(&config, spec.to_string())?;
        let mut bundle = Self { dir, state, crun: Some(Crun::start(peers)?) };
        if let Err(error) = bundle.crun() {
            println!("crun does not run here, and runc alone is measured: {error}");
            bundle.crun = None;
        }
        Ok(bundle)
    }

    pub(super) fn has_crun(&self) -> bool {
        self.crun.is_some()
    }

    fn args(&self, runtime: &str) -> Vec<String> {
        let (state, dir) = (self.state.join(runtime), &self.dir);
        let args = ["--root", &state.to_string_lossy(), "run", "--bundle", &dir.to_string_lossy(), "one"];
        args.map(str::to_owned).to_vec()
    }

    pub(super) fn crun(&self) -> Result<()> {
        let crun = self.crun.as_ref().ok_or("there is no crun")?;
        crun.jobs.send(self.args("crun"))?;
        let output = crun.ended.recv()??;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
        }
    }

    pub(super) fn runc(&self) -> Result<()> {
        done(Command::new("runc").args(self.args("runc")))
    }
}

impl Crun {
    fn start(peers: PathBuf) -> Result<Self> {
        let (jobs, todo) = sync_channel::<Job>(0);
        let (tell, ended) = sync_channel(0);
        let run = move || {
            let mut entered = without_unified();
            while let Ok(args) = todo.recv() {
                // The first job tells why there is no such namespace.
                let entered = std::mem::replace(&mut entered, Ok(()));
                let outcome = entered.and_then(|()| unpacked(&peers, "crun").args(args).output());
                if tell.send(outcome).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("crun".to_owned()).spawn(run)?;
        Ok(Self { jobs, ended })
    }
}

/// Gives the calling thread a mount namespace without the second version of control groups.
fn without_unified() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    if Path::new(UNIFIED).join("cgroup.controllers").exists() {
        umount2(UNIFIED, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// podman with a storage of its own, for root.
pub(super) struct Podman {
    dir: PathBuf,
}

/// The driver of podman's storage: the one that it uses by default.
const DRIVER: &str = "overlay";
pub(super) const IMAGE: &str = "localhost/demo/busybox:1";

impl Podman {
    pub(super) fn new(work: &Path) -> Result<Self> {
        let podman = Self { dir: work.join("podman") };
        fs::create_dir_all(&podman.dir)?;
        let programs = var("MAGIKVM_BENCH_PEERS")?.join("usr/bin");
        // catatonit is what podman builds the image of its pause container from. Limits of files and processes above those of the host need a
        // right that root does not have everywhere.
        fs::write(
            podman.dir.join("containers.conf"),
            format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\nhelper_binaries_dir = [\"{}\"]\n",
                programs.display()
            ),
        )?;
        let layout = var("MAGIKVM_DEMO_IMAGE")?;
        // podman makes a name of the path, in which no part may begin with a dot.
        let (above, name) = (layout.parent(), layout.file_name().unwrap_or_default());
        let mut pull = podman.command(&["pull", "--quiet", &format!("oci:{}:1", name.display())]);
        let pulled = Self::printed(pull.current_dir(above.unwrap_or(Path::new("/"))))?;
        podman.run(&["tag", pulled.trim(), IMAGE])?;
        let version = podman.output(&["version", "--format", "{{.Client.Version}}"])?;
        println!("podman {}, storage driver {DRIVER}, runtime runc", version.trim());
        Ok(podman)
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .arg("--root")
            .arg(self.dir.join("storage"))
            .arg("--runroot")
            .arg(self.dir.join("run"))
            .args(["--storage-driver", DRIVER, "--runtime", "runc", "--cgroup-manager", "cgroupfs"])
            .args(args);
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Result<()> {
        done(&mut self.command(args))
    }

    pub(super) fn output(&self, args: &[&str]) -> Result<String> {
        Self::printed(&mut self.command(args))
    }

    fn printed(command: &mut Command) -> Result<String> {
        let output = command.output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Its storage has mounts, which the removal of the directory would not survive.
        self.run(&["rm", "--force", "--all", "--time", "0"]).ok();
        self.run(&["pod", "rm", "--force", "--all"]).ok();
        umount2(&self.dir.join("storage/overlay"), MntFlags::MNT_DETACH).ok();
    }
}
