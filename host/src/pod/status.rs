//! Shows a pod as Kubernetes does: the manifest with a core/v1 `status`.

use crate::manifest::fields::ANNOTATION_PORTS;
use crate::process::Layers;
use crate::store::lock::LockState;
use crate::store::record::{Found, PodRecord, PodState, Stage};
use crate::store::text::{chain, harmless};
use magikvm_proto::id::ContainerName;
use magikvm_proto::state::{ContainerState, ContainerStatus, Terminated, TerminatedReason, WaitingReason};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A pod's phase, including the phases that Kubernetes does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers run yet.
    Pending,
    Running,
    /// Processes of the VM are stopped (core/v1: phase Running, reason Paused, not ready).
    Paused,
    /// All containers ended with 0.
    Succeeded,
    /// Ended with at least one code other than 0, or broken.
    Failed,
    /// The monitor ended before the pod did (core/v1: phase Unknown, reason Lost).
    Lost,
    /// A file of the pod cannot be used (core/v1: phase Unknown, reason Damaged).
    Damaged,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Lost => "Lost",
            Self::Damaged => "Damaged",
        }
    }
}

pub fn phase(found: &Found) -> Phase {
    match &found.state {
        _ if !found.damage.is_empty() => Phase::Damaged,
        _ if found.is_lost() => Phase::Lost,
        Some(state) => phase_of(state),
        None => Phase::Pending,
    }
}

fn phase_of(state: &PodState) -> Phase {
    match state.stage {
        Stage::Pulling | Stage::Starting => Phase::Pending,
        Stage::Running if state.paused_ms.is_some() => Phase::Paused,
        Stage::Running | Stage::Stopping => Phase::Running,
        Stage::Ended if state.broken.is_none() && exit_code(state) == 0 => Phase::Succeeded,
        Stage::Ended => Phase::Failed,
    }
}

/// The pod's exit code: the first non-zero one of its containers, in their order; 125 if magikvm itself failed.
pub fn exit_code(state: &PodState) -> i32 {
    let codes =
        state.containers.iter().filter_map(|status| status.state.terminated()).map(|run| run.exit.code);
    let code = codes.into_iter().find(|&code| code != 0).unwrap_or(0);
    if code == 0 && state.broken.is_some() { 125 } else { code }
}

/// Why a pod is as it is, in one word: the reason of the first container that does not run as it should, or what ended the pod. With several
/// containers the reason names its container. `None` if there is nothing to explain.
pub fn reason(found: &Found) -> Option<String> {
    let state = found.state.as_ref()?;
    if let Some(broken) = &state.broken {
        return Some(broken.reason.to_string());
    }
    let word = |status: &ContainerStatus| match &status.state {
        // The wait for a restart tells less than the failure before it, but it is the word that people look for.
        ContainerState::Waiting { reason: WaitingReason::CrashLoopBackOff, .. } => {
            let last = status.last.as_ref().and_then(failed).map(|word| format!(": {word}"));
            Some(format!("CrashLoopBackOff{}", last.unwrap_or_default()))
        }
        ContainerState::Terminated(run) => failed(run),
        ContainerState::Waiting { .. } | ContainerState::Running { .. } => None,
    };
    // A container that ended well explains nothing, and one that waits tells more than one that has ended.
    let mut words: Vec<(&ContainerStatus, String)> =
        state.containers.iter().filter_map(|status| Some((status, word(status)?))).collect();
    words.sort_by_key(|(status, _)| status.state.terminated().is_some());
    let (status, word) = words.into_iter().next()?;
    Some(if state.containers.len() > 1 { format!("{}: {word}", status.name) } else { word })
}

/// The reason of a run that failed, with its exit code unless the reason is a code of its own.
fn failed(run: &Terminated) -> Option<String> {
    match run.reason {
        TerminatedReason::Completed => None,
        TerminatedReason::Error => Some(format!("Error ({})", run.exit.code)),
        reason => Some(reason.to_string()),
    }
}

/// The memory limit of a container as its manifest has it.
pub fn memory_limit(found: &Found, container: &ContainerName) -> Option<String> {
    let containers = found.record.as_ref()?.manifest.pointer("/spec/containers")?.as_array()?;
    let container = containers.iter().find(|one| one["name"] == container.as_str())?;
    match container.pointer("/resources/limits/memory")? {
        Value::String(limit) => Some(limit.clone()),
        Value::Number(limit) => Some(limit.to_string()),
        _ => None,
    }
}

