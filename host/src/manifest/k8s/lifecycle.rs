//! Restarts, probes and hooks of a container as written.

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct RestartRule {
    /// Only `Restart` is accepted.
    pub(in crate::manifest) action: Option<String>,
    pub(in crate::manifest) exit_codes: Option<ExitCodes>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct ExitCodes {
    pub(in crate::manifest) operator: Option<String>,
    pub(in crate::manifest) values: Vec<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct Probe {
    pub(in crate::manifest) exec: Option<Exec>,
    pub(in crate::manifest) http_get: Option<HttpGet>,
    pub(in crate::manifest) tcp_socket: Option<TcpSocket>,
    pub(in crate::manifest) grpc: Option<Grpc>,
    pub(in crate::manifest) initial_delay_seconds: Option<i64>,
    pub(in crate::manifest) period_seconds: Option<i64>,
    pub(in crate::manifest) timeout_seconds: Option<i64>,
    pub(in crate::manifest) success_threshold: Option<i64>,
    pub(in crate::manifest) failure_threshold: Option<i64>,
    pub(in crate::manifest) termination_grace_period_seconds: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct Lifecycle {
    pub(in crate::manifest) post_start: Option<Hook>,
    pub(in crate::manifest) pre_stop: Option<Hook>,
    pub(in crate::manifest) stop_signal: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct Hook {
    pub(in crate::manifest) exec: Option<Exec>,
    pub(in crate::manifest) http_get: Option<HttpGet>,
    pub(in crate::manifest) sleep: Option<Sleep>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct Exec {
    pub(in crate::manifest) command: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct HttpGet {
    pub(in crate::manifest) host: Option<String>,
    pub(in crate::manifest) http_headers: Vec<HttpHeader>,
    pub(in crate::manifest) path: Option<String>,
    pub(in crate::manifest) port: Option<PortReference>,
    pub(in crate::manifest) scheme: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct HttpHeader {
    pub(in crate::manifest) name: Option<String>,
    pub(in crate::manifest) value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct TcpSocket {
    pub(in crate::manifest) host: Option<String>,
    pub(in crate::manifest) port: Option<PortReference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct Grpc {
    pub(in crate::manifest) port: Option<i64>,
    pub(in crate::manifest) service: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct Sleep {
    pub(in crate::manifest) seconds: i64,
}

/// A port by its number, or by the name that the container's `ports` give it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(in crate::manifest) enum PortReference {
    Number(i64),
    Name(String),
}
