//! Additional processes in a running container.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::terminal::Terminal;
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Pod, Running};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

const POD: &str = "box";

pub(crate) static GROUP: Group = Group {
    name: "exec",
    title: "Exec",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "input_of_megabytes",
            "Three megabytes of input arrive, and come back, unchanged.",
            input_of_megabytes,
        )
        .of("`exec -i`"),
        Row::code(
            "input_that_is_echoed",
            "Input and output flow at the same time.",
            input_that_is_echoed,
        )
        .of("`exec -i`"),
        Row::code(
            "megabytes_both_ways_at_once",
            "Eight megabytes of input and as many of output flow at the same time.",
            megabytes_both_ways_at_once,
        )
        .of("`exec -i`"),
        Row::code("input_that_is_not_meant", "Without -i there is no input.", input_that_is_not_meant)
            .of("`exec`"),
        Row::code("output_of_megabytes", "Five megabytes of output arrive.", output_of_megabytes).of("`exec`"),
        Row::code(
            "exit_codes",
            "The exit code is the command's, or 128 and the signal that killed it; its two streams are two.",
            exit_codes,
        )
        .of("`exec`"),
        Row::code(
            "programs_that_cannot_be_run",
            "A program that is missing or not executable is distinguished from one that fails.",
            programs_that_cannot_be_run,
        )
        .of("`exec`"),
        Row::code("a_command_with_a_deadline", "A command is killed at its deadline.", a_command_with_a_deadline)
            .of("`exec --timeout`"),
        Row::code(
            "variables_and_a_directory",
            "Variables and a working directory can be set in addition to the container's.",
            variables_and_a_directory,
        )
        .of("`exec -e -w`"),
        Row::code(
            "a_directory_that_is_not_there",
            "A missing working directory is reported each time.",
            a_directory_that_is_not_there,
        )
        .of("`exec -w`"),
        Row::code(
            "another_user",
            "A command runs as another user, by number or name, with the user's groups and without capabilities; an unknown user is refused.",
            another_user,
        )
        .of("`exec -u`"),
        Row::code(
            "a_terminal_without_a_command",
            "With a terminal and no command, the user's shell runs.",
            a_terminal_without_a_command,
        )
        .of("`exec -i -t`"),
        Row::code(
            "what_ends_in_the_background",
            "Commands that leave processes in the background leave no control groups once those have ended.",
            what_ends_in_the_background,
        )
        .of("`exec`"),
        Row::shell(
            "the_containers_surroundings",
            "A command sees the container's processes and its host name.",
            &[("web", "cat /proc/1/comm; hostname", "sleep\nbox\n")],
        )
        .of("`exec`"),
        Row::code("eight_at_once", "Each of eight concurrent commands has its own output and exit code.", eight_at_once)
            .of("`exec`"),
        Row::code(
            "killed_on_this_side",
            "If the client is killed, its command ends in the container, and leaves no zombie.",
            killed_on_this_side,
        )
        .of("`exec`"),
        Row::code(
            "a_terminal_that_changes_its_size",
            "With a terminal, keys become signals in the container, the size follows the local terminal, and the local terminal is restored afterwards.",
            a_terminal_that_changes_its_size,
        )
        .of("`exec -i -t`"),
    ],
};

fn start(subject: &Subject) {
    let pod = Pod::new(POD)
        .script("web", "cd /tmp && exec sleep 1000")
        .with("env", json!([{ "name": "A", "value": "pod" }]));
    subject.start(&pod);
}

fn exec(subject: &Subject, options: &[&str], command: &[&str]) -> Cmd {
    subject.cmd(["exec", POD]).args(options).arg("--").args(command)
}

fn letters(count: u32) -> Vec<u8> {
    (0..count).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect()
}

fn input_of_megabytes(subject: &Subject) {
    let large = letters(3_000_000);
    let count = ["sh", "-c", "cat > /tmp/large; wc -c < /tmp/large"];
    assert_eq!(exec(subject, &["-i"], &count).input(large.clone()).ok().stdout, "3000000\n");
    let back = exec(subject, &[], &["cat", "/tmp/large"]).ok().stdout;
    assert!(back.as_bytes() == large, "{} bytes", back.len());
}

fn input_that_is_echoed(subject: &Subject) {
    let large = letters(200_000);
    let echoed = exec(subject, &["-i"], &["cat"]).input(large.clone()).ok().stdout;
    assert!(echoed.as_bytes() == large, "{} bytes", echoed.len());
}

fn megabytes_both_ways_at_once(subject: &Subject) {
    let large = letters(8 << 20);
    let limit = Duration::from_secs(120);
    let echoed = exec(subject, &["-i"], &["cat"]).input(large.clone()).limit(limit).ok().stdout;
    assert!(echoed.as_bytes() == large, "{} bytes", echoed.len());
}

fn input_that_is_not_meant(subject: &Subject) {
    assert_eq!(exec(subject, &[], &["wc", "-c"]).input("not passed on").ok().stdout, "0\n");
}

fn output_of_megabytes(subject: &Subject) {
    let output = exec(subject, &[], &["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"]).ok().stdout;
    assert_eq!(output.len(), 5_000_000);
}

