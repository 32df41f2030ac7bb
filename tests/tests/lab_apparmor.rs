//! AppArmor profiles of containers without a VM. The lab's kernel has AppArmor, and no policy; each test puts the program that loads profiles into the
//! lab, which is a host that it may change.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_lab::{Room, inside};
use magikvm_tests::user::{Ordinary, SUBORDINATE};
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::{Cmd, Pod, escape};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const ROOM: Room = Room { limit: Duration::from_secs(600), memory_mib: 3072 };
const NAME: &str = "ordinary";
const UID: u32 = 4321;
const LABEL: &str = "cat /proc/self/attr/apparmor/current";
/// Of the first process of a container.
const LABEL_OF_FIRST: &str = "cat /proc/1/attr/apparmor/current";
const POLICY: &str = "/sys/kernel/security/apparmor";
/// A profile of the host's administrator.
const STRICT: &str = "profile k8s-strict flags=(attach_disconnected) {\n  file,\n  network,\n  capability,\n  signal,\n  ptrace,\n  \
    deny /denied/** w,\n}\n";

/// Installs the program with its files, as Debian's package does.
fn install() {
    let from = std::env::var_os("MAGIKVM_TEST_APPARMOR").map(PathBuf::from);
    let from = from.expect("MAGIKVM_TEST_APPARMOR is not set: run the tests with ci/test.sh");
    let copy = |what: &str, to: &str| drop(Cmd::new("/bin/cp").arg("-a").arg(from.join(what)).arg(to).ok());
    copy("sbin/apparmor_parser", "/usr/sbin/");
    copy("etc/apparmor", "/etc/");
    copy("etc/apparmor.d", "/etc/");
    copy("usr/share/apparmor-features", "/usr/share/");
}

/// Loads a profile as an administrator does.
fn load(profile: &str) {
    let file = "/etc/apparmor.d/test";
    fs::write(file, profile).unwrap();
    Cmd::new("/usr/sbin/apparmor_parser").args(["-r", file]).ok();
}

fn profile(kind: &str, name: Option<&str>) -> Value {
    match name {
        Some(name) => json!({ "type": kind, "localhostProfile": name }),
        None => json!({ "type": kind }),
    }
}

const FIELD: &str = "securityContext/appArmorProfile";

/// The names of the default profiles that are loaded.
fn defaults() -> Vec<String> {
    let list = fs::read_to_string(format!("{POLICY}/profiles")).unwrap();
    let names = list.lines().filter_map(|line| line.strip_suffix(" (enforce)"));
    names.filter(|name| name.starts_with("magikvm-default-")).map(str::to_owned).collect()
}

fn check_of_doctor(output: &str) -> Value {
    let doctor: Value = serde_json::from_str(output).unwrap();
    let all = doctor["checks"].as_array().unwrap();
    all.iter().find(|check| check["name"] == "pod-containers: AppArmor").unwrap().clone()
}

#[test]
fn containers_of_root_have_the_default_profile_and_what_they_ask_for() {
    inside!(ROOM, || {
        assert_eq!(fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap(), "Y\n");
        let host = VmHost::with(Driver::ContainersV2);
        let before = host.holdings();
        without_the_parser(&host);
        install();
        let check = check_of_doctor(&host.cmd(["doctor", "-o", "json"]).run().stdout);
        assert_eq!(check["state"], "ok", "{check}");
        two_at_once(&host);
        the_profile_denies_what_capabilities_allow(&host);
        processes_of_others_are_out_of_reach(&host);
        profiles_of_the_host(&host);
        where_the_kernel_joins_profiles(&host);
        // Nothing but the profiles is left.
        host.assert_as_before(&before);
        assert_eq!(defaults().len(), 1);
    });
}

/// Who asks for nothing runs without a profile, and who asks for one is told what is missing.
fn without_the_parser(host: &VmHost) {
    let without = |pod: &Pod| host.run(pod).env("PATH", "/nowhere");
    assert_eq!(without(&Pod::new("plain").script("web", LABEL)).ok().stdout, "web | unconfined\n");
    host.cmd(["rm", "plain"]).ok();
    let asking = Pod::simple("asking").with(FIELD, profile("RuntimeDefault", None));
    without(&asking)
        .arg("-d")
        .fails(1)
        .complains("container web: securityContext.appArmorProfile.type: the default profile cannot be had")
        .complains("apparmor_parser is not installed")
        .complains("apt-get install apparmor");
    let check = check_of_doctor(&host.cmd(["doctor", "-o", "json"]).env("PATH", "/nowhere").run().stdout);
    assert_eq!(check["state"], "warn", "{check}");
    assert_eq!(defaults(), Vec::<String>::new());
}

