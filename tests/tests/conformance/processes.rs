//! Many containers, many processes, and too much memory.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::busybox;
use magikvm_tests::wait::until;
use magikvm_tests::wait_for;
use serde_json::json;
use std::time::Duration;

const MAKE_ORPHANS: &str = "i=0; while [ $i -lt 300 ]; do (true & ); i=$((i+1)); done; echo done";

pub(crate) static GROUP: Group = Group {
    name: "processes",
    title: "Processes and memory",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "sixteen_containers_of_sixteen_images",
            "Sixteen containers of sixteen images run side by side, and each sees its own image.",
            sixteen_containers_of_sixteen_images,
        )
        .of("`containers`"),
        Row::code(
            "orphans_in_a_namespace_that_is_shared",
            "In a shared PID namespace containers see each other's processes, and orphans are reaped.",
            orphans_in_a_namespace_that_is_shared,
        )
        .of("`shareProcessNamespace`"),
        Row::code(
            "orphans_in_a_namespace_of_its_own",
            "Orphans that PID 1 of a container does not reap harm no other container, and disappear with their container.",
            orphans_in_a_namespace_of_its_own,
        ),
        Row::code(
            "a_container_without_memory",
            "A container that exceeds its memory limit is killed and reported as such, and no other container is affected.",
            a_container_without_memory,
        )
        .of("`resources.limits.memory`"),
    ],
};

fn sixteen_containers_of_sixteen_images(subject: &Subject) {
    let mut pod = Pod::new("crowd");
    for number in 0..16 {
        let image = format!("crowd/app-{number}:1");
        subject.import(
            &image,
            busybox().file("etc/which", 0o644, format!("image {number}\n").as_bytes()),
            &json!({}),
        );
        pod = pod
            .container_of(&format!("c{number:02}"), &image, &["sh", "-c", "cat /etc/which"])
            .with("resources/limits/memory", "32Mi");
    }
    // Many containers start slowly on a busy host.
    let output = subject.run(&pod).limit(Duration::from_secs(150)).ok();
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    let expected: Vec<String> = (0..16).map(|number| format!("c{number:02} | image {number}")).collect();
    assert_eq!(lines, expected);
    assert_eq!(subject.phase("crowd"), "Succeeded");
    subject.cmd(["rm", "crowd"]).ok();
    subject.assert_as_new();
}

/// How many zombies a container sees.
fn zombies(subject: &Subject, pod: &str, container: &str) -> usize {
    subject
        .sh(pod, container, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")
        .trim()
        .parse()
        .unwrap()
}

fn wait_for_orphans(subject: &Subject, pod: &str) {
    wait_for("hundreds of orphans", Duration::from_secs(60), || {
        subject.logs(pod, "maker").contains("done").then_some(())
    });
}

fn orphans_in_a_namespace_that_is_shared(subject: &Subject) {
    let pod = Pod::new("shared")
        .set("spec/shareProcessNamespace", true)
        .script("maker", &format!("{MAKE_ORPHANS}; exec sleep 1000"))
        .container("other", &["sleep", "77"]);
    subject.start(&pod);
    wait_for_orphans(subject, "shared");
    until("all of them are reaped", || zombies(subject, "shared", "other") == 0);
    let seen = subject.sh("shared", "maker", "ps -o args");
    assert!(seen.contains("sleep 1000") && seen.contains("sleep 77"), "they see each other: {seen}");
}

/// PID 1 of a private namespace has to reap its orphans. This one does not, which must not affect others, and its end removes the zombies.
fn orphans_in_a_namespace_of_its_own(subject: &Subject) {
    // A child makes them, so that they become children of `sleep`.
    let script = format!("{{ {MAKE_ORPHANS}; }} & exec sleep 1000");
    let pod = Pod::new("own").script("maker", &script).container("other", &["sleep", "1000"]);
    subject.start(&pod);
    wait_for_orphans(subject, "own");
    until("they are zombies", || zombies(subject, "own", "maker") > 250);
    assert_eq!(zombies(subject, "own", "other"), 0);
    subject.cmd(["kill", "own", "-c", "maker"]).ok();
    until("the container has ended", || subject.statuses("own")[0]["state"]["terminated"]["exitCode"] == 137);
    assert_eq!(subject.sh("own", "other", "echo alive"), "alive\n");
}

fn a_container_without_memory(subject: &Subject) {
    let pod = Pod::new("hungry")
        .container("eater", &["tail", "/dev/zero"])
        .with("resources/limits/memory", "32Mi")
        .container("other", &["sleep", "1000"]);
    let running = subject.run(&pod).spawn();
    let killed = || {
        let pod = subject.inspect("hungry")?;
        Some(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled")
    };
    until("it is killed", || killed() == Some(true));
    let statuses = subject.statuses("hungry");
    assert_eq!(statuses[0]["state"]["terminated"]["exitCode"], 137);
    assert_eq!(statuses[1]["ready"], true);
    subject.cmd(["events", "hungry"]).ok().prints("eater: killed: out of memory");
    assert_eq!(subject.sh("hungry", "other", "echo alive"), "alive\n");
    subject.cmd(["ps"]).ok().prints(" eater: OOMKilled ");
    subject.cmd(["stop", "--grace", "0", "hungry"]).ok();
    let said = running.wait().expect_code(137);
    let said = said.complains("Container eater was killed: out of memory (its limit is 32Mi).");
    said.complains("Hint: Raise `resources.limits.memory`");
}
