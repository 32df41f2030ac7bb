//! Probes and hooks of a container: their actions with ports resolved, and every default of Kubernetes.

use super::checks::Build;
use super::expand::expand;
use super::k8s;
use super::names;
use super::plan::ContainerPort;
use super::problem::quote;
use magikvm_proto::lifecycle::{
    Handler, Hooks, MAX_HANDLER_TEXT_LEN, MAX_HTTP_HEADERS, MAX_PROBE_SECS, ProbePlan, Probes, Role, Scheme,
};
use magikvm_proto::limits::{MAX_EXEC_ARG_LEN, MAX_EXEC_ARGS};
use magikvm_proto::raised;
use std::collections::HashMap;
use std::net::IpAddr;

/// A container whose probes and hooks are read.
pub(super) struct Owner<'a> {
    pub(super) at: &'a str,
    pub(super) role: Role,
    pub(super) written: &'a k8s::Container,
    pub(super) ports: &'a [ContainerPort],
    /// The pod's, in seconds.
    pub(super) grace: u64,
}

/// The actions of which a probe or hook has one, as written.
struct Actions<'a> {
    exec: Option<&'a k8s::Exec>,
    http_get: Option<&'a k8s::HttpGet>,
    tcp_socket: Option<&'a k8s::TcpSocket>,
    grpc: Option<&'a k8s::Grpc>,
    sleep: Option<&'a k8s::Sleep>,
    /// What its fields are called, for a message.
    names: &'static str,
    /// Values of the variables that are expanded in its command; `None`: nothing is expanded.
    known: Option<HashMap<String, String>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Startup,
    Liveness,
    Readiness,
}