fn two_at_once(host: &VmHost) {
    let pods = ["one", "two"].map(|name| {
        let pod = Pod::simple(name).with(FIELD, profile("RuntimeDefault", None));
        host.run(&pod).arg("-d").spawn()
    });
    for run in pods {
        run.wait().expect_code(0);
    }
    let names = defaults();
    assert_eq!(names.len(), 1, "{names:?}");
    let expected = format!("{} (enforce)\n", names[0]);
    for pod in ["one", "two"] {
        for script in [LABEL, LABEL_OF_FIRST] {
            assert_eq!(host.sh(pod, "web", script), expected, "{pod}: {script}");
        }
        host.cmd(["rm", "-f", pod]).ok();
    }
}

fn the_profile_denies_what_capabilities_allow(host: &VmHost) {
    let mighty = |pod: Pod| {
        pod.with("securityContext/capabilities/add", json!(["SYS_ADMIN", "NET_ADMIN"]))
            .with("securityContext/procMount", "Unmasked")
    };
    let pod = mighty(Pod::new("mighty").container("bound", &["sleep", "1000"]));
    let pod = mighty(pod.container("free", &["sleep", "1000"])).with(FIELD, profile("Unconfined", None));
    let pod = pod
        .init_script("first", &format!("{LABEL}; {LABEL} > /dev/termination-log"), None)
        .container("user", &["sleep", "1000"])
        .with("securityContext", json!({ "runAsUser": 405, "allowPrivilegeEscalation": false }))
        .with("tty", true);
    host.start(&pod);
    let default = format!("{} (enforce)\n", defaults()[0]);
    assert_eq!(host.sh("mighty", "bound", LABEL), default);
    assert_eq!(host.sh("mighty", "user", LABEL), default);
    assert_eq!(host.sh("mighty", "user", LABEL_OF_FIRST), default);
    assert_eq!(host.cmd(["logs", "mighty", "-c", "first"]).ok().stdout, default);
    for script in [LABEL, LABEL_OF_FIRST] {
        assert_eq!(host.sh("mighty", "free", script), "unconfined\n");
    }
    let tries = "try() { if sh -c \"$1\" 2>/dev/null; then echo yes; else echo no; fi; }; \
        try 'mount -t tmpfs none /tmp'; try 'echo 0 >/proc/sys/net/ipv4/ip_forward'; \
        try 'cat /proc/sys/net/ipv4/ip_forward >/dev/null'; try 'echo 1 >/proc/self/oom_score_adj || echo 1000 >/proc/self/oom_score_adj'; \
        try 'hostname other'; try 'echo x >/root/file'";
    assert_eq!(host.sh("mighty", "free", tries), "yes\nyes\nyes\nyes\nyes\nyes\n");
    assert_eq!(host.sh("mighty", "bound", tries), "no\nno\nyes\nyes\nyes\nyes\n");
    host.cmd(["rm", "-f", "mighty"]).ok();
}

fn processes_of_others_are_out_of_reach(host: &VmHost) {
    let pod = Pod::new("shared")
        .set("spec/shareProcessNamespace", true)
        .container("free", &["sleep", "43391"])
        .with(FIELD, profile("Unconfined", None))
        .container("bound", &["sleep", "43392"])
        .container("beside", &["sleep", "43393"]);
    host.start(&pod);
    let pid = |seconds: &str| {
        let found =
            host.sh("shared", "free", &format!("ps -o pid,args | awk '/[s]leep {seconds}/ {{ print $1 }}'"));
        found.trim().parse::<i32>().unwrap_or_else(|_| panic!("{found:?}"))
    };
    let reaches = |from: &str, pid: i32| {
        host.sh("shared", from, &format!("kill -0 {pid} 2>/dev/null && echo yes || echo no"))
    };
    let [free, bound, beside] = ["43391", "43392", "43393"].map(pid);
    assert_eq!((reaches("bound", free), reaches("bound", beside)), ("no\n".to_owned(), "yes\n".to_owned()));
    assert_eq!((reaches("free", bound), reaches("free", beside)), ("yes\n".to_owned(), "yes\n".to_owned()));
    // The supervisor stops it with a signal.
    let began = std::time::Instant::now();
    host.cmd(["stop", "shared"]).ok();
    println!("stopped after {:?}", began.elapsed());
    host.cmd(["rm", "-f", "shared"]).ok();
}

