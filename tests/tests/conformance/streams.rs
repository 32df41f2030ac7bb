//! The output of containers.

use crate::row::{Ended, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
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
    ],
};

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
