//! What the containers of a pod share, and what they do not.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::programs;
use magikvm_tests::virtual_machine::busybox;
use magikvm_tests::wait::until;
use serde_json::{Value, json};

const POD: &str = "shop";
const WEB: &str = "mkdir /www && echo 'hello from web' > /www/index.html && exec httpd -f -p 8080 -h /www";
const CLIENT: &str = "until wget -qO- localhost:8080; do sleep 0.1; done; exec sleep 1000";
/// Has a program that asks over Unix sockets.
const IMAGE: &str = "asks:1";
const SOCKET: &str = "/run/magikvm/directory.sock";

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
        Row::code(
            "service_directory",
            "A container that the annotation names asks for the pod, its containers and their ports on a socket that it can neither replace nor remove; other containers have none.",
            service_directory,
        )
        .of("`magikvm.dev/service-directory`"),
        Row::code(
            "service_directory_of_states",
            "The service directory tells when a container becomes ready and when it is not any more.",
            service_directory_of_states,
        )
        .of("`magikvm.dev/service-directory`"),
    ],
};

fn start(subject: &Subject) {
    subject.import(
        IMAGE,
        busybox().file("bin/ask", 0o755, programs::CLIENT),
        &json!({ "Env": ["PATH=/bin"] }),
    );
    let ready = json!({ "exec": { "command": ["test", "-e", "/ready"] }, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10 });
    let pod = Pod::new(POD)
        .set("spec/hostname", "corner")
        .annotated("magikvm.dev/service-directory", "asks")
        .script("web", WEB)
        .with("ports", json!([{ "name": "http", "containerPort": 8080 }]))
        .script("client", CLIENT)
        .container_of("asks", IMAGE, &["sleep", "1000"])
        .with("readinessProbe", ready);
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
    assert_eq!(containers.len(), 3, "{stats}");
    for container in containers {
        assert!(
            container["pids"].as_u64() > Some(0) && container["memory_bytes"].as_u64() > Some(0),
            "{container}"
        );
    }
}

/// The status line and the body of the service directory's answer.
fn ask(subject: &Subject, method: &str, path: &str) -> (String, Value) {
    let answer = subject.sh(POD, "asks", &format!("ask ask {SOCKET} {method} {path}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head.lines().next().unwrap_or_default().to_owned(), serde_json::from_str(body).unwrap())
}

fn service_directory(subject: &Subject) {
    let ok = || "HTTP/1.1 200 OK".to_owned();
    let web = json!({
        "name": "web", "role": "main", "state": "running", "started": true, "ready": true, "restartCount": 0,
        "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
    });
    assert_eq!(ask(subject, "GET", "/v1/containers/web"), (ok(), web.clone()));
    let (status, all) = ask(subject, "GET", "/v1/containers");
    assert_eq!((status, &all["containers"][0]), (ok(), &web));
    let names: Vec<&Value> = all["containers"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["web", "client", "asks"]);
    let (status, pod) = ask(subject, "GET", "/v1/pod");
    assert_eq!((status, &pod["name"], &pod["hostname"]), (ok(), &json!(POD), &json!("corner")));
    assert_eq!(ask(subject, "GET", "/v1/containers/db").0, "HTTP/1.1 404 Not Found");
    assert_eq!(ask(subject, "DELETE", "/v1/containers/web").0, "HTTP/1.1 405 Method Not Allowed");
    for change in ["rm -f directory.sock", "mv directory.sock x", "touch x", "ln -s x y"] {
        let script = format!("cd /run/magikvm; {change} 2>&1; true");
        let said = subject.sh(POD, "asks", &script);
        assert!(said.contains("Read-only file system"), "{change}: {said}");
    }
    assert_eq!(ask(subject, "GET", "/v1/pod").0, ok());
    for container in ["web", "client"] {
        assert_eq!(subject.sh(POD, container, "ls -d /run/magikvm 2>/dev/null; true"), "", "{container}");
    }
}

fn service_directory_of_states(subject: &Subject) {
    let is_ready = || ask(subject, "GET", "/v1/containers/asks").1["ready"] == true;
    assert!(!is_ready());
    subject.sh(POD, "asks", "touch /ready");
    until("it is told that the container is ready", is_ready);
    assert_eq!(ask(subject, "GET", "/v1/pod").1["ready"], true);
    subject.sh(POD, "asks", "rm /ready");
    until("it is told that the container is not ready any more", || !is_ready());
}
