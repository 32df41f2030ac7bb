//! What surrounds a container's run: its role in the pod's start and stop, its restarts, its probes and hooks, and where it
//! leaves its last words. Part of the plan. Owns: their limits. Must not know: how they are carried out.

use crate::limits::{MAX_EXEC_ARG_LEN, MAX_EXEC_ARGS};
use crate::plan::RestartPolicy;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most HTTP headers of one handler, restart rules of one container, and exit codes of one rule.
pub const MAX_HTTP_HEADERS: usize = 64;
pub const MAX_RESTART_RULES: usize = 20;
pub const MAX_RULE_EXIT_CODES: usize = 255;
/// Most bytes of a handler's host, path, service, or of the name or value of a header.
pub const MAX_HANDLER_TEXT_LEN: usize = 4096;
/// Longest period, delay, timeout or grace period of a probe, in seconds. Kubernetes has no bound; a day is one that no clock overflows.
pub const MAX_PROBE_SECS: u64 = 86_400;
/// Most bytes of a probe's output that are kept (as the kubelet).
pub const MAX_PROBE_OUTPUT: usize = 10 << 10;
/// Most bytes of a termination message, and of all of one pod (core/v1 `terminationMessagePath`).
pub const MAX_TERMINATION_MESSAGE: usize = 4096;
/// Most bytes and lines of the log that replace a missing termination message (`FallbackToLogsOnError`).
pub const MAX_TERMINATION_LOG: (usize, usize) = (2048, 80);

/// When a container runs in the life of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Before the main containers, to its end, one after the other (core/v1 `PodSpec.initContainers`).
    Init,
    /// Started in the order of the init containers, and kept beside the main containers until they have ended: an init container
    /// with `restartPolicy: Always`.
    Sidecar,
    #[default]
    Main,
}

impl Role {
    /// For `skip_serializing_if`.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    pub(crate) fn is_main(&self) -> bool {
        *self == Self::Main
    }
}

/// How a container restarts (core/v1 `Container.restartPolicy` and `restartPolicyRules`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restarts {
    /// Instead of the pod's policy. A sidecar always has `Always`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// The first rule that names the exit code restarts the container, whatever the policy says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RestartRule>,
}

/// Exit codes with which a container restarts (core/v1 `ContainerRestartRule` with the action `Restart`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartRule {
    /// These.
    In(Vec<i32>),
    /// All others.
    NotIn(Vec<i32>),
}

impl RestartRule {
    pub fn matches(&self, exit_code: i32) -> bool {
        match self {
            Self::In(codes) => codes.contains(&exit_code),
            Self::NotIn(codes) => !codes.contains(&exit_code),
        }
    }
}

/// An action of a probe or a hook (core/v1 `ProbeHandler`, `LifecycleHandler`). Ports are resolved, variables expanded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Handler {
    /// A program in the container, without a shell. Success is exit code 0.
    Exec { command: Vec<String> },
    /// An HTTP GET. Success is a status from 200 to 399.
    HttpGet {
        scheme: Scheme,
        /// The host to connect to: an IP address or `localhost`. When absent, the pod's first address, or loopback in a pod without a
        /// network.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        port: u16,
        path: String,
        /// Names and values, in the order written.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<(String, String)>,
    },
    /// A TCP connection. Success is that it is accepted.
    TcpSocket {
        /// As with `HttpGet`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        port: u16,
    },
    /// A call of `grpc.health.v1.Health/Check`. Success is `SERVING`.
    Grpc { port: u16, service: String },
    /// Waiting; for hooks only.
    Sleep { seconds: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    #[default]
    Http,
    /// Without verification of the certificate.
    Https,
}

/// A probe (core/v1 `Probe`), with every default applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbePlan {
    pub handler: Handler,
    /// From the start of the container to the first probe.
    pub initial_delay_secs: u64,
    /// From one probe to the next, at least 1.
    pub period_secs: u64,
    /// Most time of one probe, at least 1.
    pub timeout_secs: u64,
    /// Successes in a row after a failure that count as success, at least 1.
    pub success_threshold: u32,
    /// Failures in a row that count as failure, at least 1.
    pub failure_threshold: u32,
    /// Grace period of the container when this probe ends it, instead of the pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_secs: Option<u64>,
}

/// The probes of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    /// Until it has succeeded, the others do not run; its failure ends the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<ProbePlan>,
    /// Its failure ends the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<ProbePlan>,
    /// Decides whether the container is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ProbePlan>,
}

/// The probes that a container may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        })
    }
}

impl Probes {
    /// The probe of this kind, if the container has it.
    pub fn get(&self, kind: ProbeKind) -> Option<&ProbePlan> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }
}