/// The core/v1 Pod with its status. Without a record, only its name and phase are known.
pub fn kubernetes(found: &Found) -> Value {
    let Some(record) = &found.record else {
        let name = found.name();
        let (namespace, name) = name.split_once('/').unwrap_or(("", &name));
        return json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace },
            "status": outline(found),
        });
    };
    let mut pod = record.manifest.clone();
    let metadata = json!({
        "name": record.id.name,
        "namespace": record.id.namespace,
        "uid": record.uid,
        "creationTimestamp": time(record.created_ms),
    });
    if let (Some(target), Value::Object(fields)) =
        (pod.get_mut("metadata").and_then(Value::as_object_mut), metadata)
    {
        target.extend(fields);
    }
    show_ports(&mut pod, found);
    add_annotations(&mut pod, found);
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("runtimeClassName".to_owned(), Value::String(record.runtime_class.clone()));
    }
    let status = status(found, record);
    if let Some(pod) = pod.as_object_mut() {
        pod.insert("status".to_owned(), status);
    }
    pod
}

/// The host ports that the pod has: the manifest lacks those of `--publish`, and port 0 means any free one.
fn show_ports(pod: &mut Value, found: &Found) {
    let ports = found.state.as_ref().map(|state| state.ports.as_slice()).unwrap_or_default();
    let annotations = &mut pod["metadata"]["annotations"];
    if let Some(annotations) = annotations.as_object_mut() {
        // The annotation describes the pod whose output of `inspect` this manifest was made from.
        annotations.remove(ANNOTATION_PORTS);
    }
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        annotations[ANNOTATION_PORTS] = json!(ports.join(","));
    } else if annotations.is_null()
        && let Some(metadata) = pod["metadata"].as_object_mut()
    {
        metadata.remove("annotations");
    }
}

/// Adds the annotations of the pod's run to those of its author.
fn add_annotations(pod: &mut Value, found: &Found) {
    let Some(state) = found.state.as_ref().filter(|state| !state.annotations.is_empty()) else { return };
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if let Value::Object(annotations) = metadata.entry("annotations").or_insert_with(|| json!({})) {
        annotations.extend(state.annotations.iter().map(|(name, value)| (name.clone(), json!(value))));
    }
}

/// The annotation with the isolation layers of each process of a pod's VM: those that it has, and those that it lacks with the reason.
pub use crate::manifest::fields::ANNOTATION_JAIL as JAIL_ANNOTATION;

/// [`JAIL_ANNOTATION`] and its value for these processes.
pub fn jail_annotation(layers: &[(String, Layers)]) -> Option<(String, String)> {
    let all: BTreeMap<&str, &Layers> = layers.iter().map(|(name, layers)| (name.as_str(), layers)).collect();
    let text = (!all.is_empty()).then(|| serde_json::to_string(&all).ok())??;
    Some((JAIL_ANNOTATION.to_owned(), text))
}

/// The phase, and its reason if it is one that Kubernetes does not have.
fn outline(found: &Found) -> Value {
    let phase = phase(found);
    let mut status = json!({ "phase": match phase {
        Phase::Lost | Phase::Damaged => "Unknown",
        Phase::Paused => Phase::Running.as_str(),
        phase => phase.as_str(),
    } });
    let name = found.name();
    let explanation = match (phase, found.damage.first()) {
        (Phase::Damaged, Some(damage)) => {
            let why = harmless(&chain(&**damage), &[]);
            format!("{why}; `magikvm rm -f {name}` removes the pod")
        }
        (Phase::Lost, _) => {
            "the pod's monitor ended before the pod did; `magikvm rm` removes what is left".to_owned()
        }
        _ => return status,
    };
    status["reason"] = json!(phase.as_str());
    status["message"] = json!(explanation);
    status
}

fn status(found: &Found, record: &PodRecord) -> Value {
    let phase = phase(found);
    let lost = matches!(phase, Phase::Lost | Phase::Damaged);
    let mut status = outline(found);
    let state = found.state.as_ref();
    let fields = &mut status;
    if lost {
        // The outline says why.
    } else if phase == Phase::Paused {
        fields["reason"] = json!("Paused");
        let since = time(state.and_then(|state| state.paused_ms).unwrap_or_default());
        fields["message"] = json!(format!("paused since {since}; `magikvm resume {}` resumes it", record.id));
    } else if let Some(broken) = state.and_then(|state| state.broken.as_ref()) {
        fields["reason"] = json!(broken.reason);
        fields["message"] = json!(broken.message);
    }
    if let Some(started) = state.and_then(|state| state.started_ms) {
        fields["startTime"] = json!(time(started));
    }
    if let Some(address) = state.and_then(|state| state.host_ip) {
        fields["hostIP"] = json!(address);
        fields["hostIPs"] = json!([{ "ip": address }]);
    }
    let addresses = state.map(|state| state.pod_ips.as_slice()).unwrap_or_default();
    if let Some(first) = addresses.first() {
        let all: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        (fields["podIP"], fields["podIPs"]) = (json!(first), json!(all));
    }
    let running = phase == Phase::Running && found.lock == LockState::Held;
    let views = state.map(|state| state.containers.as_slice()).unwrap_or_default();
    let all_ready = running && views.iter().all(|view| matches!(view.state, ContainerState::Running { .. }));
    let condition = |kind: &str, holds: bool| {
        let mut condition = json!({ "type": kind, "status": if holds { "True" } else { "False" } });
        if phase == Phase::Paused && !holds {
            condition["reason"] = json!("Paused");
        }
        condition
    };
    let started = state.is_some_and(|state| state.started_ms.is_some());
    fields["conditions"] = json!([
        condition("PodScheduled", true),
        condition("Initialized", started),
        condition("ContainersReady", all_ready),
        condition("Ready", all_ready),
    ]);
    fields["containerStatuses"] = views
        .iter()
        .zip(&record.containers)
        .map(|(view, container)| container_status(view, &container.image, &container.image_id, phase))
        .collect();
    status
}

