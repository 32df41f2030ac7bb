//! The directory as its clients see it.

use super::answer::{MAX_HEAD, respond};
use super::server::{MAX_CLIENTS, TIME};
use super::*;
use crate::extension::{Around, Extension, Extensions};
use magikvm_proto::id::{Namespace, PodId};
use magikvm_proto::lifecycle::{Hooks, Probes, Restarts, Role, TerminationMessage};
use magikvm_proto::plan::{ContainerPlan, Layer, ProcessNamespace, RestartPolicy, Rootfs, Stdin, Stdio};
use magikvm_proto::security::{ImageGroups, PodLimits, Privilege};
use magikvm_proto::service_directory::{ListedPort, PortProtocol};
use magikvm_proto::signal::Signal;
use magikvm_proto::state::{ContainerState, ContainerStatus, WaitingReason};
use magikvm_proto::wire::EventKind;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// As the supervisor makes it.
fn extensions_of(site: &Site, plan: &GuestPlan) -> Vec<Box<dyn Extension>> {
    ServiceDirectory::of(site, plan).map(|one| Box::new(one) as Box<dyn Extension>).into_iter().collect()
}

fn container(name: &str, role: Role, directory: DirectoryAccess, ports: Vec<ListedPort>) -> ContainerPlan {
    ContainerPlan {
        name: name.parse().unwrap(),
        rootfs: Rootfs::Partition(2),
        layer: Layer::Memory { size_bytes: None },
        user: String::new(),
        image_groups: ImageGroups::Merge,
        privilege: Privilege::Confined,
        file_variables: Vec::new(),
        stdio: Stdio::Pipes,
        stdin: Stdin::Closed,
        stop_signal: Signal::TERM,
        mounts: Vec::new(),
        role,
        restarts: Restarts::default(),
        probes: Probes::default(),
        hooks: Hooks::default(),
        termination_message: TerminationMessage::default(),
        directory,
        ports,
    }
}

/// A pod whose containers web and other see the directory.
fn plan() -> GuestPlan {
    let http = ListedPort { name: Some("http".to_owned()), port: 8080, protocol: PortProtocol::Tcp };
    let dns = ListedPort { name: None, port: 53, protocol: PortProtocol::Udp };
    GuestPlan {
        generation: magikvm_proto::GENERATION,
        pod: PodId { namespace: Namespace::default(), name: "shop".parse().unwrap() },
        uid: "6f1f5d0e".to_owned(),
        hostname: "corner".to_owned(),
        restart_policy: RestartPolicy::Never,
        process_namespace: ProcessNamespace::PerContainer,
        grace_ms: 0,
        deadline_ms: None,
        containers: vec![
            container("init", Role::Init, DirectoryAccess::None, Vec::new()),
            container("web", Role::Main, DirectoryAccess::Socket, vec![http, dns]),
            container("other", Role::Main, DirectoryAccess::Socket, Vec::new()),
        ],
        volumes: Vec::new(),
        network: None,
        given_address: None,
        sysctls: Vec::new(),
        limits: PodLimits::default(),
    }
}

/// The states of its containers.
fn states(ready: bool) -> Vec<ContainerStatus> {
    let running = |name: &str, role, ready| ContainerStatus {
        state: ContainerState::Running { started_ms: 1 },
        started: true,
        ready,
        ..ContainerStatus::waiting(name.parse().unwrap(), role, WaitingReason::ContainerCreating)
    };
    let waiting = WaitingReason::PodInitializing;
    vec![
        ContainerStatus::waiting("init".parse().unwrap(), Role::Init, waiting),
        running("web", Role::Main, ready),
        running("other", Role::Main, true),
    ]
}

