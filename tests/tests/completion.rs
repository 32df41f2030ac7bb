//! Completions and manual pages, as the shells read them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::{Host, Pod};

/// A host with two pods that run, one that has ended, and `magikvm` in a directory for `PATH`.
fn completing() -> (Host, String) {
    let host = Host::fake();
    host.start_fake(&Pod::new("shop").container("web", &["app"]).container("side", &["app"]), "run");
    host.start_fake(&Pod::simple("ended"), "exit=0");
    host.wait_for_phase("ended", "Succeeded");
    let other = Pod::simple("web").set("metadata/namespace", "team");
    host.run_fake(&other, "run").arg("-d").ok();
    host.other("ln").arg("-s").arg(magikvm_tests::host::program()).arg(host.file("magikvm")).ok();
    let path = format!("{}:/usr/bin:/bin", host.file("").display());
    (host, path)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn completions_for_shells() {
    let host = Host::bare();
    let script = host.cmd(["completions", "bash"]).ok().stdout;
    host.other("bash").args(["-n", "/dev/stdin"]).input(script.clone()).ok();
    let asked = format!(
        "{script}\nCOMP_WORDS=(magikvm ru); COMP_CWORD=1; _magikvm magikvm ru magikvm; echo \"${{COMPREPLY[@]}}\""
    );
    assert_eq!(host.other("bash").args(["-c", &asked]).ok().stdout, "run\n");
    for shell in ["elvish", "powershell"] {
        assert!(host.cmd(["completions", shell]).ok().stdout.contains("magikvm"));
    }
    host.cmd(["completions", "tcsh"]).fails(2);
    let pages = host.file("man");
    std::fs::create_dir(&pages).unwrap();
    host.cmd(["__man"]).arg(&pages).ok();
    let page = std::fs::read_to_string(pages.join("magikvm-stop.1")).unwrap();
    assert!(page.contains("\\-\\-grace") && !page.contains(&host.root().display().to_string()), "{page}");
    assert!(!pages.join("magikvm-__man.1").exists(), "hidden verbs have no pages");
}

#[test]
fn names_are_completed_from_what_there_is() {
    let (host, path) = completing();
    let script = host.cmd(["completions", "bash"]).ok().stdout;
    let complete = |line: &str| {
        let words = line.split(' ').map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let word = line.rsplit(' ').next().unwrap();
        let asked = format!(
            "{script}
            COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}
            _magikvm_names magikvm '{word}' x; printf '%s\n' \"${{COMPREPLY[@]}}\""
        );
        let said = host.other("bash").args(["-c", &asked]).env("PATH", &path).ok().stdout;
        lines(&said)
    };
    assert_eq!(complete("magikvm ru"), ["run"]);
    assert_eq!(complete("magikvm stop "), ["shop", "team/web"]);
    assert_eq!(complete("magikvm stop shop t"), ["team/web"]);
    assert_eq!(complete("magikvm rm e"), ["ended"]);
    assert_eq!(complete("magikvm inspect default/"), ["default/ended", "default/shop"]);
    assert_eq!(complete("magikvm logs shop -c "), ["side", "web"]);
    assert_eq!(complete("magikvm exec -it -c s"), ["side"]);
    assert_eq!(complete("magikvm image rm te"), ["test/app:1"]);
    // bash has split the word at the colon and replaces only what follows it.
    assert_eq!(complete("magikvm image rm test/app:"), ["1"]);
    assert_eq!(complete("magikvm stop --gra"), ["--grace"]);
    // Directories with hostile names are not offered, and nothing of them is executed.
    std::fs::create_dir(host.root().join("run/pods/default_$(touch hacked)")).unwrap();
    assert_eq!(complete("magikvm rm "), ["ended", "shop", "team/web"]);
    host.cmd(["__complete", "--", "stop", "$(id)"]).ok();
    host.cmd(["__complete", "--"]).ok();
}

#[test]
fn zsh_completes_names() {
    let (host, path) = completing();
    let script = host.file("_magikvm");
    std::fs::write(&script, host.cmd(["completions", "zsh"]).ok().stdout).unwrap();
    let zsh = |commands: &str| {
        let commands =
            format!("autoload -Uz compinit; compinit -u -D; source '{}'; {commands}", script.display());
        lines(&host.other("zsh").args(["-f", "-c", &commands]).env("PATH", &path).ok().stdout)
    };
    assert_eq!(zsh("print $_comps[magikvm]"), ["_magikvm_names"]);
    // The system of completion runs only for a person who types, so the script's function is called as it would call it.
    let complete = |words: &str| {
        zsh(&format!(
            "compadd() {{ print -l -- \"${{(@P)@[-1]}}\" }}; words=({words}); CURRENT=$#words; _magikvm_names"
        ))
    };
    assert_eq!(complete("magikvm stop ''"), ["shop", "team/web"]);
    assert_eq!(complete("magikvm rm e"), ["ended"]);
    assert_eq!(complete("magikvm logs shop -c ''"), ["side", "web"]);
    // An installed script is loaded by its name from fpath, and then completes at once.
    let loaded =
        format!("fpath=('{}' $fpath); autoload -Uz _magikvm; functions _magikvm", host.file("").display());
    assert!(!zsh(&loaded).is_empty());
}

#[test]
fn fish_completes_names() {
    let (host, path) = completing();
    let script = host.file("magikvm.fish");
    std::fs::write(&script, host.cmd(["completions", "fish"]).ok().stdout).unwrap();
    let complete = |line: &str| {
        let commands = format!("source '{}'; complete -C '{line}'", script.display());
        let said = host.other("fish").args(["--no-config", "-c", &commands]).env("PATH", &path).ok().stdout;
        // A description follows behind a tab.
        said.lines().map(|line| line.split('\t').next().unwrap_or(line).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(complete("magikvm ru"), ["run"]);
    assert_eq!(complete("magikvm stop "), ["shop", "team/web"]);
    assert_eq!(complete("magikvm rm e"), ["ended"]);
    assert_eq!(complete("magikvm logs shop -c "), ["side", "web"]);
    assert_eq!(complete("magikvm stop --gra"), ["--grace"]);
}
