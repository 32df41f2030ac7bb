//! One run of the lab: its files, its two processes, its time limit, its result.

use crate::command::LabCommand;
use crate::error::Words;
use crate::{LabError, count, is_inside, monitor, spawn, turn};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// Where the lab puts files that are copied out; the lab's `MAGIKVM_LAB_OUT` names it.
pub const OUT: &str = "/run/lab/out";
const INIT: &str = include_str!("guest/init.sh");
const SERVE: &str = include_str!("guest/serve.sh");
const VIRTIOFSD: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"];
const PAUSE: Duration = Duration::from_millis(5);
/// How long QEMU may take to end once the shared files are gone.
const LETTING_GO: Duration = Duration::from_secs(5);
/// Limit of standard output and of standard error.
const MAX_OUTPUT: u64 = 64 << 20;
/// How much of each stream an error shows.
const TAIL: u64 = 8192;
/// Self-tests and noise generators of the outer kernel that each cost a tenth of a second under emulation and are not needed here.
const SKIPPED: &str = "jent_mod_init,bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init";

/// A prepared lab. Each run is a fresh boot.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    qemu: PathBuf,
    virtiofsd: PathBuf,
}

/// The result of a command in the lab.
#[derive(Debug)]
pub struct LabOutput {
    /// Exit code; 128 and the number of the signal that ended it.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Output of the outer kernel.
    pub console: String,
    /// From the start of QEMU until the command started.
    pub boot: Duration,
    /// From the start of QEMU to its end.
    pub took: Duration,
    run: RunDir,
}

impl LabOutput {
    /// The command's files in [`OUT`]. Dropping this value removes them.
    pub fn out_dir(&self) -> PathBuf {
        self.run.shared("out")
    }
}

impl Lab {
    /// The lab that `ci/lib.sh` prepared.
    pub fn from_environment() -> Result<Self, LabError> {
        if is_inside() {
            return Err(LabError::Nested);
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        let dir = PathBuf::from(std::env::var_os("MAGIKVM_LAB_DIR").ok_or(LabError::NotPrepared)?);
        for part in ["vmlinux", "initramfs", "modules"] {
            if !dir.join(part).exists() {
                return Err(LabError::Incomplete(dir.join(part)));
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let named = std::env::var_os("MAGIKVM_LAB_QEMU").map(PathBuf::from);
        let qemu =
            named.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64")));
        let named = std::env::var_os("MAGIKVM_VIRTIOFSD").map(PathBuf::from);
        let virtiofsd = named.into_iter().chain(VIRTIOFSD.map(PathBuf::from));
        Ok(Self {
            dir,
            qemu: first_file(qemu).ok_or(LabError::NoProgram {
                program: "qemu-system-x86_64",
                package: "qemu-system-x86",
                variable: "MAGIKVM_LAB_QEMU",
            })?,
            virtiofsd: first_file(virtiofsd).ok_or(LabError::NoProgram {
                program: "virtiofsd",
                package: "qemu-system-common or virtiofsd",
                variable: "MAGIKVM_VIRTIOFSD",
            })?,
        })
    }

    /// Waits for a turn, boots, runs the command, and ends the lab.
    pub fn run(&self, command: &LabCommand) -> Result<LabOutput, LabError> {
        let run = RunDir::new()?;
        run.prepare(command, &self.dir)?;
        let _turn = turn()?;
        count::boot();
        let (began, began_at) = (Instant::now(), SystemTime::now());
        let mut share = spawn::virtiofsd(&self.virtiofsd, run.path(), &run.path().join(SHARED))?;
        let mut qemu = spawn::qemu(&self.qemu, &self.qemu_args(command.memory_mib), run.path())?;
        let mut share_ended = None;
        let status = loop {
            if let Some(status) = qemu.ended()? {
                break status;
            }
            // virtiofsd also ends when QEMU disconnects, a moment before QEMU itself does.
            if share_ended.is_none() {
                share_ended = share.ended()?.map(|status| (status, Instant::now()));
            }
            if let Some((status, at)) = share_ended.filter(|(_, at)| at.elapsed() > LETTING_GO) {
                let log = run.tail("virtiofsd.log");
                let after = at.duration_since(began);
                return Err(LabError::ShareLost {
                    status: status.to_string(),
                    after,
                    log,
                    words: run.words(),
                });
            }
            if began.elapsed() > command.limit {
                let registers = monitor::examine(run.path());
                // The kernel panics now and QEMU ends, unless the processor itself stands still.
                let asked = Instant::now();
                while qemu.ended()?.is_none() && asked.elapsed() < LETTING_GO {
                    std::thread::sleep(PAUSE);
                }
                let words = Words { registers: Some(registers), ..*run.words() };
                return Err(LabError::Hung { limit: command.limit, words: Box::new(words) });
            }
            std::thread::sleep(PAUSE);
        };
        let took = began.elapsed();
        drop(share);
        let Some(code) = run.code() else {
            return Err(LabError::Died { status: status.to_string(), after: took, words: run.words() });
        };
        if let Some(to) = &command.profiles {
            run.copy_profiles(to)?;
        }
        let ready = fs::metadata(run.shared("ready")).and_then(|file| file.modified());
        let ready = ready.map_err(LabError::system("asking when the lab was ready"))?;
        Ok(LabOutput {
            code,
            stdout: run.stream("stdout")?,
            stderr: run.stream("stderr")?,
            console: run.tail("console"),
            boot: ready.duration_since(began_at).unwrap_or_default(),
            took,
            run,
        })
    }

    fn qemu_args(&self, memory_mib: u32) -> Vec<String> {
        let below = |name: &str| self.dir.join(name).display().to_string();
        // The boot is faster if the kernel probes for less. One processor: with two, QEMU's emulation of SVM has hung.
        let machine = "q35,accel=tcg,memory-backend=memory,hpet=off,smbus=off,sata=off,smm=off,usb=off";
        let kernel = format!(
            "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic unknown_nmi_panic nokaslr mitigations=off no_timer_check tsc=reliable \
             random.trust_cpu=on cryptomgr.notests initcall_blacklist={SKIPPED}"
        );
        let memory = format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on");
        let socket = format!("socket,id=share,path={}", spawn::SOCKET);
        let monitor = format!("socket,id=monitor,path={},server=on,wait=off", monitor::SOCKET);
        let args = [
            ["-M", machine],
            ["-cpu", "max"],
            ["-smp", "1"],
            ["-m", &format!("{memory_mib}M")],
            ["-object", &memory],
            ["-display", "none"],
            ["-chardev", &monitor],
            ["-mon", "chardev=monitor,mode=readline"],
            ["-serial", "file:console"],
            ["-chardev", &socket],
            ["-device", "vhost-user-fs-pci,chardev=share,tag=lab,queue-size=1024"],
            ["-kernel", &below("vmlinux")],
            ["-initrd", &below("initramfs")],
            ["-append", &kernel],
        ];
        let alone = ["-nodefaults", "-no-user-config", "-no-reboot"];
        args.into_iter().flatten().chain(alone).map(str::to_owned).collect()
    }
}

fn first_file(mut paths: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    paths.find(|path| path.is_file())
}

/// The part of a run's directory that the lab sees and writes.
const SHARED: &str = "shared";

/// The files of one run. They are removed with the value, or when this process ends in any way, since a shell waits for that.
#[derive(Debug)]
struct RunDir {
    dir: tempfile::TempDir,
    keeper: Child,
}

impl RunDir {
    fn new() -> Result<Self, LabError> {
        let dir = tempfile::Builder::new().prefix("magikvm-lab-").tempdir();
        let dir = dir.map_err(LabError::system("making a temporary directory"))?;
        let keeper = keeper(dir.path()).map_err(LabError::system("starting a shell"))?;
        Ok(Self { dir, keeper })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.path().join(SHARED).join(name)
    }

    fn prepare(&self, command: &LabCommand, lab: &Path) -> Result<(), LabError> {
        let names = command.temporary_names(&[lab])?;
        let names: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), b"\n"].concat()).collect();
        let profiles = self.shared("out").join("profiles");
        fs::create_dir_all(&profiles).map_err(LabError::system("making a run's directories"))?;
        // After half of its time limit the lab prints which processes are still running.
        let half_time = format!("{}\n", command.limit.as_secs() / 2);
        for (name, bytes) in [
            ("lab-dir", lab.as_os_str().as_bytes()),
            ("init.sh", INIT.as_bytes()),
            ("serve.sh", SERVE.as_bytes()),
            ("command.sh", &command.script()?),
            ("temporary-names", &names),
            ("half-time", half_time.as_bytes()),
        ] {
            let path = self.shared(name);
            fs::write(&path, bytes).map_err(LabError::system(format!("writing {}", path.display())))?;
        }
        Ok(())
    }