/// The hooks that a container may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    PostStart,
    PreStop,
}

/// The hooks of a container (core/v1 `Lifecycle`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Right after its start. The container does not count as running before the hook has ended, and ends if the hook fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_start: Option<Handler>,
    /// Before its stop signal, within the grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Handler>,
}

impl Hooks {
    /// The hook of this kind, if the container has it.
    pub fn get(&self, kind: HookKind) -> Option<&Handler> {
        match kind {
            HookKind::PostStart => self.post_start.as_ref(),
            HookKind::PreStop => self.pre_stop.as_ref(),
        }
    }
}

/// Where a container leaves the message of its end (core/v1 `Container.terminationMessagePath` and `terminationMessagePolicy`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminationMessage {
    /// Absolute, in the container.
    pub path: String,
    pub fallback: MessageFallback,
}

/// What is the message of a container that failed and left none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageFallback {
    /// `File`.
    #[default]
    Nothing,
    /// `FallbackToLogsOnError`: the end of its log.
    Logs,
}

impl Default for TerminationMessage {
    fn default() -> Self {
        Self { path: "/dev/termination-log".to_owned(), fallback: MessageFallback::Nothing }
    }
}

/// What of a container's lifecycle can't be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LifecycleError {
    #[error("a sidecar restarts always, and has no other policy and no rules")]
    SidecarPolicy,
    #[error("an init container has neither probes nor hooks")]
    InitProbes,
    #[error(
        "there are more than {MAX_RESTART_RULES} restart rules, or more than {MAX_RULE_EXIT_CODES} exit codes in one"
    )]
    Rules,
    #[error(
        "a program of a probe or hook has no argument, more than {MAX_EXEC_ARGS}, or one of more than {MAX_EXEC_ARG_LEN} bytes or with NUL"
    )]
    Command,
    #[error(
        "a text of a probe or hook is longer than {MAX_HANDLER_TEXT_LEN} bytes or contains a control character"
    )]
    Text,
    #[error("a probe or hook has port 0")]
    Port,
    #[error("a probe or hook has more than {MAX_HTTP_HEADERS} HTTP headers")]
    Headers,
    #[error("a probe sleeps; only hooks can")]
    Sleep,
    #[error("a time of a probe or hook is longer than {MAX_PROBE_SECS} s, or zero where it may not be")]
    Time,
    #[error(
        "a threshold of a probe is zero, or the success threshold of a startup or liveness probe is not 1"
    )]
    Threshold,
    #[error(
        "the path of the termination message is not absolute, has more than {MAX_HANDLER_TEXT_LEN} bytes, or contains `..` or NUL"
    )]
    MessagePath,
}

impl Handler {
    fn check(&self) -> Result<(), LifecycleError> {
        let text = |text: &str| {
            let fine = text.len() <= MAX_HANDLER_TEXT_LEN && !text.chars().any(char::is_control);
            fine.then_some(()).ok_or(LifecycleError::Text)
        };
        let port = |port: u16| if port == 0 { Err(LifecycleError::Port) } else { Ok(()) };
        match self {
            Self::Exec { command } => {
                let fine = |arg: &String| arg.len() <= MAX_EXEC_ARG_LEN && !arg.contains('\0');
                let fine = (1..=MAX_EXEC_ARGS).contains(&command.len()) && command.iter().all(fine);
                fine.then_some(()).ok_or(LifecycleError::Command)
            }
            Self::HttpGet { host, port: number, path, headers, scheme: _ } => {
                port(*number)?;
                text(host.as_deref().unwrap_or_default())?;
                text(path)?;
                if headers.len() > MAX_HTTP_HEADERS {
                    return Err(LifecycleError::Headers);
                }
                headers.iter().try_for_each(|(name, value)| text(name).and_then(|()| text(value)))
            }
            Self::TcpSocket { host, port: number } => {
                port(*number)?;
                text(host.as_deref().unwrap_or_default())
            }
            Self::Grpc { port: number, service } => {
                port(*number)?;
                text(service)
            }
            Self::Sleep { seconds } if *seconds > MAX_PROBE_SECS => Err(LifecycleError::Time),
            Self::Sleep { .. } => Ok(()),
        }
    }
}

impl ProbePlan {
    fn check(&self) -> Result<(), LifecycleError> {
        if matches!(self.handler, Handler::Sleep { .. }) {
            return Err(LifecycleError::Sleep);
        }
        let positive = 1..=MAX_PROBE_SECS;
        let times = positive.contains(&self.period_secs)
            && positive.contains(&self.timeout_secs)
            && self.initial_delay_secs <= MAX_PROBE_SECS
            && self.grace_secs.is_none_or(|grace| grace <= MAX_PROBE_SECS);
        if !times {
            return Err(LifecycleError::Time);
        }
        if self.success_threshold == 0 || self.failure_threshold == 0 {
            return Err(LifecycleError::Threshold);
        }
        self.handler.check()
    }
}

