//! Golden file of the wire: one line per message form. A change here changes the contract; raise `GENERATION` with it.
//! `MAGIKVM_BLESS=1 cargo test -p magikvm-proto --test golden` rewrites the file.

use magikvm_proto::files::FileTask;
use magikvm_proto::forward::ForwardRequest;
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::lifecycle::*;
use magikvm_proto::plan::{
    ContainerPlan, GuestPlan, InterfaceAddress, Layer, MacAddress, Neighbour, NetworkPlan, ProcessNamespace,
    RestartPolicy, Rootfs, Stdin, Stdio,
};
use magikvm_proto::security::{ImageGroups, PodLimits, Privilege};
use magikvm_proto::service_directory::{DirectoryAccess, ListedPort, PortProtocol};
use magikvm_proto::state::{ContainerState, Terminated, WaitingReason};
use magikvm_proto::stream::{Link, STDERR, Side, Traffic};
use magikvm_proto::sysctl::Sysctl;
use magikvm_proto::variable::{FileVariable, Missing};
use magikvm_proto::volume::{Access, MountPlan, Part, Regroup, VolumePlan, VolumeSource};
use magikvm_proto::wire::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::path::Path;

fn web() -> ContainerName {
    "web".parse().expect("a name")
}

/// Adds one golden line and proves that reading it gives the same value.
fn line<T: Serialize + DeserializeOwned + PartialEq + Debug>(lines: &mut Vec<String>, message: &T) {
    let text = serde_json::to_string(message).expect("serializes");
    assert_eq!(&serde_json::from_str::<T>(&text).expect("parses"), message, "{text}");
    lines.push(text);
}

/// Frames of each kind, as hexadecimal digits.
fn probe(handler: Handler) -> ProbePlan {
    ProbePlan {
        handler,
        initial_delay_secs: 5,
        period_secs: 10,
        timeout_secs: 1,
        success_threshold: 1,
        failure_threshold: 3,
        grace_secs: Some(7),
    }
}

