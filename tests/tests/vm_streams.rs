//! Real VMs: logs, exec and attach.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::terminal::Terminal;
use magikvm_tests::virtual_machine::VmHost;
use magikvm_tests::wait::until;
use magikvm_tests::{Pod, Running};
use std::time::Duration;

#[test]
fn a_hundred_thousand_lines_are_complete_and_in_order() {
    let host = VmHost::new();
    let pod = Pod::new("lines").script("web", "seq 1 100000");
    let shown = host.run(&pod).arg("--no-prefix").limit(Duration::from_secs(120)).ok().stdout;
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(shown == expected, "{} bytes of {}", shown.len(), expected.len());
    assert!(host.cmd(["logs", "lines"]).ok().stdout == expected);
    assert_eq!(host.cmd(["logs", "lines", "--tail", "2"]).ok().stdout, "99999\n100000\n");
}

#[test]
fn output_comes_as_it_was_written() {
    let host = VmHost::new();
    let script =
        "printf 'no newline'; printf 'err\\n' >&2; sleep 0.3; printf '\\n\\nnext\\0\\377\\n'; printf 'last'";
    let output = host.run(&Pod::new("bytes").script("web", script)).arg("--no-prefix").ok();
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("no newline\n\nnext\0\u{fffd}\nlast", "err\n")
    );
    // One line of a megabyte.
    let long = Pod::new("long").script("web", "head -c 1000000 /dev/zero | tr '\\0' x; echo");
    let shown = host.run(&long).ok().stdout;
    assert_eq!(shown.len(), "web | ".len() + 1_000_001);
    assert_eq!(host.cmd(["logs", "long", "--prefix"]).ok().stdout, shown);
}

#[test]
fn exec_with_input_codes_and_surroundings() {
    let host = VmHost::new();
    host.start(
        &Pod::new("box")
            .script("web", "cd /tmp && exec sleep 1000")
            .with("env", serde_json::json!([{ "name": "A", "value": "pod" }])),
    );
    let exec =
        |options: &[&str], command: &[&str]| host.cmd(["exec", "box"]).args(options).arg("--").args(command);

    let large: Vec<u8> = (0..3_000_000u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
    let there =
        exec(&["-i"], &["sh", "-c", "cat > /tmp/large; wc -c < /tmp/large"]).input(large.clone()).ok().stdout;
    assert_eq!(there, "3000000\n");
    let back = exec(&[], &["cat", "/tmp/large"]).ok().stdout;
    assert!(back.as_bytes() == large, "{} bytes", back.len());
    let echoed = exec(&["-i"], &["cat"]).input(&large[..200_000]).ok().stdout;
    assert!(echoed.as_bytes() == &large[..200_000], "{} bytes", echoed.len());
    assert_eq!(exec(&[], &["wc", "-c"]).input("not passed on").ok().stdout, "0\n");
    let split = exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 42"]).fails(42);
    assert_eq!((split.stdout.as_str(), split.stderr.as_str()), ("out\n", "err\n"));
    exec(&[], &["sh", "-c", "kill -TERM $$"]).fails(143);
    exec(&[], &["/bin/nothing"])
        .fails(127)
        .complains("Hint: is /bin/nothing in the container's image and its PATH?");
    exec(&[], &["/etc/passwd"]).fails(127).complains("may not be executed");
    exec(&["--timeout", "1"], &["sleep", "1000"]).fails(124).complains("was killed after 1 s");
    assert_eq!(
        exec(&["-e", "B=exec", "-w", "/bin"], &["sh", "-c", "echo $A $B $PWD"]).ok().stdout,
        "pod exec /bin\n"
    );
    exec(&["-w", "/nowhere"], &["pwd"]).run().complains("/nowhere");
    assert_eq!(exec(&[], &["sh", "-c", "cat /proc/1/comm; hostname"]).ok().stdout, "sleep\nbox\n");
    let output = exec(&[], &["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"]).ok().stdout;
    assert_eq!(output.len(), 5_000_000);

    let many: Vec<Running> =
        (0..8).map(|n| exec(&[], &["sh", "-c", &format!("sleep 0.2; echo {n}; exit {n}")]).spawn()).collect();
    for (n, running) in many.into_iter().enumerate() {
        let output = running.wait();
        assert_eq!((output.code, output.stdout), (i32::try_from(n).unwrap(), format!("{n}\n")));
    }
    // What is killed on this side does not go on over there.
    let mut endless = exec(&[], &["sh", "-c", "echo begun; exec sleep 4321"]).spawn();
    endless.wait_for_stdout("begun");
    endless.signal(nix::sys::signal::Signal::SIGKILL);
    endless.wait();
    until("it has ended over there too", || !host.sh("box", "web", "ps -o args").contains("4321"));
    assert_eq!(host.sh("box", "web", "ps -o stat | grep -c Z; true"), "0\n");
}

#[test]
fn exec_on_a_terminal_that_changes_its_size() {
    let host = VmHost::new();
    host.start(&Pod::simple("box"));
    let mut terminal = Terminal::start(host.cmd(["exec", "-i", "-t", "box", "--", "sh"]), 24, 80);
    terminal.wait_for("# ");
    terminal.keys("tty; stty size\n");
    terminal.wait_for("/dev/pts/");
    terminal.wait_for("24 80");
    terminal.resize(50, 132);
    terminal.keys("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo now $((49+1)) lines\n");
    terminal.wait_for("now 50 lines");
    // Keys that would be signals here are keys here and signals there.
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
    assert!(
        terminal.settings().contains(" icanon") && terminal.settings().contains(" echo "),
        "{}",
        terminal.settings()
    );
}

#[test]
fn attach_to_output_and_input() {
    let host = VmHost::new();
    let pod = Pod::new("talk")
        .script("reader", "while read line; do echo \"got $line\"; done; echo end")
        .with("stdin", true)
        .script("shell", "exec sh")
        .with("stdin", true)
        .with("tty", true)
        .container("quiet", &["sleep", "1000"]);
    host.start(&pod);
    let attach = |container: &str| host.cmd(["attach", "talk", "-c", container]);

    let mut terminal = Terminal::start(attach("shell"), 30, 90);
    terminal.wait_for("Attached; Ctrl-P Ctrl-Q leaves.");
    terminal.keys("stty size; echo from $((5+2)) keys\n");
    terminal.wait_for("30 90");
    terminal.wait_for("from 7 keys");
    terminal.keys("\x10\x11");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(host.phase("talk"), "Running");
    until("it is in the logs too", || {
        host.cmd(["logs", "talk", "-c", "shell"]).ok().stdout.contains("from 7 keys")
    });

    // Its standard input stays open for the next one.
    let first = attach("reader").input("one\ntwo\n").spawn();
    until("it has read", || host.cmd(["logs", "talk", "-c", "reader"]).ok().stdout.contains("got two"));
    drop(first);
    let second = attach("reader").input("three\n").spawn();
    until("it has read more", || {
        host.cmd(["logs", "talk", "-c", "reader"]).ok().stdout == "got one\ngot two\ngot three\n"
    });
    drop(second);
    let mut end = Terminal::start(attach("shell"), 30, 90);
    end.wait_for("Attached");
    end.keys("exit 6\n");
    assert_eq!(end.wait(), 6);
    attach("shell").run().complains("shell");
}
