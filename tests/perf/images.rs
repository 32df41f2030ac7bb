//! Figures of images, each printed beside its peer, measured in the same run: pulling a Debian system from a registry on this host by us, by
//! `skopeo copy` and `umoci unpack`, and by `podman pull`; what a second image that shares its base moves; the list of a thousand images.
//! `ci/bench.sh images` calls it. Never a test, because hosts are noisy.

use magikvm_tests::figures::show;
use magikvm_tests::images::{manifest, userland};
use magikvm_tests::layout::{Tar, write_layout};
use magikvm_tests::registry::Registry;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often each of the three pulls; one round more warms the page cache and is not counted.
const ROUNDS: usize = 5;
/// Images in the list.
const IMAGES: usize = 1000;
const LISTS: usize = 21;
/// First argument of this program when it runs another one and reports the cost.
const MEASURE: &str = "measure";

#[derive(Debug, Clone, Copy)]
struct Taken {
    wall: Duration,
    peak_kib: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Puller {
    Magikvm,
    SkopeoUmoci,
    Podman,
}

impl Puller {
    const ALL: [Self; 3] = [Self::Magikvm, Self::SkopeoUmoci, Self::Podman];

    fn name(self) -> &'static str {
        match self {
            Self::Magikvm => "magikvm image pull",
            Self::SkopeoUmoci => "skopeo copy + umoci unpack",
            Self::Podman => "podman pull",
        }
    }
}

struct Bench {
    magikvm: PathBuf,
    work: PathBuf,
    registry: Registry,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if let [_, mode, program, args @ ..] = args.as_slice()
        && mode == MEASURE
    {
        return measure(program, args);
    }
    let magikvm = std::env::var_os("MAGIKVM_BIN").ok_or("MAGIKVM_BIN is not set; run ci/bench.sh images")?;
    let work = tempfile::tempdir()?;
    let bench = Bench { magikvm: magikvm.into(), work: work.path().to_owned(), registry: Registry::plain() };
    let layout = userland();
    for tag in ["userland", "other"] {
        bench.registry.push(&layout, tag, &format!("{tag}:1"));
    }
    show_image(&layout)?;
    pulls(&bench)?;
    shared_base(&bench, &layout)?;
    thousand(&bench)
}

