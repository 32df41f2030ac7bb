//! Attaching to the input and output of a container's main process.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::terminal::Terminal;
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Pod};

const POD: &str = "talk";

pub(crate) static GROUP: Group = Group {
    name: "attach",
    title: "Attach",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "a_terminal_that_is_left",
            "A container's terminal can be used and detached; the container continues, and its output is in the logs.",
            a_terminal_that_is_left,
        )
        .of("`stdin`, `tty`"),
        Row::code(
            "input_that_stays_open",
            "A container's input stays open when one who attached goes away, for the next one.",
            input_that_stays_open,
        )
        .of("`stdin`"),
        Row::code(
            "a_process_that_ends",
            "Who is attached when the process ends has its exit code; who comes later is told.",
            a_process_that_ends,
        )
        .of("`stdin`, `tty`"),
    ],
};

fn start(subject: &Subject) {
    let pod = Pod::new(POD)
        .script("reader", "while read line; do echo \"got $line\"; done; echo end")
        .with("stdin", true)
        .script("shell", "exec sh")
        .with("stdin", true)
        .with("tty", true)
        .script("brief", "exec sh")
        .with("stdin", true)
        .with("tty", true)
        .container("quiet", &["sleep", "1000"]);
    subject.start(&pod);
}

fn attach(subject: &Subject, container: &str) -> Cmd {
    subject.cmd(["attach", POD, "-c", container])
}

fn a_terminal_that_is_left(subject: &Subject) {
    let mut terminal = Terminal::start(attach(subject, "shell"), 30, 90);
    terminal.wait_for("Attached; Ctrl-P Ctrl-Q leaves.");
    // The size may arrive after the keys.
    terminal.keys("until [ \"$(stty size)\" = '30 90' ]; do sleep 0.1; done; echo from $((5+2)) keys\n");
    terminal.wait_for("from 7 keys");
    terminal.keys("\x10\x11");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(subject.phase(POD), "Running");
    until("it is in the logs too", || subject.logs(POD, "shell").contains("from 7 keys"));
}

fn input_that_stays_open(subject: &Subject) {
    let first = attach(subject, "reader").input("one\ntwo\n").spawn();
    until("it has read", || subject.logs(POD, "reader").contains("got two"));
    drop(first);
    let second = attach(subject, "reader").input("three\n").spawn();
    until("it has read more", || subject.logs(POD, "reader") == "got one\ngot two\ngot three\n");
    drop(second);
}

fn a_process_that_ends(subject: &Subject) {
    let mut terminal = Terminal::start(attach(subject, "brief"), 30, 90);
    terminal.wait_for("Attached");
    terminal.keys("exit 6\n");
    assert_eq!(terminal.wait(), 6);
    attach(subject, "brief").run().complains("brief");
}