    /// The command's exit code, if the lab lived long enough to write it.
    fn code(&self) -> Option<i32> {
        fs::read_to_string(self.shared("code")).ok()?.trim().parse().ok()
    }

    fn stream(&self, stream: &'static str) -> Result<Vec<u8>, LabError> {
        let path = self.shared(stream);
        let failed = |error| LabError::System { what: format!("reading {}", path.display()), source: error };
        let bytes = fs::metadata(&path).map_err(failed)?.len();
        if bytes > MAX_OUTPUT {
            return Err(LabError::TooMuch { stream, bytes, limit: MAX_OUTPUT });
        }
        fs::read(&path).map_err(failed)
    }

    /// The last lines of a file, for error messages.
    fn tail(&self, name: &str) -> String {
        let read = || {
            let mut file = File::open(self.path().join(name))?;
            let from = file.metadata()?.len().saturating_sub(TAIL);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).replace('\r', "")
    }

    fn words(&self) -> Box<Words> {
        let streams = ["stdout", "stderr"].map(|name| self.tail(&format!("{SHARED}/{name}")));
        let [stdout, stderr] = streams;
        let console = format!("{}{}", self.tail("console"), self.tail("qemu.log"));
        Box::new(Words { console, stdout, stderr, registers: None })
    }

    /// Process ids are the same in every boot, so the run's name is prefixed to the file names.
    fn copy_profiles(&self, to: &Path) -> Result<(), LabError> {
        let failed =
            |error| LabError::System { what: format!("copying profiles to {}", to.display()), source: error };
        let from = self.shared("out").join("profiles");
        fs::create_dir_all(to).map_err(failed)?;
        let run = self.path().file_name().unwrap_or(OsStr::new("lab")).to_string_lossy();
        for entry in fs::read_dir(from).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = format!("{run}-{}", entry.file_name().to_string_lossy());
            fs::copy(entry.path(), to.join(name)).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // The shell's input ends; it removes the directory and ends.
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// A shell in a separate session, so that Ctrl-C does not reach it: once its input ends it removes the directory. The lab's processes
/// die at the same moment as this one, and may still be writing.
fn keeper(dir: &Path) -> std::io::Result<Child> {
    let script = "read -r _; for try in 1 2 3 4 5; do rm -rf -- \"$1\" && exit; sleep 1; done";
    Command::new("setsid")
        .args(["sh", "-c", script, "sh"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