fn profiles_of_the_host(host: &VmHost) {
    let strict = |name: &str| Pod::simple(name).with(FIELD, profile("Localhost", Some("k8s-strict")));
    host.run(&strict("missing"))
        .arg("-d")
        .fails(1)
        .complains("container web: securityContext.appArmorProfile.localhostProfile: the host has not loaded a profile \"k8s-strict\"")
        .complains("`apparmor_parser -r FILE`");
    let manifest = host.manifest(&strict("missing").set("spec/runtimeClassName", "pod-containers"));
    let said = host.cmd(["validate"]).arg(manifest).ok();
    assert!(said.stdout.contains("this host would not run it now"), "{}", said.transcript());
    load(STRICT);
    host.start(&strict("strict"));
    for script in [LABEL, LABEL_OF_FIRST] {
        assert_eq!(host.sh("strict", "web", script), "k8s-strict (enforce)\n");
    }
    let write = "mkdir /denied; echo x >/denied/file || echo no; echo x >/file && echo yes";
    assert_eq!(host.sh("strict", "web", write), "no\nyes\n");
    // A copy is bound as well, and brings what may be written.
    let file = host.file("copied");
    fs::write(&file, "copied").unwrap();
    let copy = |to: &str| host.cmd(["cp"]).arg(&file).arg(format!("strict:{to}"));
    assert_ne!(copy("/denied/copy").run().code, 0);
    copy("/copy").ok();
    assert_eq!(host.sh("strict", "web", "ls /denied; cat /copy"), "copied");
    host.cmd(["rm", "-f", "strict"]).ok();
    // The old annotation asks for the same.
    let annotated = Pod::new("old")
        .annotated("container.apparmor.security.beta.kubernetes.io/web", "localhost/k8s-strict")
        .script("web", LABEL);
    host.run(&annotated).ok().prints("k8s-strict (enforce)");
    host.cmd(["rm", "old"]).ok();
}

/// Where ordinary users may not leave what confines them, which is nothing here, the kernel adds the profile to that instead.
fn where_the_kernel_joins_profiles(host: &VmHost) {
    let setting = "/proc/sys/kernel/apparmor_restrict_unprivileged_unconfined";
    fs::write(setting, "1").unwrap();
    host.start(&Pod::simple("joined"));
    let joined = format!("{}//&unconfined (enforce)\n", defaults()[0]);
    for script in [LABEL, LABEL_OF_FIRST] {
        assert_eq!(host.sh("joined", "web", script), joined);
    }
    assert_eq!(host.sh("joined", "web", "sleep 43394 & kill $! && echo yes"), "yes\n");
    host.cmd(["rm", "-f", "joined"]).ok();
    fs::write(setting, "0").unwrap();
}

#[test]
fn an_ordinary_user_has_the_default_profile_that_root_has_loaded() {
    inside!(ROOM, || {
        install();
        let mut user = Ordinary::with_account(Driver::ContainersV2, NAME, UID);
        for table in ["/etc/subuid", "/etc/subgid"] {
            fs::write(table, format!("{NAME}:{}:{}\n", SUBORDINATE.0, SUBORDINATE.1)).unwrap();
        }
        user.delegate(NAME);
        let plain = Pod::new("plain").script("web", LABEL);
        user.run(&plain).ok().prints("web | unconfined");
        user.cmd(["rm", "plain"]).ok();
        let asking = Pod::simple("asking").with(FIELD, profile("RuntimeDefault", None));
        user.run(&asking)
            .arg("-d")
            .fails(1)
            .complains("appArmorProfile.type: the default profile cannot be had")
            .complains("only root can load profiles")
            .complains("with `sudo` once");
        let check = check_of_doctor(&user.cmd(["doctor", "-o", "json"]).run().stdout);
        assert_eq!(check["state"], "warn", "{check}");

        let root = VmHost::with(Driver::ContainersV2);
        root.run(&plain).ok();
        let default = format!("{} (enforce)", defaults()[0]);
        let check = check_of_doctor(&user.cmd(["doctor", "-o", "json"]).run().stdout);
        assert_eq!(check["state"], "ok", "{check}");
        user.run(&plain).ok().prints(&default);
        user.cmd(["rm", "plain"]).ok();
        user.run(&asking).arg("-d").ok();
        for script in [LABEL, LABEL_OF_FIRST] {
            user.cmd(["exec", "asking", "--", "sh", "-c", script]).ok().prints(&default);
        }
        user.cmd(["rm", "-f", "asking"]).ok();
        // A profile that root has loaded is for everybody.
        let strict =
            Pod::new("strict").script("web", LABEL).with(FIELD, profile("Localhost", Some("k8s-strict")));
        user.run(&strict).arg("-d").fails(1).complains("has not loaded a profile \"k8s-strict\"");
        load(STRICT);
        user.run(&strict).ok().prints("k8s-strict (enforce)");
        user.cmd(["rm", "strict"]).ok();
    });
}

/// The profile takes no way out of the namespaces away from the list of those that are tried, and opens none.
#[test]
fn no_way_out_is_open_under_the_default_profile() {
    inside!(ROOM, || {
        install();
        let host = VmHost::with(Driver::ContainersV2);
        escape::import(&host);
        escape::none_is_open(&host);
        assert_eq!(defaults().len(), 1);
    });
}
