//! The output of the CLI: golden texts of every verb, with the fake guest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::snapshots::assert_golden;
use magikvm_tests::terminal::Terminal;
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod};
use nix::sys::signal::Signal;

fn two(name: &str) -> Pod {
    Pod::new(name)
        .set("metadata/labels", serde_json::json!({ "app": "shop" }))
        .container("web", &["app", "--listen"])
        .with("resources/limits/memory", "64Mi")
        .container("side", &["app"])
}

/// A host with a running pod of two containers, whose logs are written.
fn running() -> Host {
    let host = Host::fake();
    host.start_fake(&two("shop"), "run");
    until("the logs are there", || host.cmd(["logs", "shop"]).ok().stdout.lines().count() == 2);
    host
}

/// Two containers are made and started at once, so that the order of their events varies.
fn without_starts(events: &str) -> String {
    let kept = |line: &&str| !(line.contains("web") || line.contains("side"));
    events.lines().filter(kept).fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_life_of_a_pod() {
    let host = running();
    let shown = |args: &[&str]| host.cmd(args).run().transcript();
    assert_golden("ps", &shown(&["ps"]));
    assert_golden("ps-wide", &shown(&["ps", "-o", "wide"]));
    assert_golden("ps-quiet", &shown(&["ps", "-q"]));
    assert_golden("ps-json", &shown(&["ps", "-o", "json"]));
    assert_golden("inspect-running", &shown(&["inspect", "shop"]));
    assert_golden("stats", &shown(&["stats", "shop"]));
    assert_golden("stats-yaml", &shown(&["stats", "shop", "-o", "yaml"]));
    host.start_fake(&Pod::simple("solo"), "run");
    assert_golden("events", &shown(&["events", "default/solo"]));
    let json = shown(&["events", "-o", "json", "solo"]);
    assert_golden("events-json", &json);
    assert_eq!(shown(&["events", "--json", "solo"]), json, "the older form");
    assert_golden("events-yaml", &shown(&["events", "-o", "yaml", "solo"]));
    host.cmd(["rm", "-f", "solo"]).ok();
    assert_golden("rm-running", &shown(&["rm", "shop"]));
    host.cmd(["pause", "shop"]).ok();
    assert_golden("ps-paused", &shown(&["ps"]));
    assert_golden("inspect-paused", &shown(&["inspect", "shop"]));
    assert_golden("exec-paused", &shown(&["exec", "shop", "-c", "web", "--", "true"]));
    host.cmd(["resume", "shop"]).ok();
    until("the guest was told the time", || shown(&["events", "shop"]).contains("clock: "));
    assert_golden("events-resumed", &without_starts(&shown(&["events", "shop"])));
    assert_golden("events-resumed-json", &without_starts(&shown(&["events", "-o", "json", "shop"])));
    assert_golden("stop", &shown(&["stop", "shop"]));
    assert_golden("ps-ended", &shown(&["ps"]));
    assert_golden("inspect-ended", &shown(&["inspect", "shop"]));
    assert_golden("stop-ended", &shown(&["stop", "shop"]));
    assert_golden("wait-ended", &shown(&["wait", "shop"]));
    assert_golden("exec-ended", &shown(&["exec", "shop", "-c", "web", "--", "true"]));
    assert_golden("rm-ended", &shown(&["rm", "shop"]));
    assert_golden("ps-empty", &shown(&["ps"]));
}

#[test]
fn logs_in_every_form() {
    let host = running();
    let shown = |args: &[&str]| host.cmd(["logs", "shop"]).args(args).run().transcript();
    assert_golden("logs", &sorted(&shown(&[])));
    assert_golden("logs-one", &shown(&["-c", "web"]));
    assert_golden("logs-one-prefix", &shown(&["-c", "web", "--prefix"]));
    assert_golden("logs-timestamps", &shown(&["-c", "web", "--timestamps"]));
    assert_golden("logs-tail-0", &shown(&["--tail", "0"]));
    assert_golden("logs-tail-1", &sorted(&shown(&["--tail", "1"])));
    assert_golden("logs-since-long-ago", &sorted(&shown(&["--since", "1h"])));
    assert_golden("logs-since-the-future", &shown(&["--since", "2999-01-01T00:00:00Z"]));
    assert_golden("logs-since-nonsense", &shown(&["--since", "yesterday"]));
    assert_golden("logs-wrong-container", &shown(&["-c", "nobody"]));
}

/// Lines of two containers appear in the order of their times, which differs from run to run.
fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].sort_unstable();
    lines.join("\n")
}