/// Runs a program through an intermediate process, so that the peak memory of its children is that of this program alone.
fn measure(program: &str, args: &[String]) -> Result<()> {
    let begun = Instant::now();
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    let wall = begun.elapsed();
    if !output.status.success() {
        return Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let peak_kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    println!("{} {peak_kib}", wall.as_nanos());
    Ok(())
}

fn run(command: &[&str]) -> Result<Taken> {
    let output = Command::new(std::env::current_exe()?).arg(MEASURE).args(command).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    let text = String::from_utf8(output.stdout)?;
    let (wall, peak_kib) = text.trim().split_once(' ').ok_or("no figures")?;
    Ok(Taken { wall: Duration::from_nanos(wall.parse()?), peak_kib: peak_kib.parse()? })
}

fn sizes(manifest: &Value) -> Vec<(String, u64)> {
    let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let one = |layer: &Value| (layer["digest"].to_string(), layer["size"].as_u64().unwrap_or_default());
    layers.iter().map(one).collect()
}

fn show_image(layout: &Path) -> Result<()> {
    let layers = sizes(&manifest(layout, "userland"));
    if layers.is_empty() {
        return Err("the image has no layers".into());
    }
    let total: u64 = layers.iter().map(|(_, size)| size).sum();
    println!("image: a Debian system, {} gzip layers, {:.1} MiB", layers.len(), mib(total));
    Ok(())
}

fn pulls(bench: &Bench) -> Result<()> {
    let mut taken: [Vec<Taken>; 3] = Default::default();
    for round in 0..=ROUNDS {
        let mut order = [0, 1, 2];
        if round % 2 == 1 {
            order.reverse();
        }
        for number in order {
            let one = bench.pull(Puller::ALL[number])?;
            if round > 0 {
                taken[number].push(one);
            }
        }
    }
    for (puller, taken) in Puller::ALL.iter().zip(&taken) {
        show(puller.name(), &mut taken.iter().map(|one| one.wall).collect::<Vec<_>>());
    }
    for (number, aim) in [(1, 0.5), (2, 0.7)] {
        let pairs = taken[0].iter().zip(&taken[number]);
        let mut ratios: Vec<f64> =
            pairs.map(|(ours, peer)| ours.wall.as_secs_f64() / peer.wall.as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        println!("pull over {}: median of pairs {median:.2}x (aim {aim:.1}x)", Puller::ALL[number].name());
    }
    for (puller, taken) in Puller::ALL.iter().zip(&taken) {
        let peak = taken.iter().map(|one| one.peak_kib).max().unwrap_or_default();
        let aim = if *puller == Puller::Magikvm { " (aim 128 MiB)" } else { "" };
        println!("peak memory of {}: {:.1} MiB{aim}", puller.name(), mib(peak * 1024));
    }
    Ok(())
}

fn shared_base(bench: &Bench, layout: &Path) -> Result<()> {
    let root = bench.work.join("shared");
    bench.magikvm_pull(&root, "userland:1")?;
    bench.registry.forget();
    let taken = bench.magikvm_pull(&root, "other:1")?;
    let moved: u64 =
        bench.registry.requests().iter().filter(|one| one.method == "GET").map(|one| one.bytes).sum();
    let (first, second) = (manifest(layout, "userland"), manifest(layout, "other"));
    let base = sizes(&first);
    let own = sizes(&second).iter().filter(|layer| !base.contains(layer)).map(|(_, size)| size).sum::<u64>();
    let whole = sizes(&second).iter().map(|(_, size)| size).sum::<u64>();
    println!(
        "second image with the same base: {:.2} MiB moved; its own layer has {:.2} MiB, all its layers {:.2} MiB (aim: its own); {:.0} ms",
        mib(moved),
        mib(own),
        mib(whole),
        taken.wall.as_secs_f64() * 1e3
    );
    fs::remove_dir_all(root)?;
    Ok(())
}

fn thousand(bench: &Bench) -> Result<()> {
    let (root, layout) = (bench.work.join("thousand"), bench.work.join("layout"));
    let (root_text, source) = (root.display().to_string(), format!("oci:{}:1", layout.display()));
    for number in 0..IMAGES {
        let layer = Tar::default().file("number", 0o644, number.to_string().as_bytes());
        write_layout(&layout, layer, &json!({ "Cmd": ["/number"] }));
        let name = format!("registry.example/bench/image-{number}:1");
        let import = ["--root", &root_text, "image", "import", &source, "--name", &name];
        let output = Command::new(&bench.magikvm).args(import).output()?;
        if !output.status.success() {
            return Err(format!("import: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        fs::remove_dir_all(&layout)?;
    }
    let mut times = Vec::with_capacity(LISTS);
    for _ in 0..LISTS {
        let begun = Instant::now();
        let output = Command::new(&bench.magikvm).args(["--root", &root_text, "image", "ls"]).output()?;
        times.push(begun.elapsed());
        let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
        if !output.status.success() || lines != IMAGES + 1 {
            return Err(
                format!("image ls: {lines} lines, {}", String::from_utf8_lossy(&output.stderr)).into()
            );
        }
    }
    let median = show(&format!("magikvm image ls with {IMAGES} images"), &mut times);
    println!("image ls with {IMAGES} images: {median:.1} ms (aim 50 ms)");
    fs::remove_dir_all(root)?;
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "it is rounded anyway")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Bench {
    fn magikvm_pull(&self, root: &Path, name: &str) -> Result<Taken> {
        let (program, root) = (self.magikvm.display().to_string(), root.display().to_string());
        run(&[&program, "--root", &root, "image", "pull", &self.registry.name(name), "--plain-http", "-q"])
    }

    /// Pulls the image to an empty directory, and then removes everything, which is not measured.
    fn pull(&self, puller: Puller) -> Result<Taken> {
        let there = self.work.join("there");
        fs::create_dir(&there)?;
        // Earlier writes must not be flushed during this measurement.
        nix::unistd::sync();
        let name = self.registry.name("userland:1");
        let below = |part: &str| there.join(part).display().to_string();
        let taken = match puller {
            Puller::Magikvm => self.magikvm_pull(&there.join("root"), "userland:1")?,
            Puller::SkopeoUmoci => {
                let layout = format!("{}:1", below("layout"));
                let (from, to) = (format!("docker://{name}"), format!("oci:{layout}"));
                let copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &from, &to];
                let copied = run(&[&["skopeo"], &copy[..]].concat())?;
                let unpacked = run(&["umoci", "unpack", "--image", &layout, &below("bundle")])?;
                Taken { wall: copied.wall + unpacked.wall, peak_kib: copied.peak_kib.max(unpacked.peak_kib) }
            }
            Puller::Podman => {
                let (root, runtime) = (below("root"), below("run"));
                let storage = ["--root", &root, "--runroot", &runtime, "--storage-driver", "overlay"];
                let pull = ["pull", "--quiet", "--tls-verify=false", &name];
                let taken = run(&[&["podman"], &storage[..], &pull[..]].concat());
                taken.map_err(|error| {
                    format!("podman cannot pull here, so there is no figure of it: {error}")
                })?
            }
        };
        unmount_below(&there)?;
        fs::remove_dir_all(&there)?;
        Ok(taken)
    }
}

/// Podman leaves a bind mount of its storage.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<&str> = points.filter(|point| Path::new(point).starts_with(dir)).collect();
    points.sort_unstable();
    for point in points.iter().rev() {
        nix::mount::umount(*point)?;
    }
    Ok(())
}
