//! What the containers of a pod share, and what they do not.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::until;
use serde_json::Value;

const POD: &str = "shop";
const WEB: &str = "mkdir /www && echo 'hello from web' > /www/index.html && exec httpd -f -p 8080 -h /www";
const CLIENT: &str = "until wget -qO- localhost:8080; do sleep 0.1; done; exec sleep 1000";

pub(crate) static GROUP: Group = Group {
    name: "together",
    title: "Containers of a pod share network and name, but not processes and files",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code("one_network", "They reach each other on localhost.", one_network),
        Row::code("one_name", "They have the pod's host name, and find it in /etc/hosts.", one_name)
            .of("`hostname`"),
        Row::shell(
            "processes_and_files_of_their_own",
            "Each sees only its own processes, the first of them as PID 1, and only its own files.",
            &[
                ("client", "cat /proc/1/comm; ls -d /www 2>/dev/null || echo none", "sleep\nnone\n"),
                ("web", "cat /proc/1/comm; ps | grep -c '[s]leep'; true", "httpd\n0\n"),
            ],
        ),
        Row::code(
            "namespaces",
            "They share the namespaces of network, IPC and host name, but not those of processes and mounts.",
            namespaces,
        ),
        Row::code("figures_of_each", "Processes and memory of each are counted.", figures_of_each)
            .of("`stats`"),
    ],
};

fn start(subject: &Subject) {
    let pod = Pod::new(POD).set("spec/hostname", "corner").script("web", WEB).script("client", CLIENT);
    subject.start(&pod);
    until("the client has its page", || !subject.logs(POD, "client").is_empty());
    until("the client has nothing more to do", || subject.sh(POD, "client", "cat /proc/1/comm") == "sleep\n");
}

fn one_network(subject: &Subject) {
    assert_eq!(subject.logs(POD, "client"), "hello from web\n");
}

fn one_name(subject: &Subject) {
    for container in ["web", "client"] {
        assert_eq!(subject.sh(POD, container, "hostname"), "corner\n");
        let hosts = subject.sh(POD, container, "cat /etc/hosts");
        assert!(hosts.contains("127.0.0.1") && hosts.contains("corner"), "{hosts}");
    }
}

fn namespaces(subject: &Subject) {
    let of = |container| {
        subject.sh(POD, container, "for n in net ipc uts pid mnt cgroup; do readlink /proc/1/ns/$n; done")
    };
    let (web, client) = (of("web"), of("client"));
    let shared: Vec<bool> = web.lines().zip(client.lines()).map(|(one, other)| one == other).collect();
    assert_eq!(shared[..5], [true, true, true, false, false], "{web}{client}");
}

fn figures_of_each(subject: &Subject) {
    let stats = subject.cmd(["stats", POD, "-o", "json"]).ok().stdout;
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let containers = stats["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 2, "{stats}");
    for container in containers {
        assert!(
            container["pids"].as_u64() > Some(0) && container["memory_bytes"].as_u64() > Some(0),
            "{container}"
        );
    }
}