#[test]
fn exec_and_attach() {
    let host = running();
    let exec = |args: &[&str]| host.cmd(["exec", "-c", "web", "shop"]).args(args);
    assert_golden("exec", &exec(&["--", "a", "b"]).run().transcript());
    assert_golden("exec-input", &exec(&["-i", "--", "cat"]).input("one\ntwo\n").run().transcript());
    assert_golden("exec-code", &exec(&["--", "exit", "42"]).run().transcript());
    assert_golden("exec-missing", &exec(&["--", "missing"]).run().transcript());
    assert_golden("exec-no-command", &exec(&[]).run().transcript());
    assert_golden("exec-bad-variable", &exec(&["-e", "novalue", "--", "x"]).run().transcript());
    assert_golden("exec-which", &host.cmd(["exec", "shop", "--", "x"]).run().transcript());
    assert_golden("exec-nowhere", &host.cmd(["exec", "shop", "-c", "db", "--", "x"]).run().transcript());
    let typed = Pod::simple("typed").with("stdin", true);
    host.start_fake(&typed, "run");
    assert_golden("attach", &host.cmd(["attach", "typed"]).input("one\ntwo\nexit 7\n").run().transcript());
    let mut watching = host.cmd(["attach", "shop", "-c", "side"]).spawn();
    watching.wait_for_stderr("showing its output only");
    host.cmd(["kill", "shop", "-c", "side"]).ok();
    assert_golden("attach-without-stdin", &watching.wait().transcript());
    let large = "x".repeat(1 << 20);
    let echoed = exec(&["-i", "--", "cat"]).input(large.clone()).ok().stdout;
    assert_eq!(echoed, format!("{large}cat\n"));
    exec(&["--", &"x".repeat(5000)]).fails(1).complains("argument 0 of exec is longer than 4096 bytes");
}

#[test]
fn pods_that_are_not_there_and_names_that_are_none() {
    let host = Host::fake();
    for verb in
        ["inspect", "logs", "stop", "pause", "resume", "rm", "wait", "stats", "events", "kill", "attach"]
    {
        host.cmd([verb, "nobody"]).fails(1).complains("there is no pod default/nobody");
    }
    assert_golden("unknown-pod", &host.cmd(["stop", "other/nobody"]).run().transcript());
    assert_golden("several-unknown-pods", &host.cmd(["rm", "a", "b"]).run().transcript());
    for name in ["Shop", "a_b", "-a", "a/b/c", "..", "", &"x".repeat(254), "a/", "/a", "a b"] {
        host.cmd(["inspect", "--", name]).fails(2).complains("a pod's name");
    }
    assert_golden("bad-name", &host.cmd(["inspect", "Shop"]).run().transcript());
    assert_golden("bad-signal", &host.cmd(["kill", "-s", "NOPE", "shop"]).run().transcript());
    assert_golden("bad-grace", &host.cmd(["stop", "--grace", "301", "shop"]).run().transcript());
    assert_golden("negative-grace", &host.cmd(["stop", "--grace", "-5", "shop"]).run().transcript());
    assert_golden("unknown-verb", &host.cmd(["remove", "shop"]).run().transcript());
    let usage = host.cmd(["inspect"]).env("MAGIKVM_GUEST", "/nowhere").fails(2).stderr;
    assert!(usage.contains("\nUsage: magikvm inspect <POD>\n"), "no option of the environment: {usage}");
    host.start_fake(&Pod::simple("web").set("metadata/namespace", "default"), "run");
    assert_golden("other-namespace", &host.cmd(["logs", "shop/web"]).run().transcript());
}

