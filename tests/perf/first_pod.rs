//! Figures of the first pod, printed beside a floor measured in the same run: the same QEMU, kernel and composite disk with a busybox init that
//! mounts the image, puts an overlay on it and execs. `ci/bench.sh` calls it. Never a test, because hosts are noisy.

use magikvm::store::layout::{Layout, Surroundings};
use magikvm::store::record::Found;
use magikvm_proto::wire::{Done, Request, Stats};
use magikvm_tests::bench::{Bench, IMAGE, Result};
use magikvm_tests::figures::{median, mib, show, time_until};
use magikvm_tests::floor;
use magikvm_tests::memory::pss;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The text that container and floor print, which stops the clock.
const MARK: &str = "first-byte";
const PAIRS: usize = 9;
const PINGS: usize = 400;
const EXECS: usize = 15;

fn main() -> Result<()> {
    let work = tempfile::tempdir()?;
    let bench = Bench::new(work.path())?;
    let layout = Layout::new(&Surroundings::of_process(Some(bench.root.clone())))?;
    floor::make(work.path(), &layout, IMAGE, MARK)?;
    first_byte(&bench)?;
    idle_pod(&bench)?;
    Ok(())
}

fn first_byte(bench: &Bench) -> Result<()> {
    let manifest = bench.manifest("first", &format!("echo {MARK}"), |_| {})?;
    let (mut ours, mut floor, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // The first pair warms the page cache and is not counted.
    for pair in 0..=PAIRS {
        let mut run = bench.command(&["run", "--rm", "--no-prefix"]);
        run.arg(&manifest);
        let mine = until_mark(&mut run)?;
        let bare = until_mark(&mut floor_command(bench))?;
        if pair > 0 {
            ratios.push(mine.as_secs_f64() / bare.as_secs_f64());
            ours.push(mine);
            floor.push(bare);
        }
    }
    show("magikvm run to first output byte", &mut ours);
    show("floor to first output byte", &mut floor);
    println!("first output byte over the floor: median of pairs {:.2}x (aim 1.25x)", median(&mut ratios));
    Ok(())
}

/// From the start of a program to the mark on its standard output; then its end is waited for.
fn until_mark(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().ok_or("no pipe")?;
    let mut seen = Vec::new();
    let Some(took) = time_until(MARK, &mut out, begun, &mut seen)? else {
        let mut said = String::new();
        child.stderr.take().ok_or("no pipe")?.read_to_string(&mut said)?;
        let printed = String::from_utf8_lossy(&seen);
        return Err(format!("{command:?} ended without {MARK}: {printed} {said}").into());
    };
    std::io::copy(&mut out, &mut std::io::sink())?;
    child.wait()?;
    Ok(took)
}

fn idle_pod(bench: &Bench) -> Result<()> {
    let manifest = bench.manifest("idle", "exec sleep 1000000", |_| {})?;
    bench.run(&["run", "-d", &manifest.display().to_string()])?;
    let measured = measure_idle(bench);
    bench.run(&["rm", "-f", "idle"])?;
    measured
}

fn measure_idle(bench: &Bench) -> Result<()> {
    let layout = Layout::new(&Surroundings::of_process(Some(bench.root.clone())))?;
    let found = Found::read(layout.pod(&"idle".parse()?))?.ok_or("the pod is gone")?;
    let state = found.state.ok_or("the pod has no state")?;
    let agent = state.agent.ok_or("the pod has no agent")?;
    let mut connection = agent.connect(Duration::from_secs(10))?;
    let mut pings = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let begun = Instant::now();
        let Done {} = connection.request(&Request::Ping)?;
        pings.push(begun.elapsed());
    }
    let ping = show("agent ping", &mut pings);
    println!("agent ping p50: {ping:.3} ms (aim 0.3 ms)");
    let mut execs = Vec::with_capacity(EXECS);
    for _ in 0..EXECS {
        let begun = Instant::now();
        bench.run(&["exec", "idle", "--", "/bin/true"])?;
        execs.push(begun.elapsed());
    }
    show("magikvm exec /bin/true", &mut execs);
    let monitor = state.processes.iter().find(|process| process.name == "monitor").ok_or("no monitor")?;
    println!("monitor's proportional set size: {:.1} MiB (aim 4 MiB)", mib(pss(monitor.pid)?));
    let stats: Stats = connection.request(&Request::Stats)?;
    println!(
        "guest memory used by vminit, idle pod: {:.1} MiB (aim 10 MiB)",
        mib(stats.guest.init_pss_bytes)
    );
    Ok(())
}

fn floor_command(bench: &Bench) -> Command {
    let mut command = bench.bare_qemu(&bench.work.join("floor"), 232);
    command
        .args(["-drive", "if=none,id=disk,file=disk.vmdk,format=vmdk,readonly=on"])
        .args(["-device", "virtio-blk-device,drive=disk"]);
    command
}