/// The status code and the body of an answer.
fn split(answer: &[u8]) -> (u16, Value) {
    let text = std::str::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn pod(ready: bool) -> Pod {
    let mut pod = Pod::of(&plan());
    pod.update(&states(ready));
    pod
}

fn asked(request: &str) -> (u16, Value) {
    split(&respond(request.as_bytes(), &pod(true)).unwrap())
}

fn get(path: &str) -> (u16, Value) {
    asked(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

#[test]
fn containers_and_the_pod_are_described() {
    let web = json!({
        "name": "web", "role": "main", "state": "running", "started": true, "ready": true, "restartCount": 0,
        "ports": [
            { "name": "http", "containerPort": 8080, "protocol": "TCP" },
            { "containerPort": 53, "protocol": "UDP" },
        ],
    });
    assert_eq!(get("/v1/containers/web"), (200, web.clone()));
    let (code, all) = get("/v1/containers");
    assert_eq!((code, all["containers"].as_array().unwrap().len()), (200, 3));
    assert_eq!(all["containers"][1], web);
    let init = &all["containers"][0];
    assert_eq!((&init["state"], &init["reason"]), (&json!("waiting"), &json!("PodInitializing")));
    let shop = json!({
        "name": "shop", "namespace": "default", "uid": "6f1f5d0e", "hostname": "corner", "addresses": [],
        "ready": true, "containers": ["init", "web", "other"],
    });
    assert_eq!(get("/v1/pod"), (200, shop));
    let request = b"GET /v1/pod HTTP/1.0\r\n\r\n";
    assert_eq!(split(&respond(request, &pod(false)).unwrap()).1["ready"], false);
    assert_eq!(split(&respond(request, &Pod::of(&plan())).unwrap()).1["ready"], false, "before any state");
}

#[test]
fn everything_else_is_an_error_in_json() {
    for path in ["/", "/v1", "/v1/containers/", "/v1/containers/db", "/v1/containers/web/", "/v1/pod?x", "*"]
    {
        let (code, body) = get(path);
        assert_eq!((code, &body["code"]), (404, &json!(404)), "{path}");
    }
    for method in ["HEAD", "POST", "PUT", "DELETE", "get", "OPTIONS"] {
        let request = format!("{method} /v1/pod HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
        let answer = respond(request.as_bytes(), &pod(true)).unwrap();
        assert_eq!(split(&answer).0, 405, "{method}");
        assert!(String::from_utf8(answer).unwrap().contains("\r\nAllow: GET\r\n"));
    }
    for header in ["Content-Length: 1", "content-length: +0", "Transfer-Encoding: chunked"] {
        assert_eq!(asked(&format!("GET /v1/pod HTTP/1.1\r\n{header}\r\n\r\n")).0, 413, "{header}");
    }
    assert_eq!(asked("\0\0\0\0").0, 400);
    assert_eq!(asked("GET /v1/pod HTTP/9.9\r\n\r\n").0, 400);
    let many = "a: b\r\n".repeat(65);
    assert_eq!(asked(&format!("GET /v1/pod HTTP/1.1\r\n{many}\r\n")).0, 431);
    let endless = format!("GET /{}", "a".repeat(MAX_HEAD));
    assert_eq!(respond(&endless.as_bytes()[..MAX_HEAD - 1], &pod(true)), None, "more may come");
    assert_eq!(asked(&endless[..MAX_HEAD]).0, 431);
}

proptest! {
    #[test]
    fn any_request_is_answered_with_json_or_waits(bytes in prop::collection::vec(any::<u8>(), 0..300), head in "(GET|POST) /[a-z0-9/]{0,20} HTTP/1\\.[01]\r\n") {
        for request in [bytes.clone(), [head.as_bytes(), &bytes].concat()] {
            if let Some(answer) = respond(&request, &pod(true)) {
                split(&answer);
            }
        }
    }
}

/// A served pod, whose container web can become ready.
struct Served {
    dir: tempfile::TempDir,
    extensions: Extensions,
    states: Arc<Mutex<Vec<ContainerStatus>>>,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::beneath(dir.path(), "/x");
        for name in ["web", "other"] {
            fs::create_dir_all(site.service_directory(&name.parse().unwrap())).unwrap();
        }
        let states = Arc::new(Mutex::new(states(false)));
        let seen = Arc::clone(&states);
        let around = Around {
            plan: plan(),
            states: Box::new(move || lock(&seen).clone()),
            failed: Box::new(|name, what| panic!("{name} {what}")),
        };
        let extensions = Extensions::start(extensions_of(&site, &plan()), around);
        Self { dir, extensions, states }
    }

    fn socket(&self, name: &str) -> PathBuf {
        Site::beneath(self.dir.path(), "/x").service_directory(&name.parse().unwrap()).join(SOCKET)
    }

    /// Connects as a container.
    fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.socket(name)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn get(&self, name: &str, path: &str) -> (u16, Value) {
        let mut stream = self.connect(name);
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
        split(&to_end(stream))
    }
}

fn to_end(mut stream: UnixStream) -> Vec<u8> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn a_container_sees_another_one_become_ready() {
    let served = Served::new();
    assert_eq!(served.get("other", "/v1/containers/web").1["ready"], false);
    *lock(&served.states) = states(true);
    let container = "web".parse().unwrap();
    served.extensions.tell(&EventKind::ContainerCondition { container, started: true, ready: true });
    let begun = Instant::now();
    while served.get("other", "/v1/containers/web").1["ready"] != true {
        assert!(begun.elapsed() < PATIENCE, "it does not become ready");
    }
    served.extensions.stop();
    let refused = || UnixStream::connect(served.socket("web")).is_err();
    let begun = Instant::now();
    while !refused() {
        assert!(begun.elapsed() < PATIENCE, "it is still served");
    }
}

#[test]
fn slow_and_greedy_clients_disturb_nobody_else() {
    let served = Served::new();
    // In pieces.
    let mut slow = served.connect("other");
    for piece in ["GET /v1", "/pod HT", "TP/1.1\r\n\r", "\n"] {
        slow.write_all(piece.as_bytes()).unwrap();
        assert_eq!(served.get("other", "/v1/nothing").0, 404);
    }
    assert_eq!(split(&to_end(slow)).0, 200);
    // All connections of one container, and more that wait for them.
    let begun = Instant::now();
    let mut kept: Vec<UnixStream> = (0..2 * MAX_CLIENTS).map(|_| served.connect("other")).collect();
    assert_eq!(served.get("web", "/v1/pod").0, 200, "the other container is served at once");
    assert!(begun.elapsed() < TIME, "{:?}", begun.elapsed());
    // Their time ends, and then it is the turn of others.
    let first = kept.remove(0);
    assert_eq!(to_end(first), b"");
    assert!(begun.elapsed() >= TIME / 2);
    drop(kept);
    assert_eq!(served.get("other", "/v1/pod").0, 200);
    // Who sends too much, or goes before its answer.
    let mut large = served.connect("other");
    large.write_all(&vec![b'a'; 3 * MAX_HEAD]).ok();
    drop(large);
    let mut gone = served.connect("other");
    gone.write_all(b"GET /v1/containers HTTP/1.1\r\n\r\n").unwrap();
    drop(gone);
    assert_eq!(served.get("other", "/v1/pod").0, 200);
    served.extensions.stop();
}

#[test]
fn a_directory_that_cannot_be_made_is_a_failure_of_the_extension() {
    let dir = tempfile::tempdir().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let tell = Mutex::new(tell);
    let around = Around {
        plan: plan(),
        states: Box::new(|| states(true)),
        failed: Box::new(move |name, what| lock(&tell).send(format!("{name} {what}")).unwrap()),
    };
    let missing = Site::beneath(dir.path(), "/x");
    let extensions = Extensions::start(extensions_of(&missing, &plan()), around);
    let failure = told.recv_timeout(PATIENCE).unwrap();
    assert!(failure.starts_with("service-directory has failed: cannot listen at "), "{failure}");
    assert!(failure.contains("No such file or directory"), "{failure}");
    extensions.stop();
}