#[test]
fn help_of_every_verb() {
    let host = Host::bare();
    let verbs = [
        "run",
        "apply",
        "restart",
        "stop",
        "rm",
        "delete",
        "down",
        "validate",
        "explain",
        "ps",
        "get",
        "describe",
        "inspect",
        "logs",
        "events",
        "stats",
        "top",
        "wait",
        "exec",
        "attach",
        "cp",
        "port-forward",
        "pause",
        "resume",
        "kill",
        "image",
        "volume",
        "doctor",
        "version",
        "completions",
    ];
    assert_golden("help", &host.cmd(["--help"]).ok().stdout);
    for verb in verbs {
        assert_golden(&format!("help-{verb}"), &host.cmd([verb, "--help"]).ok().stdout);
    }
    for verb in ["import", "ls", "rm"] {
        assert_golden(&format!("help-image-{verb}"), &host.cmd(["image", verb, "--help"]).ok().stdout);
    }
    for verb in ["ls", "prune", "import", "export"] {
        assert_golden(&format!("help-volume-{verb}"), &host.cmd(["volume", verb, "--help"]).ok().stdout);
    }
    let help = host.cmd(["--help"]).ok().stdout;
    let groups =
        help.split("\n\n").filter(|group| !group.starts_with("Options:") && !group.starts_with("Global"));
    let lines = groups.filter(|group| group.contains(":\n  ")).flat_map(|group| group.lines().skip(1));
    let known: Vec<&str> = lines
        .filter_map(|line| line.split_ascii_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert_eq!(known, verbs, "a verb without a golden help");
}

#[test]
fn several_pods_at_once() {
    let host = Host::fake();
    let before = host.holdings();
    let nobody = host.cmd(["stop"]).ok();
    assert_golden("stop-nobody", &nobody.transcript());
    assert_golden("rm-nobody", &host.cmd(["rm", "--all"]).ok().transcript());
    host.cmd(["stop", "--all", "a"]).fails(2);

    // Guests that do not end on request take the whole time that they are given. Both are waited for at once.
    for name in ["slow-1", "slow-2"] {
        host.start_fake(&Pod::simple(name), "immortal");
    }
    host.start_fake(&Pod::simple("quick"), "run");
    let stopped =
        host.cmd(["stop", "--grace", "0", "slow-1", "nobody", "slow-2", "nobody", "quick"]).fails(1);
    assert_eq!(stopped.stderr.matches("there is no pod default/nobody").count(), 1, "{}", stopped.stderr);
    assert!(stopped.took < std::time::Duration::from_secs(15), "{:?}", stopped.took);
    assert_eq!((host.phase("quick"), host.phase("slow-1")), ("Failed".to_owned(), "Failed".to_owned()));

    host.start_fake(&Pod::simple("again"), "run");
    let left = host.cmd(["rm", "--all"]).fails(1).complains("pod default/again is running");
    assert_eq!(left.stderr.matches("Error: ").count(), 1, "{}", left.stderr);
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "default/again\n", "the others are removed");
    host.cmd(["pause", "--all"]).ok();
    assert_eq!(host.phase("again"), "Paused");
    host.cmd(["resume", "-a"]).ok();
    host.cmd(["stop", "--all", "--grace", "1s"]).ok();
    assert_eq!(host.phase("again"), "Failed");
    host.cmd(["rm", "-af"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn an_interrupted_stop_leaves_the_rest_to_the_monitors() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let host = Host::fake();
        host.start_fake(&Pod::simple("slow"), "immortal");
        let running = host.cmd(["stop", "--grace", "0", "slow"]).spawn();
        until("its monitor was asked", || host.cmd(["events", "slow"]).ok().stdout.contains("stopping"));
        running.signal(signal);
        let said = running.wait().expect_code(code);
        said.complains("Interrupted: still being stopped in the background: default/slow.");
        host.wait_for_phase("slow", "Failed");
        host.cmd(["rm", "slow"]).ok();
    }
}

#[test]
fn a_terminal_shows_what_is_waited_for() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("slow"), "immortal");
    let mut terminal = Terminal::start(host.cmd(["stop", "--grace", "0", "slow"]), 24, 80);
    terminal.wait_for("Stopping 1 pod (");
    terminal.wait_for(" s): default/slow");
    assert_eq!(terminal.wait(), 0);
    // What is on its way to the terminal is shown after the end of the program.
    until("the line goes", || terminal.shown().ends_with("\r\x1b[K"));
}