fn exit_codes(subject: &Subject) {
    let split = exec(subject, &[], &["sh", "-c", "echo out; echo err >&2; exit 42"]).fails(42);
    assert_eq!((split.stdout.as_str(), split.stderr.as_str()), ("out\n", "err\n"));
    exec(subject, &[], &["sh", "-c", "kill -TERM $$"]).fails(143);
}

fn programs_that_cannot_be_run(subject: &Subject) {
    exec(subject, &[], &["/bin/nothing"])
        .fails(127)
        .complains("Hint: Check that /bin/nothing is in the container's image and its PATH.");
    exec(subject, &[], &["/etc/passwd"]).fails(126).complains("may not be executed");
}

fn a_command_with_a_deadline(subject: &Subject) {
    exec(subject, &["--timeout", "1"], &["sleep", "1000"]).fails(124).complains("was killed after 1 s");
}

fn variables_and_a_directory(subject: &Subject) {
    let shown = exec(subject, &["-e", "B=exec", "-w", "/bin"], &["sh", "-c", "echo $A $B $PWD"]).ok().stdout;
    assert_eq!(shown, "pod exec /bin\n");
}

fn another_user(subject: &Subject) {
    let who = ["sh", "-c", "id -u; id -g; echo $HOME; grep CapEff /proc/self/status"];
    let shown = exec(subject, &["-u", "1234:99"], &who).ok().stdout;
    assert_eq!(shown, "1234\n99\n/\nCapEff:\t0000000000000000\n");
    let root = exec(subject, &["-u", "0"], &["id", "-u"]).ok().stdout;
    assert_eq!(root, "0\n");
    exec(subject, &["-u", "nobody-knows"], &who).fails(1).complains("user \"nobody-knows\" is not in");
}

fn a_terminal_without_a_command(subject: &Subject) {
    let mut terminal = Terminal::start(subject.cmd(["exec", "-i", "-t", POD]), 24, 80);
    terminal.wait_for("# ");
    terminal.keys("echo in $((40+2)) $0\n");
    terminal.wait_for("in 42 /bin/");
    terminal.keys("exit 6\n");
    assert_eq!(terminal.wait(), 6);
    subject.cmd(["exec", POD]).fails(2);
}

fn what_ends_in_the_background(subject: &Subject) {
    for _ in 0..5 {
        exec(subject, &[], &["sh", "-c", "sleep 0.3 >/dev/null 2>&1 &"]).ok();
    }
    // The group of this command itself is there. Those of the others are removed by the end of a later command.
    let count = ["sh", "-c", "ls -d /sys/fs/cgroup/exec-* /sys/fs/cgroup/memory/exec-* 2>/dev/null | wc -l"];
    until("there are no other groups", || exec(subject, &[], &count).ok().stdout.trim() == "1");
}

fn a_directory_that_is_not_there(subject: &Subject) {
    for _ in 0..10 {
        exec(subject, &["-w", "/nowhere"], &["pwd"]).run().complains("cannot enter /nowhere");
    }
}

fn eight_at_once(subject: &Subject) {
    let many: Vec<Running> = (0..8)
        .map(|n| exec(subject, &[], &["sh", "-c", &format!("sleep 0.2; echo {n}; exit {n}")]).spawn())
        .collect();
    for (n, running) in many.into_iter().enumerate() {
        let output = running.wait();
        assert_eq!((output.code, output.stdout), (i32::try_from(n).unwrap(), format!("{n}\n")));
    }
}

fn killed_on_this_side(subject: &Subject) {
    // Processes that other rows left in the background have ended by now, and this container's PID 1 does not wait for them.
    let zombies = || subject.sh(POD, "web", "ps -o stat | grep -c Z; true");
    let before = zombies();
    let mut endless = exec(subject, &[], &["sh", "-c", "echo begun; exec sleep 4321"]).spawn();
    endless.wait_for_stdout("begun");
    endless.signal(Signal::SIGKILL);
    endless.wait();
    until("it has ended over there too", || !subject.sh(POD, "web", "ps -o args").contains("4321"));
    until("it has left no zombie", || zombies() == before);
}

fn a_terminal_that_changes_its_size(subject: &Subject) {
    let mut terminal = Terminal::start(subject.cmd(["exec", "-i", "-t", POD, "--", "sh"]), 24, 80);
    terminal.wait_for("# ");
    terminal.keys("tty; stty size\n");
    terminal.wait_for("/dev/pts/");
    terminal.wait_for("24 80");
    terminal.resize(50, 132);
    terminal.keys("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo now $((49+1)) lines\n");
    terminal.wait_for("now 50 lines");
    // Ctrl-C sends no signal on the host, but one in the container.
    terminal.keys("sh -c 'echo begun $((6*7)); exec sleep 1000'\n");
    terminal.wait_for("begun 42");
    terminal.keys("\x03");
    terminal.wait_for("^C");
    terminal.keys("echo interrupted with $?\n");
    terminal.wait_for("interrupted with 130");
    terminal.keys("echo still $((40+3))\n");
    terminal.wait_for("still 43");
    terminal.keys("exit 5\n");
    assert_eq!(terminal.wait(), 5);
    let settings = terminal.settings();
    assert!(settings.contains(" icanon") && settings.contains(" echo "), "{settings}");
}
