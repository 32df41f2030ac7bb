//! Shows a pod as Kubernetes does: the manifest with a core/v1 `status`.

use crate::manifest::fields::{ANNOTATION_NAMESPACES, ANNOTATION_PORTS};
use crate::process::Layers;
use crate::store::lock::LockState;
use crate::store::record::{
    Condition, Conditions, ContainerRecord, DiskFull, Found, PodRecord, PodState, Stage,
};
use crate::store::sandbox::SandboxFailure;
use crate::store::text::{chain, harmless};
use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::state::{ContainerState, ContainerStatus, Terminated, TerminatedReason, WaitingReason};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A pod's phase, including the phases that Kubernetes does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers run yet.
    Pending,
    Running,
    /// Processes of the pod are stopped (core/v1: phase Running, reason Paused, not ready).
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
        Stage::Ended if exit_code(state) == 0 => Phase::Succeeded,
        Stage::Ended => Phase::Failed,
    }
}

/// The pod's exit code: the first non-zero one of its main containers, in their order; 125 if magikvm itself failed, or if the pod failed
/// although they did not.
pub fn exit_code(state: &PodState) -> i32 {
    let main = state.containers.iter().filter(|status| status.role == Role::Main);
    let code = main.filter_map(|status| status.state.terminated()).map(|run| run.exit.code);
    let code = code.into_iter().find(|&code| code != 0).unwrap_or(0);
    if code == 0 && (state.broken.is_some() || state.failed.is_some()) { 125 } else { code }
}

/// How many containers are ready, and of how many: the main containers and the sidecars, as in kubectl.
pub fn readiness(found: &Found) -> (usize, usize) {
    let live =
        !matches!(phase(found), Phase::Lost | Phase::Damaged | Phase::Paused) && disk_full(found).is_none();
    let views = found.state.as_ref().map(|state| state.containers.as_slice()).unwrap_or_default();
    let ready = views.iter().filter(|view| live && view.role != Role::Init && view.ready).count();
    let counted = |record: &PodRecord| {
        record.containers.iter().filter(|container| container.role != Role::Init).count()
    };
    (ready, found.record.as_ref().map_or(views.len(), counted))
}

/// The phase in the words of kubectl's column STATUS, which tells more of a pod that starts or ends.
pub fn word(found: &Found) -> String {
    let phase = phase(found);
    let ends = found.state.as_ref().is_some_and(|state| state.stage == Stage::Stopping);
    if phase == Phase::Running && ends {
        return "Terminating".to_owned();
    }
    initializing(found).unwrap_or_else(|| phase.as_str().to_owned())
}

/// What the start of a pod with init containers waits for, as kubectl shows it: `Init:0/2`, `Init:CrashLoopBackOff`, `PodInitializing`.
/// `None` for any other pod.
fn initializing(found: &Found) -> Option<String> {
    let state = found.state.as_ref().filter(|_| phase(found) == Phase::Pending)?;
    let before: Vec<&ContainerStatus> =
        state.containers.iter().filter(|status| status.role != Role::Main).collect();
    for (index, status) in before.iter().enumerate() {
        let through = match status.role {
            Role::Sidecar => status.started,
            Role::Init | Role::Main => status.state.terminated().is_some_and(|run| run.exit.code == 0),
        };
        if through {
            continue;
        }
        return Some(match &status.state {
            ContainerState::Terminated(run) => format!("Init:{}", run.reason),
            ContainerState::Waiting { reason, .. } if *reason != WaitingReason::PodInitializing => {
                format!("Init:{reason}")
            }
            ContainerState::Waiting { .. } | ContainerState::Running { .. } => {
                format!("Init:{index}/{}", before.len())
            }
        });
    }
    (!before.is_empty()).then(|| WaitingReason::PodInitializing.to_string())
}

/// Why the VM of a live pod stands still although nobody has paused it.
fn disk_full(found: &Found) -> Option<&DiskFull> {
    let lives = found.lock == LockState::Held;
    found.state.as_ref().filter(|_| lives).and_then(|state| state.disk_full.as_ref())
}

/// The name of that reason.
const DISK_FULL: SandboxFailure = SandboxFailure::HostDiskFull;