#[test]
fn why_a_pod_is_as_it_is() {
    let host = Host::fake();
    host.run_fake(&two("failed"), "exit=3").fails(3);
    host.run_fake(&Pod::simple("fine"), "exit=0").ok();
    host.start_fake(&Pod::simple("again").set("spec/restartPolicy", "Always"), "exit=1");
    until("it crashes", || host.cmd(["ps"]).ok().stdout.contains("CrashLoopBackOff: Error (1)"));
    let listed = host.cmd(["ps", "-o", "wide"]).ok().stdout;
    let row = |name: &str| listed.lines().find(|line| line.contains(name)).unwrap_or_default();
    assert!(row("default/failed").contains("web: Error (3)"), "{listed}");
    assert!(row("default/failed").ends_with("test/app:1,test/app:1"), "{listed}");
    assert!(row("default/fine").contains("Succeeded") && !row("default/fine").contains("Error"), "{listed}");
}

#[test]
fn exit_codes_of_a_foreground_run() {
    let host = Host::fake();
    let before = host.holdings();
    let code = |pod: &Pod, manner: &str| host.run_fake(pod, manner).arg("--rm").run().code;
    for own in [0, 1, 3, 42, 125] {
        assert_eq!(code(&Pod::simple("own"), &format!("exit={own}")), own);
    }
    // Ours: a manifest, an image, a name, the host, the guest.
    for text in ["", "kind: Nothing\n"] {
        host.cmd(["run", "--vmm", "fake", "-"]).input(text).fails(125);
        host.cmd(["run", "--vmm", "fake", "-d", "-"]).input(text).fails(1);
    }
    host.cmd(["run", "--vmm", "fake", "nothing.yaml"]).fails(125);
    let absent = Pod::new("a").container_of("web", "not/there:1", &["app"]).with("imagePullPolicy", "Never");
    assert_eq!(code(&absent, "run"), 125);
    host.cmd(["run", "--vmm", "qemu", "--accel", "tcg", "--rm"])
        .arg(host.manifest(&Pod::simple("b")))
        .env("PATH", "/nowhere")
        .env("MAGIKVM_QEMU", "/nowhere/qemu")
        .fails(125);
    assert_eq!(code(&Pod::simple("c"), "garbage"), 125);
    assert_eq!(code(&two("d"), "container-fails"), 127, "the program is not there");
    assert_eq!(code(&two("e"), "container-denied"), 126, "the program may not be executed");
    host.cmd(["run", "--no-such-option"]).fails(2);
    host.assert_as_before(&before);
}

#[test]
fn a_pod_that_fails_to_start_leaves_its_story() {
    let host = Host::fake();
    let output = host.run_fake(&two("unready"), "never-ready").args(["-d", "--ready-timeout", "2s"]).fails(1);
    let output = output.complains("(stage: agent)").complains("Container web: not started.\n");
    output.complains("The pod's events:\n").complains("web: created\n");
    let denied = host.run_fake(&two("f"), "container-denied").run().transcript();
    assert_golden("failed-container-story", &without_created(&denied));
}