/// Checks what the types can't express of one container.
pub(crate) fn check(
    role: Role,
    restarts: &Restarts,
    probes: &Probes,
    hooks: &Hooks,
    message: &TerminationMessage,
) -> Result<(), LifecycleError> {
    let all_probes = [&probes.startup, &probes.liveness, &probes.readiness];
    let handlers = [&hooks.post_start, &hooks.pre_stop];
    match role {
        Role::Sidecar if *restarts != Restarts::default() => return Err(LifecycleError::SidecarPolicy),
        Role::Init
            if all_probes.iter().any(|one| one.is_some()) || handlers.iter().any(|one| one.is_some()) =>
        {
            return Err(LifecycleError::InitProbes);
        }
        Role::Sidecar | Role::Init | Role::Main => {}
    }
    let codes = |rule: &RestartRule| match rule {
        RestartRule::In(codes) | RestartRule::NotIn(codes) => codes.len(),
    };
    if restarts.rules.len() > MAX_RESTART_RULES
        || restarts.rules.iter().any(|rule| codes(rule) > MAX_RULE_EXIT_CODES)
    {
        return Err(LifecycleError::Rules);
    }
    all_probes.into_iter().flatten().try_for_each(ProbePlan::check)?;
    let once = |probe: &Option<ProbePlan>| probe.as_ref().is_none_or(|probe| probe.success_threshold == 1);
    if !once(&probes.startup) || !once(&probes.liveness) {
        return Err(LifecycleError::Threshold);
    }
    handlers.into_iter().flatten().try_for_each(Handler::check)?;
    let path = std::path::Path::new(&message.path);
    if message.path.len() > MAX_HANDLER_TEXT_LEN || !crate::plan::is_plain(path) {
        return Err(LifecycleError::MessagePath);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(handler: Handler) -> ProbePlan {
        ProbePlan {
            handler,
            initial_delay_secs: 0,
            period_secs: 10,
            timeout_secs: 1,
            success_threshold: 1,
            failure_threshold: 3,
            grace_secs: None,
        }
    }

    fn checked(role: Role, probes: &Probes) -> Result<(), LifecycleError> {
        check(role, &Restarts::default(), probes, &Hooks::default(), &TerminationMessage::default())
    }

    #[test]
    fn probes_have_bounds() {
        let exec =
            |command: &[&str]| Handler::Exec { command: command.iter().map(|&arg| arg.to_owned()).collect() };
        let liveness = |probe: ProbePlan| Probes { liveness: Some(probe), ..Probes::default() };
        assert_eq!(checked(Role::Main, &liveness(probe(exec(&["true"])))), Ok(()));
        assert_eq!(checked(Role::Init, &liveness(probe(exec(&["true"])))), Err(LifecycleError::InitProbes));
        assert_eq!(checked(Role::Main, &liveness(probe(exec(&[])))), Err(LifecycleError::Command));
        let sleep = probe(Handler::Sleep { seconds: 1 });
        assert_eq!(checked(Role::Main, &liveness(sleep)), Err(LifecycleError::Sleep));
        let twice = ProbePlan { success_threshold: 2, ..probe(exec(&["true"])) };
        assert_eq!(checked(Role::Main, &liveness(twice.clone())), Err(LifecycleError::Threshold));
        let readiness = Probes { readiness: Some(twice), ..Probes::default() };
        assert_eq!(checked(Role::Main, &readiness), Ok(()));
        let idle = ProbePlan { period_secs: 0, ..probe(exec(&["true"])) };
        assert_eq!(checked(Role::Main, &liveness(idle)), Err(LifecycleError::Time));
        let split = Handler::HttpGet {
            scheme: Scheme::Http,
            host: None,
            port: 80,
            path: "/\r\nHost: other".to_owned(),
            headers: Vec::new(),
        };
        assert_eq!(checked(Role::Main, &liveness(probe(split))), Err(LifecycleError::Text));
    }

    #[test]
    fn rules_name_exit_codes() {
        assert!(RestartRule::In(vec![3, 4]).matches(4));
        assert!(!RestartRule::In(vec![3, 4]).matches(5));
        assert!(RestartRule::NotIn(vec![3]).matches(4));
        assert!(!RestartRule::NotIn(vec![3]).matches(3));
    }
}
