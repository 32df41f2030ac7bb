//! The output of containers.

use crate::row::{Ended, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::processes::memory_kib;
use magikvm_tests::wait::until;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) static GROUP: Group = Group {
    name: "streams",
    title: "What containers print",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "a_hundred_thousand_lines",
            "A hundred thousand lines are complete and in order, in the live output and in the logs.",
            a_hundred_thousand_lines,
        )
        .of("`run`, `logs`"),
        Row::run(
            "output_as_it_was_written",
            "Both streams arrive unmodified: without a newline, with empty lines, with any bytes.",
            any_bytes,
            Ended {
                options: &["--no-prefix"],
                code: 0,
                stdout: "no newline\n\nnext\0\u{fffd}\nlast",
                stderr: "err\n",
                phase: "Succeeded",
            },
        )
        .of("`run`"),
        Row::code("a_line_of_a_megabyte", "A line of a megabyte stays one line.", a_line_of_a_megabyte)
            .of("`run`, `logs`"),
        Row::code(
            "floods_within_small_limits",
            "Containers that print as fast as they can never exceed their limits; only the oldest output is lost, and a follower reads nothing twice.",
            floods_within_small_limits,
        )
        .of("`magikvm.dev/log-max-size`, `magikvm.dev/log-max-files`, `logs -f`"),
        Row::code(
            "a_flood_within_the_default_limits",
            "Without limits of the pod a log file ends at 10 MiB, and the pod stops in the middle of a flood.",
            a_flood_within_the_default_limits,
        )
        .of("`logs`, `stop`"),
    ],
};

/// Memory of a monitor that writes logs as fast as it can, in KiB.
const MONITOR_KIB: u64 = 64 << 10;

/// The files of a container's log, oldest first.
fn files(dir: &Path, container: &str) -> Vec<PathBuf> {
    let name = |number: usize| dir.join(format!("log/{container}.log.{number}"));
    let older = (1..).map(name).take_while(|path| path.exists()).collect::<Vec<_>>().into_iter().rev();
    older.chain([dir.join(format!("log/{container}.log"))]).collect()
}

/// The first number that the container prints; all have as many digits.
const FIRST: u64 = 100_000_000;

/// The numbers at the ends of lines. Pieces of numbers do not count.
fn numbers(text: &str) -> Vec<u64> {
    let whole = |line: &str| line.rsplit(' ').next().filter(|word| word.len() == 9)?.parse::<u64>().ok();
    text.lines().filter_map(whole).collect()
}

fn floods_within_small_limits(subject: &Subject) {
    const FILE: u64 = 64 << 10;
    const FILES: usize = 3;
    // Empty lines grow most on their way to the log.
    let pod = Pod::new("floods")
        .annotated("magikvm.dev/log-max-size", "64Ki")
        .annotated("magikvm.dev/log-max-files", "3")
        .script("count", "seq 100000000 999999999")
        .script("empty", "yes ''");
    subject.start(&pod);
    let dir = subject.pod_dir("floods");
    let follower =
        subject.cmd(["logs", "-f", "-c", "count", "floods"]).limit(Duration::from_secs(120)).spawn();
    let oldest_line = |container: &str| {
        let files = files(&dir, container);
        assert!(files.len() <= FILES, "{files:?}");
        for file in &files {
            // A file may have been renamed in between.
            let length = fs::metadata(file).map_or(0, |file| file.len());
            assert!(length <= FILE, "{}: {length}", file.display());
        }
        let oldest = files.first().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        numbers(&oldest).first().copied().unwrap_or(FIRST)
    };
    until("the log was rotated many times", || oldest_line("count") > FIRST + 30_000);
    until("the follower is past the first files", || follower.printed() > 3 * FILE);
    until("empty lines fill their files", || {
        oldest_line("empty");
        files(&dir, "empty").len() == FILES
    });
    let memory = memory_kib(subject.process("floods", "monitor"), "VmHWM");
    assert!(memory < MONITOR_KIB, "the monitor took {memory} KiB");
    let stop = subject.cmd(["stop", "--grace", "1", "floods"]).limit(subject.seconds(40)).ok();
    assert!(stop.took < subject.seconds(35), "{:?}", stop.took);

    let kept = numbers(&subject.cmd(["logs", "-c", "count", "floods"]).ok().stdout);
    let gap = kept.windows(2).find(|pair| pair[0] + 1 != pair[1]);
    assert!(gap.is_none() && kept.len() > 2000, "{gap:?} in {} lines", kept.len());
    let followed = numbers(&follower.wait().expect_code(0).stdout);
    // A follower that is slower than the flood misses files, and two pieces of lines around such a gap may look like a number. A line has its
    // neighbour beside it.
    let is_line = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| followed.get(before));
        before.is_some_and(|before| before + 1 == followed[at])
            || followed.get(at + 1) == Some(&(followed[at] + 1))
    };
    let lines: Vec<u64> = (0..followed.len()).filter(|&at| is_line(at)).map(|at| followed[at]).collect();
    let back = lines.windows(2).find(|pair| pair[0] >= pair[1]);
    assert!(back.is_none() && lines.len() > 2000, "{back:?} in {} lines", lines.len());
    assert_eq!(followed.last(), kept.last());
}

fn a_flood_within_the_default_limits(subject: &Subject) {
    const FILE: u64 = 10 << 20;
    subject.start(&Pod::new("flood").script("long", "yes $(head -c 4000 /dev/zero | tr '\\0' x)"));
    let dir = subject.pod_dir("flood");
    let first = dir.join("log/long.log.1");
    until("the first file is full", || first.exists());
    let length = fs::metadata(&first).unwrap().len();
    assert!(length <= FILE && length > FILE - (64 << 10), "{length}");
    let memory = memory_kib(subject.process("flood", "monitor"), "VmHWM");
    assert!(memory < MONITOR_KIB, "the monitor took {memory} KiB");
    let stop = subject.cmd(["stop", "--grace", "1", "flood"]).limit(subject.seconds(40)).ok();
    assert!(stop.took < subject.seconds(35), "{:?}", stop.took);
    let last = subject.cmd(["logs", "flood", "--tail", "1"]).ok().stdout;
    assert!(last.starts_with('x') && last.trim_end().trim_matches('x').is_empty(), "{last}");
}

fn a_hundred_thousand_lines(subject: &Subject) {
    let pod = Pod::new("lines").script("web", "seq 1 100000");
    let shown = subject.run(&pod).arg("--no-prefix").limit(Duration::from_secs(120)).ok().stdout;
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(shown == expected, "{} bytes of {}", shown.len(), expected.len());
    assert!(subject.cmd(["logs", "lines"]).ok().stdout == expected);
    assert_eq!(subject.cmd(["logs", "lines", "--tail", "2"]).ok().stdout, "99999\n100000\n");
}

fn any_bytes() -> Pod {
    let script =
        "printf 'no newline'; printf 'err\\n' >&2; sleep 0.3; printf '\\n\\nnext\\0\\377\\n'; printf 'last'";
    Pod::new("bytes").script("web", script)
}

fn a_line_of_a_megabyte(subject: &Subject) {
    let long = Pod::new("long").script("web", "head -c 1000000 /dev/zero | tr '\\0' x; echo");
    let shown = subject.run(&long).ok().stdout;
    assert_eq!(shown.len(), "web | ".len() + 1_000_001);
    assert_eq!(subject.cmd(["logs", "long", "--prefix"]).ok().stdout, shown);
}