/// The other container may have been created before this one failed, or not.
fn without_created(text: &str) -> String {
    text.lines().filter(|line| !line.ends_with(": created")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_version_has_a_verb() {
    let host = Host::bare();
    let plain = host.cmd(["version"]).ok().stdout;
    assert_eq!(plain, host.cmd(["--version"]).ok().stdout);
    let json: serde_json::Value =
        serde_json::from_str(&host.cmd(["version", "-o", "json"]).ok().stdout).unwrap();
    assert_eq!(format!("magikvm {}\n", json["version"].as_str().unwrap()), plain);
    assert!(json["guestGeneration"].is_u64() && json["os"] == "linux", "{json}");
}

#[test]
fn manifests_that_are_refused() {
    let host = Host::fake();
    let run = |text: &str| host.cmd(["run", "--vmm", "fake", "-"]).input(text).run().transcript();
    assert_golden("manifest-empty", &run(""));
    assert_golden("manifest-no-yaml", &run("a: [b"));
    assert_golden(
        "manifest-many-problems",
        &run(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: Shop}\nspec:\n  hostNetwork: true\n  volumes: []\n  containers:\n  - name: a\n    image: test/app:1\n    privileged: true\n  - name: a\n    image: ''\n",
        ),
    );
    assert_golden("manifest-large", &run(&format!("# {}\n", "x".repeat(1 << 20))));
    assert_golden(
        "manifest-bad-image",
        &run(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: shop}\nspec:\n  containers:\n  - name: web\n    image: test/app:1\n  - name: cache\n    image: Test/App:1\n",
        ),
    );
    assert_golden("manifest-missing", &host.cmd(["run", "--vmm", "fake", "nothing.yaml"]).run().transcript());
    let crowd = (0..17).fold(Pod::new("crowd"), |pod, n| pod.container(&format!("c{n}"), &["app"]));
    assert_golden("manifest-17-containers", &run(&crowd.text()));
    assert_golden(
        "manifest-huge-vm",
        &run(&Pod::simple("big").with("resources/limits/memory", "8Gi").text()),
    );
    let missing = Pod::new("lost")
        .container_of("web", "registry.example/missing:7", &["app"])
        .with("imagePullPolicy", "Never");
    assert_golden("image-missing", &host.run_fake(&missing, "run").run().transcript());
    let wasm = Pod::simple("w").set("spec/runtimeClassName", "pod-wasm");
    assert_golden("class-not-yet", &host.run_fake(&wasm, "run").run().transcript());
    let unknown = Pod::simple("w").set("spec/runtimeClassName", "kata");
    assert_golden("class-unknown", &host.run_fake(&unknown, "run").run().transcript());
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
}

#[test]
fn images_in_every_form() {
    let host = Host::fake();
    assert_golden("image-ls", &host.cmd(["image", "ls"]).run().transcript());
    host.start_fake(&Pod::simple("user"), "run");
    assert_golden("image-rm-used", &host.cmd(["image", "rm", "test/app:1"]).run().transcript());
    host.cmd(["rm", "-f", "user"]).ok();
    assert_golden("image-rm-unknown", &host.cmd(["image", "rm", "test/app:2"]).run().transcript());
    assert_golden("image-bad-name", &host.cmd(["image", "rm", "Test/App"]).run().transcript());
    assert_golden(
        "image-bad-source",
        &host.cmd(["image", "import", "ftp:x", "--name", "a"]).run().transcript(),
    );
    assert_golden(
        "image-no-layout",
        &host.cmd(["image", "import", "oci:/nowhere:1", "--name", "a"]).run().transcript(),
    );
}

#[test]
fn doctor_says_what_is_missing() {
    let host = Host::bare();
    let doctor = || host.cmd(["doctor"]).env("PATH", "/nowhere").env("MAGIKVM_QEMU", "/nowhere/qemu");
    let found = doctor().env("MAGIKVM_CONTAINERS", "/nowhere/program").run();
    assert_eq!(found.code, 3, "{}", found.transcript());
    for text in [
        "] QEMU: /nowhere/qemu cannot be executed: ",
        "] QEMU's vsock: vhost-device-vsock is not in PATH\n",
        "[FAIL] guest image: ",
        "\n       needed for: ",
        "\n       fix: ",
        "[ OK ] state directories: ",
        "[ OK ] image policy: ",
        "[WARN] passt: ",
        "[FAIL] pod-containers: program: MAGIKVM_CONTAINERS names /nowhere/program, which is not a file\n",
        "] pod-containers: user: ",
        "] pod-containers: cgroups: ",
        "[WARN] pod-containers: images: it was not tried",
        "\nPods cannot run on this host. ",
    ] {
        assert!(found.stdout.contains(text), "{text}: {}", found.stdout);
    }
    assert_eq!(found.stderr, "");
}