fn frames() -> Vec<String> {
    fn sent(link: &mut Link) -> String {
        let bytes = link.outbox().to_vec();
        link.sent(bytes.len());
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
    let (mut host, mut guest) =
        (Link::new(Side::Host, Traffic::PROCESS), Link::new(Side::Guest, Traffic::PROCESS));
    let mut frames = Vec::new();
    guest.send(STDERR, b"ab");
    frames.push(sent(&mut guest));
    guest.send_message(b"{}");
    frames.push(sent(&mut guest));
    guest.end();
    frames.push(sent(&mut guest));
    host.send_urgent(b"{}");
    frames.push(sent(&mut host));
    host.receive(&[[0, 0, 0x3f, 0xfc].as_slice(), &[7; 16380]].concat().repeat(2)).expect("data");
    host.delivered(2 * 16380);
    frames.push(sent(&mut host));
    host.abort();
    frames.push(sent(&mut host));
    frames
}

#[test]
fn the_wire_is_as_it_was() {
    let mut l = Vec::new();
    line(&mut l, &Request::Hello { generation: 4 });
    line(&mut l, &Request::Ping);
    line(&mut l, &Request::Status);
    line(&mut l, &Request::Signal { container: None, signal: 15 });
    line(&mut l, &Request::Signal { container: Some(web()), signal: 9 });
    line(
        &mut l,
        &Request::Exec(ExecRequest {
            container: web(),
            args: vec!["sh".into(), "-c".into(), "id".into()],
            user: Some("web:staff".into()),
            env: vec!["A=b".into()],
            cwd: Some("/tmp".into()),
            terminal: Some(WindowSize { rows: 24, cols: 80 }),
            stdin: true,
            timeout_ms: Some(300_000),
            files: None,
        }),
    );
    line(
        &mut l,
        &Request::Exec(ExecRequest {
            container: web(),
            args: vec!["true".into()],
            user: None,
            env: vec![],
            cwd: None,
            terminal: None,
            stdin: false,
            timeout_ms: None,
            files: None,
        }),
    );
    for files in
        [FileTask::Read { path: "/etc".into() }, FileTask::Write { path: "/tmp/".into(), contents: true }]
    {
        line(
            &mut l,
            &Request::Exec(ExecRequest {
                container: web(),
                args: vec![],
                user: None,
                env: vec![],
                cwd: None,
                terminal: None,
                stdin: true,
                timeout_ms: None,
                files: Some(files),
            }),
        );
    }
    line(&mut l, &Request::Logs);
    line(&mut l, &Request::Attach { container: web(), stdin: true });
    line(&mut l, &Request::Stats);
    line(&mut l, &Request::Events { since: 7 });
    line(&mut l, &Request::Clock { realtime_ns: 1_767_225_600_123_456_789 });
    line(&mut l, &Request::Shutdown { grace_ms: 30_000 });
    line(&mut l, &ForwardRequest::Forward { port: 8080 });
    line(&mut l, &Reply::Ok(Done {}));
    line(&mut l, &Reply::<Done>::Error(Refusal::new(RefusalCode::NotFound, "no container \"db\"")));
    let pod: PodId = "prod/shop".parse().expect("a pod id");
    let capabilities = vec!["ping".to_owned()];
    line(
        &mut l,
        &Reply::Ok(Hello { generation: 6, version: "0.1.0".into(), pod: Some(pod.clone()), capabilities }),
    );
    line(&mut l, &Reply::Ok(ClockSet { offset_ms: -30_012 }));
    line(&mut l, &Reply::Ok(ExecStarted { pid: 42 }));
    line(&mut l, &Reply::Ok(Attached { terminal: true }));
    line(
        &mut l,
        &Reply::Ok(Status {
            containers: vec![
                ContainerStatus {
                    name: web(),
                    role: Role::Sidecar,
                    restart_count: 2,
                    state: ContainerState::Running { started_ms: 1_767_225_600_123 },
                    started: true,
                    ready: true,
                    last: Some(Terminated::ended(ExitStatus::signaled(11), Some(7), 8)),
                },
                ContainerStatus {
                    name: web(),
                    role: Role::Main,
                    restart_count: 0,
                    state: ContainerState::Terminated(Terminated::ended(
                        ExitStatus { oom_killed: true, ..ExitStatus::signaled(9) },
                        Some(1),
                        2,
                    )),
                    started: false,
                    ready: false,
                    last: None,
                },
                ContainerStatus {
                    name: web(),
                    role: Role::Main,
                    restart_count: 1,
                    state: ContainerState::back_off(10_000),
                    started: false,
                    ready: false,
                    last: Some(Terminated::not_started("no such file", 3)),
                },
                ContainerStatus::waiting(web(), Role::Init, WaitingReason::PodInitializing),
            ],
            last_event: 9,
        }),
    );
    line(
        &mut l,
        &Reply::Ok(Stats {
            containers: vec![ContainerStats {
                name: web(),
                cpu_usec: 1,
                memory_bytes: 2,
                memory_peak_bytes: 3,
                memory_limit_bytes: Some(4),
                pids: 5,
            }],
            guest: GuestStats {
                uptime_ms: 1,
                memory_total_bytes: 2,
                memory_available_bytes: 3,
                init_pss_bytes: 4,
            },
        }),
    );
    for kind in [
        EventKind::ContainerCreated { container: web() },
        EventKind::ContainerStarted {
            container: web(),
            pid: 42,
            restart_count: 0,
            post_start: false,
            ready: true,
        },
        EventKind::ContainerStarted {
            container: web(),
            pid: 42,
            restart_count: 1,
            post_start: true,
            ready: false,
        },
        EventKind::ContainerCondition { container: web(), started: true, ready: false },
        EventKind::ProbeFailed {
            container: web(),
            probe: ProbeKind::Readiness,
            errored: true,
            message: "no answer".into(),
        },
        EventKind::HookFailed { container: web(), hook: HookKind::PreStop, message: "code 1".into() },
        EventKind::ContainerKilling { container: web(), reason: KillReason::Stop },
        EventKind::ContainerKilling {
            container: web(),
            reason: KillReason::Probe { probe: ProbeKind::Liveness, restarts: true },
        },
        EventKind::DeadlineExceeded,
        EventKind::ContainerExited {
            container: web(),
            exit: ExitStatus::exited(3),
            message: Some("no such table".into()),
            restart_in_ms: Some(10_000),
        },
        EventKind::ContainerExited {
            container: web(),
            exit: ExitStatus::exited(0),
            message: None,
            restart_in_ms: None,
        },
        EventKind::ContainerFailed {
            container: web(),
            message: "no such file".into(),
            program: Some(ProgramProblem::Missing),
            restart_in_ms: None,
        },
        EventKind::ExtensionFailed {
            extension: "service-directory".into(),
            message: "has panicked: x".into(),
        },
        EventKind::PodStarted,
        EventKind::PodFailed { message: "no plan".into(), killed: false },
        EventKind::PodFailed { message: "the spawner was killed by SIGKILL".into(), killed: true },
        EventKind::ShuttingDown,
        EventKind::PodEnded,
    ] {
        line(&mut l, &Event { seq: 1, kind });
    }
    line(&mut l, &StreamMessage::Exit(ExitStatus { timed_out: true, ..ExitStatus::signaled(9) }));
    line(&mut l, &StreamMessage::Dropped { channel: 1, bytes: 12 });
    line(&mut l, &StreamMessage::Run { container: 3, run: 7 });
    line(&mut l, &UrgentMessage::Resize(WindowSize { rows: 50, cols: 132 }));
    line(&mut l, &UrgentMessage::Signal { signal: 2 });
    line(&mut l, &frames());
    let plan = GuestPlan {
        generation: 7,
        pod,
        uid: "6f1f5d0e-7c5e-4a55-8a37-1f2f3f4f5f6f".into(),
        hostname: "shop".into(),
        restart_policy: RestartPolicy::OnFailure,
        process_namespace: ProcessNamespace::PerContainer,
        grace_ms: 30_000,
        deadline_ms: Some(600_000),
        containers: vec![ContainerPlan {
            name: web(),
            rootfs: Rootfs::Partition(2),
            layer: Layer::Disk { partition: 2 },
            user: "1000:1000".into(),
            image_groups: ImageGroups::Strict,
            privilege: Privilege::Privileged,
            file_variables: vec![FileVariable {
                name: "DB".into(),
                placeholder: "6f1f5d0e:0".into(),
                volume: 0,
                path: "config.env".into(),
                key: "DB_ADDRESS".into(),
                missing: Missing::Instead(Some("localhost".into())),
            }],
            stdio: Stdio::Pipes,
            stdin: Stdin::Closed,
            stop_signal: "SIGRTMIN+3".parse().unwrap(),
            mounts: vec![MountPlan {
                volume: 0,
                part: Part::Path("logs".into()),
                destination: "/var/log".into(),
                access: Access::ReadWrite,
            }],
            role: Role::Main,
            restarts: Restarts {
                policy: Some(RestartPolicy::Never),
                rules: vec![RestartRule::In(vec![3, 42])],
            },
            probes: Probes {
                startup: Some(probe(Handler::TcpSocket { host: None, port: 8080 })),
                liveness: Some(probe(Handler::Exec { command: vec!["/bin/true".into()] })),
                readiness: Some(probe(Handler::HttpGet {
                    scheme: Scheme::Https,
                    host: Some("127.0.0.1".into()),
                    port: 8443,
                    path: "/ready?deep=1".into(),
                    headers: vec![("Host".into(), "shop.example".into())],
                })),
            },
            hooks: Hooks {
                post_start: Some(Handler::Grpc { port: 9000, service: "shop".into() }),
                pre_stop: Some(Handler::Sleep { seconds: 5 }),
            },
            termination_message: TerminationMessage {
                path: "/dev/termination-log".into(),
                fallback: MessageFallback::Logs,
            },
            directory: DirectoryAccess::Socket,
            ports: vec![ListedPort { name: Some("http".into()), port: 8080, protocol: PortProtocol::Tcp }],
        }],
        volumes: vec![
            VolumePlan { source: VolumeSource::Disk { partition: 1 }, group: Some(2000) },
            VolumePlan { source: VolumeSource::Image { partition: 3 }, group: None },
            VolumePlan {
                source: VolumeSource::Lasting {
                    disk: "6f1f5d0e7c5e4a558a371f2f3f4f5f6f".into(),
                    regroup: Regroup::OnRootMismatch,
                },
                group: Some(2000),
            },
        ],
        network: Some(NetworkPlan {
            mac: MacAddress([2, 0, 0, 0, 0, 15]),
            mtu: 65_520,
            addresses: vec![InterfaceAddress { address: [10, 0, 2, 15].into(), prefix: 24 }],
            gateways: vec![Neighbour {
                address: [10, 0, 2, 2].into(),
                mac: Some(MacAddress([2, 0, 0, 0, 0, 2])),
            }],
            neighbours: Vec::new(),
        }),
        sysctls: vec![Sysctl { name: "net.core.somaxconn".into(), value: "512".into() }],
        given_address: None,
        limits: PodLimits { cpu_millis: Some(1500), memory_bytes: Some(64 << 20), ..PodLimits::default() },
    };
    assert_eq!(plan.check(), Ok(()));
    line(&mut l, &plan);

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wire.jsonl");
    let found = l.join("\n") + "\n";
    if std::env::var_os("MAGIKVM_BLESS").is_some() {
        std::fs::write(&file, &found).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(&file).expect("read the golden file");
    assert_eq!(found, golden, "the wire has changed");
}