/// Why a pod is as it is, in one word: the reason of the first container that does not run as it should, or what ended the pod. With several
/// containers the reason names its container. `None` if there is nothing to explain.
pub fn reason(found: &Found) -> Option<String> {
    let state = found.state.as_ref()?;
    if disk_full(found).is_some() {
        return Some(DISK_FULL.to_string());
    }
    if let Some(broken) = &state.broken {
        return Some(broken.reason.to_string());
    }
    if let Some(failed) = state.failed {
        return Some(format!("{failed:?}"));
    }
    let word = |status: &ContainerStatus| match &status.state {
        // The wait for a restart tells less than the failure before it, but it is the word that people look for.
        ContainerState::Waiting { reason: WaitingReason::CrashLoopBackOff, .. } => {
            let last = status.last.as_ref().and_then(failed).map(|word| format!(": {word}"));
            Some(format!("CrashLoopBackOff{}", last.unwrap_or_default()))
        }
        // Sidecars are ended with the pod, however they take it.
        ContainerState::Terminated(run) if status.role != Role::Sidecar => failed(run),
        ContainerState::Terminated(_) | ContainerState::Waiting { .. } | ContainerState::Running { .. } => {
            None
        }
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
    let spec = found.record.as_ref()?.manifest.get("spec")?;
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| spec.get(list)?.as_array());
    let container = lists.flatten().find(|one| one["name"] == container.as_str())?;
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

/// Adds the annotations of the pod's run to those of its author, and its namespaces.
fn add_annotations(pod: &mut Value, found: &Found) {
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let of_run = found.state.iter().flat_map(|state| &state.annotations);
    let mut added: Vec<(String, String)> =
        of_run.map(|(name, value)| (name.clone(), value.clone())).collect();
    let namespaces = found.namespaces().and_then(|paths| serde_json::to_string(&paths).ok());
    added.extend(namespaces.map(|paths| (ANNOTATION_NAMESPACES.to_owned(), paths)));
    // Those of the pod whose output of `inspect` the manifest was made from.
    if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.remove(ANNOTATION_NAMESPACES);
    }
    if added.is_empty() {
        return;
    }
    if let Value::Object(annotations) = metadata.entry("annotations").or_insert_with(|| json!({})) {
        annotations.extend(added.into_iter().map(|(name, value)| (name, json!(value))));
    }
}

/// The annotation with the isolation layers of each process of a pod's sandbox: those that it has, and those that it lacks with the reason.
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
    } else if let Some(DiskFull { since_ms, dir }) = disk_full(found) {
        fields["reason"] = json!(DISK_FULL);
        let (dir, since) = (dir.display(), time(*since_ms));
        fields["message"] = json!(format!(
            "the host's disk with {dir} has been full since {since}; the VM stands still and goes on by itself when there is room"
        ));
    } else if let Some(broken) = state.and_then(|state| state.broken.as_ref()) {
        fields["reason"] = json!(broken.reason);
        fields["message"] = json!(broken.message);
    } else if let Some(failed) = state.and_then(|state| state.failed) {
        fields["reason"] = json!(failed);
        fields["message"] = json!(failed.message());
    }
    fields["startTime"] = json!(time(record.created_ms));
    if let Some(address) = state.and_then(|state| state.host_ip) {
        fields["hostIP"] = json!(address);
        fields["hostIPs"] = json!([{ "ip": address }]);
    }
    let addresses = state.map(|state| state.pod_ips.as_slice()).unwrap_or_default();
    if let Some(first) = addresses.first() {
        let all: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        (fields["podIP"], fields["podIPs"]) = (json!(first), json!(all));
    }
    fields["qosClass"] = json!(crate::manifest::qos_of(&record.manifest));
    if let Some(resources) = record.manifest.pointer("/spec/resources") {
        fields["resources"] = resources.clone();
    }
    fields["conditions"] = conditions(found, phase);
    let views = state.map(|state| state.containers.as_slice()).unwrap_or_default();
    let statuses = |wanted: fn(Role) -> bool| -> Value {
        let all = views.iter().zip(&record.containers).filter(|(view, _)| wanted(view.role));
        all.map(|(view, container)| container_status(view, container, record, phase)).collect()
    };
    if views.iter().any(|view| view.role != Role::Main) {
        fields["initContainerStatuses"] = statuses(|role| role != Role::Main);
    }
    fields["containerStatuses"] = statuses(|role| role == Role::Main);
    status
}