#[test]
fn what_doctor_finds_can_be_read_by_programs() {
    let host = Host::bare();
    let doctor = |format: &str| {
        let args = ["doctor", "-o", format];
        host.cmd(args).env("PATH", "/nowhere").env("MAGIKVM_CONTAINERS", "/nowhere/program")
    };
    let found = doctor("json").run();
    assert_eq!(found.code, 3, "{}", found.transcript());
    let report: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(report["containers"], false);
    assert_eq!((report["hardware"].as_bool(), report["emulation"].as_bool()), (Some(false), Some(false)));
    assert_eq!(report["drivers"], serde_json::json!({ "krun": false, "qemu": false }));
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "hardware virtualization",
            "libkrun",
            "QEMU",
            "QEMU's vsock",
            "guest image",
            "state directories",
            "image policy",
            "scratch disks",
            "libkrunfw",
            "network",
            "passt",
            "CNI networks",
            "user namespaces",
            "subordinate ids",
            "cgroups",
            "jail: cgroup",
            "jail: user",
            "jail: files",
            "jail: processes",
            "jail: ipc",
            "jail: hostname",
            "jail: network",
            "jail: capabilities",
            "jail: limits",
            "jail: landlock",
            "jail: syscalls",
            "pod-containers: user",
            "pod-containers: program",
            "pod-containers: cgroups",
            "pod-containers: user namespaces",
            "pod-containers: images",
            "pod-containers: owners",
            "pod-containers: overlays",
            "pod-containers: storage limits",
            "pod-containers: network",
            "pod-containers: AppArmor"
        ]
    );
    for check in checks {
        let text = |key: &str| check[key].as_str().is_some_and(|text| !text.is_empty());
        let ok = check["state"] == "ok";
        assert!(text("found") && text("remedy") != ok && text("needed_for") != ok, "{check}");
        assert!(ok || check["state"] == "warn" || check["state"] == "fail", "{check}");
    }
    let state = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap()["state"].clone();
    assert_eq!(state("guest image"), "fail");
    assert_ne!(state("QEMU"), "ok");
    let yaml = doctor("yaml").run();
    assert!(yaml.code == 3 && yaml.stdout.contains("\nemulation: false\n"), "{}", yaml.transcript());
}

#[test]
fn doctor_refuses_what_would_stop_every_pod() {
    let host = Host::bare();
    std::fs::create_dir_all(host.root().join("etc")).unwrap();
    std::fs::write(host.root().join("etc/policy.toml"), "default = perhaps\n").unwrap();
    std::fs::write(host.root().join("run"), "in the way").unwrap();
    let found = host.cmd(["doctor"]).run();
    assert_eq!(found.code, 3, "{}", found.transcript());
    assert!(found.stdout.contains("[FAIL] image policy: "), "{}", found.stdout);
    assert!(found.stdout.contains("/root/run is not a directory\n"), "{}", found.stdout);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly_and_output_that_cannot_be_written_is_told() {
    let host = running();
    let program = magikvm_tests::host::program().display();
    let bash = |script: String| host.other("bash").args(["-c", &script]).run();
    let gone = bash(format!("{program} logs shop | head -n 0; echo ${{PIPESTATUS[0]}}"));
    // The command may have written everything before the reader goes.
    assert!(
        ["0\n", "141\n"].contains(&gone.stdout.as_str()) && gone.stderr.is_empty(),
        "{}",
        gone.transcript()
    );
    let full = bash(format!("{program} ps -o json >/dev/full"));
    assert!(
        full.code == 3 && full.stderr.contains("cannot write to standard output"),
        "{}",
        full.transcript()
    );
    // A closed output neither stops the command nor makes it a success.
    let deaf = bash(format!("{program} image rm nope 2>/dev/full"));
    assert_eq!(deaf.code, 1);
}