impl Build<'_> {
    pub(super) fn probes(&mut self, owner: &Owner<'_>) -> Probes {
        let written = owner.written;
        if owner.role == Role::Init {
            for (field, is_set) in [
                ("startupProbe", written.startup_probe.is_some()),
                ("livenessProbe", written.liveness_probe.is_some()),
                ("readinessProbe", written.readiness_probe.is_some()),
                ("lifecycle", written.lifecycle.is_some()),
            ] {
                if is_set {
                    self.problem(
                        &format!("{}.{field}", owner.at),
                        "may not be set for an init container without `restartPolicy: Always`",
                        "",
                    );
                }
            }
            return Probes::default();
        }
        Probes {
            startup: self.probe(owner, "startupProbe", written.startup_probe.as_ref(), Purpose::Startup),
            liveness: self.probe(owner, "livenessProbe", written.liveness_probe.as_ref(), Purpose::Liveness),
            readiness: self.probe(
                owner,
                "readinessProbe",
                written.readiness_probe.as_ref(),
                Purpose::Readiness,
            ),
        }
    }

    pub(super) fn hooks(&mut self, owner: &Owner<'_>) -> Hooks {
        let Some(written) = owner.written.lifecycle.as_ref().filter(|_| owner.role != Role::Init) else {
            return Hooks::default();
        };
        Hooks {
            post_start: self.hook(owner, "postStart", written.post_start.as_ref()),
            pre_stop: self.hook(owner, "preStop", written.pre_stop.as_ref()),
        }
    }

    fn hook(&mut self, owner: &Owner<'_>, field: &str, written: Option<&k8s::Hook>) -> Option<Handler> {
        let written = written?;
        let actions = Actions {
            exec: written.exec.as_ref(),
            http_get: written.http_get.as_ref(),
            tcp_socket: None,
            grpc: None,
            sleep: written.sleep.as_ref(),
            names: "exec, httpGet and sleep",
            // The kubelet expands nothing in a hook.
            known: None,
        };
        self.handler(owner, &format!("{}.lifecycle.{field}", owner.at), &actions)
    }

    fn probe(
        &mut self,
        owner: &Owner<'_>,
        field: &str,
        written: Option<&k8s::Probe>,
        purpose: Purpose,
    ) -> Option<ProbePlan> {
        let written = written?;
        let at = format!("{}.{field}", owner.at);
        let path = |field: &str| format!("{at}.{field}");
        // As the kubelet does (`ExpandContainerCommandOnlyStatic`): values as they are written, and a `valueFrom` is empty.
        let known = owner.written.env.iter().filter_map(|variable| {
            Some((variable.name.clone()?, variable.value.clone().unwrap_or_default()))
        });
        let actions = Actions {
            exec: written.exec.as_ref(),
            http_get: written.http_get.as_ref(),
            tcp_socket: written.tcp_socket.as_ref(),
            grpc: written.grpc.as_ref(),
            sleep: None,
            names: "exec, httpGet, tcpSocket and grpc",
            known: Some(known.collect()),
        };
        let handler = self.handler(owner, &at, &actions);
        let initial_delay_secs = self.seconds(&path("initialDelaySeconds"), written.initial_delay_seconds, 0);
        let period_secs = self.seconds(&path("periodSeconds"), written.period_seconds, 10);
        let timeout_secs = self.seconds(&path("timeoutSeconds"), written.timeout_seconds, 1);
        let success_threshold = self.threshold(&path("successThreshold"), written.success_threshold, 1);
        let failure_threshold = self.threshold(&path("failureThreshold"), written.failure_threshold, 3);
        if purpose != Purpose::Readiness && success_threshold != 1 {
            let message = format!("must be 1, not {success_threshold}");
            self.problem(&path("successThreshold"), message, "only a readiness probe has another one");
        }
        let grace_secs = self.probe_grace(
            &path("terminationGracePeriodSeconds"),
            written.termination_grace_period_seconds,
            purpose,
        );
        Some(ProbePlan {
            handler: handler?,
            initial_delay_secs,
            period_secs,
            timeout_secs,
            success_threshold,
            failure_threshold,
            grace_secs,
        })
    }

    fn probe_grace(&mut self, path: &str, written: Option<i64>, purpose: Purpose) -> Option<u64> {
        let seconds = written?;
        if purpose == Purpose::Readiness {
            self.problem(path, "must not be set for a readiness probe", "its failure ends nothing");
            return None;
        }
        let max = raised::in_force().grace_secs;
        match u64::try_from(seconds) {
            Ok(found) if (1..=max).contains(&found) => Some(found),
            _ => {
                let hint = if seconds < 1 { String::new() } else { raised::remedy("grace-secs") };
                self.problem(path, format!("must be 1 to {max}, not {seconds}"), hint);
                None
            }
        }
    }

    /// A time. As in Kubernetes, 0 is the default.
    fn seconds(&mut self, path: &str, written: Option<i64>, default: u64) -> u64 {
        let Some(seconds) = written.filter(|&seconds| seconds != 0) else { return default };
        match u64::try_from(seconds) {
            Ok(found @ 1..=MAX_PROBE_SECS) => found,
            _ => {
                self.problem(path, format!("must be 0 to {MAX_PROBE_SECS}, not {seconds}"), "");
                default
            }
        }
    }

    /// A number of results. As in Kubernetes, 0 is the default.
    fn threshold(&mut self, path: &str, written: Option<i64>, default: u32) -> u32 {
        let Some(count) = written.filter(|&count| count != 0) else { return default };
        match i32::try_from(count).ok().and_then(|count| u32::try_from(count).ok()) {
            Some(found) => found,
            None => {
                self.problem(path, format!("must be 0 to {}, not {count}", i32::MAX), "");
                default
            }
        }
    }

    /// The one action of a probe or hook.
    fn handler(&mut self, owner: &Owner<'_>, at: &str, actions: &Actions<'_>) -> Option<Handler> {
        let set = [
            ("exec", actions.exec.is_some()),
            ("httpGet", actions.http_get.is_some()),
            ("tcpSocket", actions.tcp_socket.is_some()),
            ("grpc", actions.grpc.is_some()),
            ("sleep", actions.sleep.is_some()),
        ];
        let mut set = set.into_iter().filter_map(|(name, is_set)| is_set.then_some(name));
        let Some(first) = set.next() else {
            // One that was refused counts.
            if !self.report.is_about(at) {
                self.problem(at, format!("must have one of {}", actions.names), "");
            }
            return None;
        };
        for other in set {
            self.problem(&format!("{at}.{other}"), format!("can't be beside `{first}`"), "keep one of them");
        }
        let at = format!("{at}.{first}");
        if let Some(exec) = actions.exec {
            let command =
                self.handler_command(&format!("{at}.command"), &exec.command, actions.known.as_ref());
            return command.map(|command| Handler::Exec { command });
        }
        if let Some(http) = actions.http_get {
            return self.http_get(owner, &at, http);
        }
        if let Some(tcp) = actions.tcp_socket {
            let port = self.port(owner, &format!("{at}.port"), tcp.port.as_ref());
            let host = self.probe_host(&format!("{at}.host"), tcp.host.as_deref());
            return port.map(|port| Handler::TcpSocket { host, port });
        }
        if let Some(grpc) = actions.grpc {
            let number = grpc.port.map(k8s::PortReference::Number);
            let port = self.port(owner, &format!("{at}.port"), number.as_ref());
            let service = grpc.service.clone().unwrap_or_default();
            self.handler_text(&format!("{at}.service"), &service);
            return port.map(|port| Handler::Grpc { port, service });
        }
        let seconds = actions.sleep?.seconds;
        match u64::try_from(seconds) {
            Ok(seconds) if seconds <= owner.grace => Some(Handler::Sleep { seconds }),
            _ => {
                let message = format!("must be 0 to {}, not {seconds}", owner.grace);
                self.problem(
                    &format!("{at}.seconds"),
                    message,
                    "it is part of terminationGracePeriodSeconds",
                );
                None
            }
        }
    }

    fn handler_command(
        &mut self,
        path: &str,
        written: &[String],
        known: Option<&HashMap<String, String>>,
    ) -> Option<Vec<String>> {
        if written.is_empty() && !self.report.is_about(path) {
            let hint = "it is a program with its arguments, for example [sh, -c, 'test -e /ready']";
            self.problem(path, "must not be empty", hint);
        }
        self.count(path, written.len(), MAX_EXEC_ARGS);
        let mut command = Vec::new();
        for (index, text) in written.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let expanded = match known {
                Some(known) => expand(text, known).map_err(|error| error.to_string()),
                None => Ok(text.clone()),
            };
            let argument = expanded.and_then(|text| names::no_nul(&text).map(|()| text));
            match argument {
                Ok(text) if text.len() > MAX_EXEC_ARG_LEN => {
                    let message =
                        format!("is {} bytes long, at most {MAX_EXEC_ARG_LEN} are allowed", text.len());
                    self.problem(
                        &path,
                        message,
                        "put a longer script into a file, for example of a ConfigMap",
                    );
                }
                Ok(text) => command.push(text),
                Err(message) => self.problem(&path, message, ""),
            }
        }
        (!command.is_empty()).then_some(command)
    }

    fn http_get(&mut self, owner: &Owner<'_>, at: &str, written: &k8s::HttpGet) -> Option<Handler> {
        let path = |field: &str| format!("{at}.{field}");
        let port = self.port(owner, &path("port"), written.port.as_ref());
        let host = self.probe_host(&path("host"), written.host.as_deref());
        let target = written.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        self.handler_text(&path("path"), target);
        let schemes = [("HTTP", Scheme::Http), ("HTTPS", Scheme::Https)];
        let scheme = self.one_of(&path("scheme"), written.scheme.as_deref(), Scheme::Http, &schemes);
        self.count(&path("httpHeaders"), written.http_headers.len(), MAX_HTTP_HEADERS);
        let mut headers = Vec::new();
        for (index, header) in written.http_headers.iter().enumerate() {
            let at = format!("{at}.httpHeaders[{index}]");
            let Some(name) = self.required(&format!("{at}.name"), header.name.as_deref()) else { continue };
            let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if name.is_empty() || !name.chars().all(fine) {
                let message = format!("{} is not a header's name", quote(name));
                self.problem(&format!("{at}.name"), message, "it has letters, digits and '-'");
            }
            self.handler_text(&format!("{at}.name"), name);
            self.handler_text(&format!("{at}.value"), &header.value);
            headers.push((name.to_owned(), header.value.clone()));
        }
        Some(Handler::HttpGet { scheme, host, port: port?, path: target.to_owned(), headers })
    }

    /// Where a probe connects to, if not to the pod. Nothing in the pod resolves names for a probe.
    fn probe_host(&mut self, path: &str, written: Option<&str>) -> Option<String> {
        let host = written.filter(|host| !host.is_empty())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare.parse::<IpAddr>().is_err() && host != "localhost" {
            let message = format!("{} is not an IP address, and a probe resolves no names", quote(host));
            self.problem(
                path,
                message,
                "leave it out, and name a virtual host in the header `Host` in httpHeaders",
            );
        }
        Some(bare.to_owned())
    }

    /// A port by its number or by its name among the ports of the container.
    fn port(&mut self, owner: &Owner<'_>, path: &str, written: Option<&k8s::PortReference>) -> Option<u16> {
        match written {
            None => {
                self.required(path, None);
                None
            }
            Some(&k8s::PortReference::Number(number)) => {
                let port = u16::try_from(number).ok().filter(|&port| port != 0);
                if port.is_none() {
                    self.problem(path, format!("must be 1 to 65535, not {number}"), "");
                }
                port
            }
            Some(k8s::PortReference::Name(name)) => {
                let found = owner.ports.iter().find(|port| port.name.as_deref() == Some(name.as_str()));
                if found.is_none() {
                    let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
                    let hint = match digits {
                        true => "write a number without quotes".to_owned(),
                        false => {
                            let names = owner.ports.iter().filter_map(|port| port.name.as_deref());
                            super::fields::did_you_mean(name, names)
                        }
                    };
                    self.problem(
                        path,
                        format!("{} is not the name of a port of this container", quote(name)),
                        hint,
                    );
                }
                found.map(|port| port.container_port)
            }
        }
    }

    fn handler_text(&mut self, path: &str, text: &str) {
        if text.len() > MAX_HANDLER_TEXT_LEN {
            let message = format!("is {} bytes long, at most {MAX_HANDLER_TEXT_LEN} are allowed", text.len());
            self.problem(path, message, "");
        } else if text.chars().any(char::is_control) {
            self.problem(path, "contains a control character", "");
        }
    }
}
