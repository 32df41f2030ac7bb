//! What surrounds a container's run: its role, its restarts, how it is stopped, and the message of its end.

use super::checks::Build;
use super::k8s;
use super::names;
use super::problem::quote;
use magikvm_proto::lifecycle::{
    MAX_HANDLER_TEXT_LEN, MAX_RESTART_RULES, MAX_RULE_EXIT_CODES, MessageFallback, RestartRule, Restarts,
    Role, TerminationMessage,
};
use magikvm_proto::plan::RestartPolicy;
use magikvm_proto::signal::Signal;

/// The values of a restart policy.
pub(super) const POLICIES: [(&str, RestartPolicy); 3] = [
    ("Always", RestartPolicy::Always),
    ("OnFailure", RestartPolicy::OnFailure),
    ("Never", RestartPolicy::Never),
];

/// The two lists of containers of a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Init,
    Main,
}

impl List {
    /// The path of one of its containers.
    pub(super) fn at(self, index: usize) -> String {
        match self {
            Self::Init => format!("spec.initContainers[{index}]"),
            Self::Main => format!("spec.containers[{index}]"),
        }
    }

    /// What a container of this list is.
    pub(super) fn role(self, written: &k8s::Container) -> Role {
        match self {
            Self::Main => Role::Main,
            Self::Init if written.restart_policy.as_deref() == Some("Always") => Role::Sidecar,
            Self::Init => Role::Init,
        }
    }
}

impl Build<'_> {
    /// `activeDeadlineSeconds`.
    pub(super) fn deadline(&mut self, spec: &k8s::Spec) -> Option<u64> {
        let seconds = spec.active_deadline_seconds?;
        match u64::try_from(seconds) {
            Ok(found @ 1..) if i32::try_from(seconds).is_ok() => Some(found),
            _ => {
                let message = format!("must be 1 to {}, not {seconds}", i32::MAX);
                self.problem("spec.activeDeadlineSeconds", message, "");
                None
            }
        }
    }

    pub(super) fn restarts(&mut self, at: &str, role: Role, written: &k8s::Container) -> Restarts {
        let path = format!("{at}.restartPolicy");
        let policies = POLICIES.map(|(name, policy)| (name, Some(policy)));
        let policy = self.one_of(&path, written.restart_policy.as_deref(), None, &policies);
        let rules_path = format!("{at}.restartPolicyRules");
        let rules = &written.restart_policy_rules;
        if role == Role::Sidecar {
            if !rules.is_empty() {
                let hint =
                    "leave it out: a sidecar (`restartPolicy: Always`) restarts whatever its exit code is";
                self.problem(&rules_path, "may not be set for a sidecar", hint);
            }
            return Restarts::default();
        }
        if !rules.is_empty() && written.restart_policy.as_deref().unwrap_or_default().is_empty() {
            self.problem(&path, "is missing", "it decides when no rule of restartPolicyRules matches");
        }
        self.count(&rules_path, rules.len(), MAX_RESTART_RULES);
        let rules = rules.iter().enumerate();
        let rules =
            rules.filter_map(|(index, rule)| self.restart_rule(&format!("{rules_path}[{index}]"), rule));
        Restarts { policy, rules: rules.collect() }
    }

    fn restart_rule(&mut self, at: &str, rule: &k8s::RestartRule) -> Option<RestartRule> {
        self.required(&format!("{at}.action"), rule.action.as_deref());
        let at = format!("{at}.exitCodes");
        let Some(written) = &rule.exit_codes else {
            self.required(&at, None);
            return None;
        };
        let path = format!("{at}.operator");
        let operator = self.required(&path, written.operator.as_deref());
        let make: Option<fn(Vec<i32>) -> RestartRule> = self.one_of(
            &path,
            operator,
            None,
            &[("In", Some(RestartRule::In)), ("NotIn", Some(RestartRule::NotIn))],
        );
        let path = format!("{at}.values");
        self.count(&path, written.values.len(), MAX_RULE_EXIT_CODES);
        let mut codes = Vec::new();
        for (index, &code) in written.values.iter().enumerate() {
            match i32::try_from(code) {
                Ok(code) => codes.push(code),
                Err(_) => {
                    self.problem(&format!("{path}[{index}]"), format!("{code} is not an exit code"), "")
                }
            }
        }
        Some(make?(codes))
    }

    /// `lifecycle.stopSignal`.
    pub(super) fn stop_signal(&mut self, at: &str, written: &k8s::Container) -> Option<Signal> {
        let text = written.lifecycle.as_ref()?.stop_signal.as_deref()?;
        let path = format!("{at}.lifecycle.stopSignal");
        if !self.written.has("spec.os.name") {
            self.problem(&path, "may not be set without `spec.os.name`", "write `os: {name: linux}` in spec");
        }
        match text.parse::<Signal>() {
            Ok(signal) if text.starts_with("SIG") => Some(signal),
            found => {
                let hint = match found {
                    Ok(_) if text.starts_with(|c: char| c.is_ascii_uppercase()) => format!("write SIG{text}"),
                    _ => "write a name like SIGTERM or SIGRTMIN+3".to_owned(),
                };
                self.problem(&path, format!("{} is not the name of a signal", quote(text)), hint);
                None
            }
        }
    }

    pub(super) fn termination_message(&mut self, at: &str, written: &k8s::Container) -> TerminationMessage {
        let default = TerminationMessage::default();
        let path = match written.termination_message_path.as_deref().filter(|path| !path.is_empty()) {
            None => default.path,
            Some(text) => {
                let at = format!("{at}.terminationMessagePath");
                self.check(&at, names::absolute_path(text));
                if text.split('/').any(|part| part == "..") {
                    self.problem(&at, "must not contain `..`", "");
                }
                if text.len() > MAX_HANDLER_TEXT_LEN {
                    let message =
                        format!("is {} bytes long, at most {MAX_HANDLER_TEXT_LEN} are allowed", text.len());
                    self.problem(&at, message, "");
                }
                text.to_owned()
            }
        };
        let fallback = self.one_of(
            &format!("{at}.terminationMessagePolicy"),
            written.termination_message_policy.as_deref(),
            default.fallback,
            &[("File", MessageFallback::Nothing), ("FallbackToLogsOnError", MessageFallback::Logs)],
        );
        TerminationMessage { path, fallback }
    }
}
