//! From the bytes of a request to the bytes of its answer. Owns: the interface that containers see (docs/extensions.md). The requests are
//! hostile: a head has at most [`MAX_HEAD`] bytes and [`MAX_HEADERS`] headers, and no body. Must not know: sockets.

use magikvm_proto::lifecycle::Role;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::service_directory::{ListedPort, PortProtocol};
use magikvm_proto::state::{ContainerState, ContainerStatus};
use serde::Serialize;
use std::net::IpAddr;

/// Most bytes of a request's head.
pub(crate) const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;

/// What is told of the pod.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    name: String,
    namespace: String,
    uid: String,
    hostname: String,
    addresses: Vec<IpAddr>,
    /// In the plan's order.
    containers: Vec<Container>,
}

#[derive(Debug)]
struct Container {
    name: String,
    role: Role,
    ports: Vec<ListedPort>,
    /// Nothing is known before the first update.
    status: Option<ContainerStatus>,
}

impl Pod {
    pub(crate) fn of(plan: &GuestPlan) -> Self {
        let containers = plan.containers.iter().map(|container| Container {
            name: container.name.to_string(),
            role: container.role,
            ports: container.ports.clone(),
            status: None,
        });
        let addresses = plan.network.iter().flat_map(|network| &network.addresses);
        Self {
            name: plan.pod.name.to_string(),
            namespace: plan.pod.namespace.to_string(),
            uid: plan.uid.clone(),
            hostname: plan.hostname.clone(),
            addresses: addresses.map(|one| one.address).collect(),
            containers: containers.collect(),
        }
    }

    /// Takes the present states, which are in the plan's order.
    pub(crate) fn update(&mut self, states: &[ContainerStatus]) {
        for (container, state) in self.containers.iter_mut().zip(states) {
            container.status = Some(state.clone());
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodDocument<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
    hostname: &'a str,
    addresses: &'a [IpAddr],
    /// Every main container and sidecar is ready, as in the condition `ContainersReady`.
    ready: bool,
    containers: Vec<&'a str>,
}

#[derive(Serialize)]
struct ListDocument<'a> {
    containers: Vec<ContainerDocument<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerDocument<'a> {
    name: &'a str,
    role: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    started: bool,
    ready: bool,
    restart_count: u32,
    ports: Vec<PortDocument<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PortDocument<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    container_port: u16,
    protocol: PortProtocol,
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    code: u16,
    message: &'a str,
}

impl Pod {
    fn document(&self) -> PodDocument<'_> {
        let counted = self.containers.iter().filter(|container| container.role != Role::Init);
        PodDocument {
            name: &self.name,
            namespace: &self.namespace,
            uid: &self.uid,
            hostname: &self.hostname,
            addresses: &self.addresses,
            ready: counted.map(|one| &one.status).all(|status| status.as_ref().is_some_and(|one| one.ready)),
            containers: self.containers.iter().map(|container| container.name.as_str()).collect(),
        }
    }
}

impl Container {
    fn document(&self) -> ContainerDocument<'_> {
        let (state, reason, exit_code) = match self.status.as_ref().map(|status| &status.state) {
            None => ("waiting", None, None),
            Some(ContainerState::Waiting { reason, .. }) => ("waiting", Some(reason.to_string()), None),
            Some(ContainerState::Running { .. }) => ("running", None, None),
            Some(ContainerState::Terminated(run)) => {
                ("terminated", Some(run.reason.to_string()), Some(run.exit.code))
            }
        };
        ContainerDocument {
            name: &self.name,
            role: match self.role {
                Role::Init => "init",
                Role::Sidecar => "sidecar",
                Role::Main => "main",
            },
            state,
            reason,
            exit_code,
            started: self.status.as_ref().is_some_and(|status| status.started),
            ready: self.status.as_ref().is_some_and(|status| status.ready),
            restart_count: self.status.as_ref().map_or(0, |status| status.restart_count),
            ports: self.ports.iter().map(port_document).collect(),
        }
    }
}

fn port_document(port: &ListedPort) -> PortDocument<'_> {
    PortDocument { name: port.name.as_deref(), container_port: port.port, protocol: port.protocol }
}

/// A status line and a JSON body.
struct Answer {
    status: &'static str,
    body: Vec<u8>,
    /// One more header line.
    header: &'static str,
}

impl Answer {
    fn ok(document: &impl Serialize) -> Self {
        match serde_json::to_vec(document) {
            Ok(body) => Self { status: "200 OK", body, header: "" },
            Err(_) => Self::error(500, "500 Internal Server Error", "the answer cannot be written"),
        }
    }

    fn error(code: u16, status: &'static str, message: &str) -> Self {
        let body = serde_json::to_vec(&ErrorDocument { code, message }).unwrap_or_default();
        Self { status, body, header: "" }
    }

    fn bytes(mut self) -> Vec<u8> {
        self.body.push(b'\n');
        let (status, header, length) = (self.status, self.header, self.body.len());
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{header}Connection: close\r\n\r\n"
        );
        [head.into_bytes(), self.body].concat()
    }
}

/// The whole answer to a request, once the request's head is complete or cannot become a request any more.
pub(crate) fn respond(request: &[u8], pod: &Pod) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let large =
        || Answer::error(431, "431 Request Header Fields Too Large", "the head of the request is too large");
    let answer = match parsed.parse(request) {
        Ok(httparse::Status::Partial) if request.len() < MAX_HEAD => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => large(),
        Err(_) => Answer::error(400, "400 Bad Request", "this is not an HTTP/1.1 request"),
        Ok(httparse::Status::Complete(_)) => answer(&parsed, pod),
    };
    Some(answer.bytes())
}

fn answer(request: &httparse::Request<'_, '_>, pod: &Pod) -> Answer {
    if request.headers.iter().any(announces_body) {
        return Answer::error(413, "413 Content Too Large", "a request has no body");
    }
    let path = request.path.unwrap_or_default();
    let is_get = request.method == Some("GET");
    let found = match path {
        "/v1/pod" => Some(Answer::ok(&pod.document())),
        "/v1/containers" => Some(Answer::ok(&ListDocument {
            containers: pod.containers.iter().map(Container::document).collect(),
        })),
        _ => path.strip_prefix("/v1/containers/").and_then(|name| {
            pod.containers.iter().find(|one| one.name == name).map(|one| Answer::ok(&one.document()))
        }),
    };
    match found {
        None => Answer::error(
            404,
            "404 Not Found",
            "there is /v1/pod, /v1/containers, and /v1/containers/NAME for each container of the pod",
        ),
        Some(_) if !is_get => {
            let refused =
                Answer::error(405, "405 Method Not Allowed", "the service directory can only be read");
            Answer { header: "Allow: GET\r\n", ..refused }
        }
        Some(answer) => answer,
    }
}

fn announces_body(header: &httparse::Header<'_>) -> bool {
    let is = |name: &str| header.name.eq_ignore_ascii_case(name);
    is("transfer-encoding") || is("content-length") && header.value.trim_ascii() != b"0"
}