fn container_status(view: &ContainerStatus, image: &str, image_id: &str, phase: Phase) -> Value {
    let running = matches!(view.state, ContainerState::Running { .. })
        && phase != Phase::Lost
        && phase != Phase::Damaged;
    let state = match &view.state {
        ContainerState::Waiting { reason, message } => {
            let mut waiting = json!({ "reason": reason });
            if let Some(message) = message {
                waiting["message"] = json!(message);
            }
            json!({ "waiting": waiting })
        }
        ContainerState::Running { started_ms } => json!({ "running": { "startedAt": time(*started_ms) } }),
        ContainerState::Terminated(run) => json!({ "terminated": terminated(run) }),
    };
    json!({
        "name": view.name,
        "image": image,
        "imageID": image_id,
        "ready": running && phase != Phase::Paused,
        "started": running,
        "restartCount": view.restart_count,
        "state": state,
        "lastState": view.last.as_ref().map_or(json!({}), |run| json!({ "terminated": terminated(run) })),
    })
}

fn terminated(run: &Terminated) -> Value {
    let mut value = json!({
        "exitCode": run.exit.code,
        "reason": run.reason,
        "finishedAt": time(run.finished_ms),
    });
    if let Some(signal) = run.exit.signal {
        value["signal"] = json!(signal);
    }
    if let Some(message) = &run.message {
        value["message"] = json!(message);
    }
    if let Some(started) = run.started_ms {
        value["startedAt"] = json!(time(started));
    }
    value
}

/// RFC 3339 in whole seconds, as `metav1.Time`.
fn time(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_second(ms / 1000).ok())
        .unwrap_or_default()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::step::Machine;
    use crate::store::layout::PodDir;
    use crate::store::record::Broken;
    use crate::store::sandbox::SandboxFailure;
    use magikvm_proto::wire::ExitStatus;

    fn found(states: &[ContainerState]) -> Found {
        let names: Vec<ContainerName> = (0..states.len()).map(|n| format!("c{n}").parse().unwrap()).collect();
        let mut state = Machine::new(&names, 1).state;
        state.stage = Stage::Running;
        for (status, wanted) in state.containers.iter_mut().zip(states) {
            status.state = wanted.clone();
        }
        let dir = PodDir::at("/nowhere".into());
        Found { dir, record: None, state: Some(state), lock: LockState::Held, damage: Vec::new() }
    }

    fn over(exit: ExitStatus) -> ContainerState {
        ContainerState::Terminated(Terminated::ended(exit, Some(1), 2))
    }

    #[test]
    fn the_reason_is_that_of_the_container_that_needs_attention() {
        let oom = ExitStatus { oom_killed: true, ..ExitStatus::signaled(9) };
        let running = ContainerState::Running { started_ms: 1 };
        let of = |states: &[ContainerState]| reason(&found(states));
        assert_eq!(of(std::slice::from_ref(&running)), None);
        assert_eq!(of(&[over(ExitStatus::exited(0))]), None);
        assert_eq!(of(&[ContainerState::creating()]), None);
        assert_eq!(of(&[over(ExitStatus::exited(3))]).unwrap(), "Error (3)");
        assert_eq!(of(&[over(oom)]).unwrap(), "OOMKilled");
        assert_eq!(of(&[ContainerState::back_off(1000)]).unwrap(), "CrashLoopBackOff");
        let several = [running, over(ExitStatus::exited(3)), ContainerState::back_off(1000)];
        assert_eq!(of(&several).unwrap(), "c2: CrashLoopBackOff");
        let mut crashing = found(&[ContainerState::back_off(1000)]);
        crashing.state.as_mut().unwrap().containers[0].last = Some(Terminated::ended(oom, Some(1), 2));
        assert_eq!(reason(&crashing).unwrap(), "CrashLoopBackOff: OOMKilled");
        let broken = Broken { reason: SandboxFailure::VmmKilled, message: "x".to_owned() };
        crashing.state.as_mut().unwrap().broken = Some(broken);
        assert_eq!(reason(&crashing).unwrap(), "VmmKilled");
    }
}