/// The conditions of a pod, with reasons as the kubelet words them.
fn conditions(found: &Found, phase: Phase) -> Value {
    let Some(state) = &found.state else { return json!([]) };
    let lives = phase == Phase::Running && found.lock == LockState::Held && disk_full(found).is_none();
    let unless = |wanted: fn(&ContainerStatus) -> bool| -> Vec<&str> {
        let left = state.containers.iter().filter(|status| wanted(status));
        left.map(|status| status.name.as_str()).collect()
    };
    let incomplete = || {
        unless(|status| match status.role {
            Role::Init => !status.ready,
            Role::Sidecar => !status.started,
            Role::Main => false,
        })
    };
    let unready = || unless(|status| status.role != Role::Init && !status.ready);
    let why = |kind: &str| match (kind, phase) {
        (_, Phase::Paused) => Some(("Paused", None)),
        ("Ready" | "ContainersReady", _) if disk_full(found).is_some() => Some(("HostDiskFull", None)),
        ("Initialized", _) => Some(("ContainersNotInitialized", Some(("incomplete", incomplete())))),
        ("Ready" | "ContainersReady", Phase::Succeeded) => Some(("PodCompleted", None)),
        ("Ready" | "ContainersReady", Phase::Failed) => Some(("PodFailed", None)),
        ("Ready" | "ContainersReady", _) => Some(("ContainersNotReady", Some(("unready", unready())))),
        _ => None,
    };
    let condition = |kind: &str, condition: Condition, holds: bool| {
        let mut value = json!({ "type": kind, "status": if holds { "True" } else { "False" } });
        // A pod that stopped to be watched or is paused is not what its monitor wrote.
        let since = match (phase, condition.holds == holds) {
            (Phase::Paused, false) => state.paused_ms,
            (_, false) if state.disk_full.is_some() => state.disk_full.as_ref().map(|full| full.since_ms),
            (_, true) => Some(condition.since_ms).filter(|since| *since != 0),
            (_, false) => None,
        };
        if let Some(since) = since {
            value["lastTransitionTime"] = json!(time(since));
        }
        if let Some((reason, message)) = why(kind).filter(|_| !holds) {
            value["reason"] = json!(reason);
            if let Some((what, names)) = message.filter(|(_, names)| !names.is_empty()) {
                value["message"] = json!(format!("containers with {what} status: [{}]", names.join(" ")));
            }
        }
        value
    };
    let Conditions { scheduled, sandbox_ready, initialized, containers_ready, ready } = &state.conditions;
    json!([
        condition(
            "PodReadyToStartContainers",
            *sandbox_ready,
            sandbox_ready.holds && found.lock == LockState::Held
        ),
        condition("Initialized", *initialized, initialized.holds),
        condition("Ready", *ready, ready.holds && lives),
        condition("ContainersReady", *containers_ready, containers_ready.holds && lives),
        condition("PodScheduled", *scheduled, true),
    ])
}

fn container_status(
    view: &ContainerStatus,
    container: &ContainerRecord,
    record: &PodRecord,
    phase: Phase,
) -> Value {
    let known = phase != Phase::Lost && phase != Phase::Damaged;
    let id = |run: u32| format!("magikvm://{}/{}/{run}", record.uid, view.name);
    let terminated = |run: &Terminated| {
        let mut value = terminated(run);
        value["containerID"] = json!(id(run.run));
        value
    };
    let state = match &view.state {
        ContainerState::Waiting { reason, message } => {
            let mut waiting = json!({ "reason": reason });
            if let Some(message) = message {
                waiting["message"] = match reason {
                    WaitingReason::CrashLoopBackOff => {
                        json!(format!("{message}={} pod={}", view.name, record.kubelet_name()))
                    }
                    _ => json!(message),
                };
            }
            json!({ "waiting": waiting })
        }
        // The pod's processes end with the monitor.
        ContainerState::Running { started_ms } if phase == Phase::Lost => json!({ "terminated": {
            "reason": TerminatedReason::ContainerStatusUnknown,
            "message": "the pod's monitor has ended, and the pod's processes with it",
            "exitCode": 137,
            "startedAt": time(*started_ms),
        } }),
        ContainerState::Running { started_ms } => json!({ "running": { "startedAt": time(*started_ms) } }),
        ContainerState::Terminated(run) => json!({ "terminated": terminated(run) }),
    };
    let mut status = json!({
        "name": view.name,
        "image": container.image,
        "imageID": container.image_id,
        "ready": view.ready && known && phase != Phase::Paused,
        "started": view.started && known,
        "restartCount": view.restart_count,
        "state": state,
        "lastState": view.last.as_ref().map_or(json!({}), |run| json!({ "terminated": terminated(run) })),
    });
    let list = if view.role == Role::Main { "containers" } else { "initContainers" };
    // The run at hand, or the one before while the next one does not run.
    let present = match &view.state {
        ContainerState::Waiting { .. } => view.last.as_ref().map(|run| run.run),
        ContainerState::Running { .. } => Some(view.restart_count),
        ContainerState::Terminated(run) => Some(run.run),
    };
    if let Some(run) = present {
        status["containerID"] = json!(id(run));
    }
    let written = record.manifest.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
    let written = written.and_then(|all| all.iter().find(|one| one["name"] == view.name.as_str()));
    if let Some(resources) = written.and_then(|one| one.get("resources")) {
        status["resources"] = resources.clone();
        if let Some(requests) = resources.get("requests") {
            status["allocatedResources"] = requests.clone();
        }
    }
    status
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
pub fn time(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_second(ms / 1000).ok())
        .unwrap_or_default()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::step::{Machine, StartWaits};
    use crate::store::layout::PodDir;
    use crate::store::record::Broken;
    use magikvm_proto::wire::ExitStatus;

    fn found(states: &[ContainerState]) -> Found {
        let names: Vec<ContainerName> = (0..states.len()).map(|n| format!("c{n}").parse().unwrap()).collect();
        let waits = StartWaits { first_boot_ms: 1, ready_ms: 1 };
        let mut state = Machine::new(names.into_iter().map(|name| (name, Role::Main)), waits, 0).state;
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
