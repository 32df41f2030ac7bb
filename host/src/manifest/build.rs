//! From the Pod as written to the plan: validation beyond single values, and defaults.

use super::checks::Build;
use super::fields::{ANNOTATION_NESTED, ANNOTATION_PREFIX, ANNOTATIONS};
use super::k8s::{self, Written};
use super::names;
use super::objects::Objects;
use super::plan::{
    CapabilityList, ContainerPort, ContainerSpec, Nested, PodPlan, PrivilegeEscalation, Protocol, PullPolicy,
    RootFilesystem, RootUser, RuntimeClass, Security,
};
use super::problem::{ProblemCollector, path_key, quote};
use super::volumes;
use crate::image::Reference;
use crate::store::text::chain;
use magikvm_proto::id::{ContainerName, Namespace, PodId, PodName};
use magikvm_proto::limits::{
    DEFAULT_GRACE_PERIOD_SECS, MAX_ANNOTATIONS_PER_POD, MAX_CONTAINERS_PER_POD, MAX_LABELS_PER_POD,
};
use magikvm_proto::plan::{ProcessNamespace, RestartPolicy, Stdin, Stdio};
use magikvm_proto::raised;
use oci_spec::runtime::Capability;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Bytes of all annotations of a pod together, as in Kubernetes.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// Largest user or group id (core/v1).
const MAX_ID: i64 = i32::MAX as i64;
/// Most additional groups of a container.
const MAX_GROUPS: usize = 64;
/// Longest host name derived from a pod's name (the kubelet's rule).
const MAX_HOSTNAME_LEN: usize = 63;

/// Builds the plan. `None` only after a problem was reported; problems may also be reported beside `Some`.
pub(super) fn build(written: &Written, objects: &Objects, report: &mut ProblemCollector) -> Option<PodPlan> {
    let (metadata, spec) = (&written.pod.metadata, &written.pod.spec);
    let mut build = Build { written, objects, report };
    let id = build.id(metadata);
    build.labels(&metadata.labels);
    build.annotations(&metadata.annotations);
    let runtime_class = build.runtime_class(spec);
    let restart_policy = build.one_of(
        "spec.restartPolicy",
        spec.restart_policy.as_deref(),
        RestartPolicy::Always,
        &[
            ("Always", RestartPolicy::Always),
            ("OnFailure", RestartPolicy::OnFailure),
            ("Never", RestartPolicy::Never),
        ],
    );
    let grace_seconds = build.grace(spec);
    let (volumes, known) = build.volumes();
    let (volume_group, further_groups) = build.groups(spec);
    let sysctls = build.sysctls();
    let containers: Vec<Option<ContainerSpec>> = spec
        .containers
        .iter()
        .enumerate()
        .map(|(index, container)| build.container(index, container, &known))
        .collect();
    build.container_names(&spec.containers);
    let containers: Option<Vec<ContainerSpec>> = containers.into_iter().collect();
    let nested = build.nested(&metadata.annotations);
    let network = super::network::network(written, build.report);
    let id = id?;
    objects.check_namespace(&id.namespace, build.report);
    let hostname = build.hostname(spec, &id.name)?;
    let containers = containers?;
    let vm = build.vm_size(&metadata.annotations, &containers)?;
    let logs = build.log_options(&metadata.annotations);
    let root = build.root_place(&metadata.annotations);
    let disk_limit_bytes = build.pod_disk_limit(&spec.resources, &containers, &volumes);
    let published = super::ports::published(written, report);
    Some(PodPlan {
        id,
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        logs,
        hostname,
        runtime_class,
        restart_policy,
        process_namespace: match spec.share_process_namespace {
            true => ProcessNamespace::Pod,
            false => ProcessNamespace::PerContainer,
        },
        grace_seconds,
        vm,
        root,
        disk_limit_bytes,
        containers,
        published,
        volumes,
        volume_group,
        further_groups,
        sysctls,
        network,
        nested,
        manifest: written.json.clone(),
    })
}

impl Build<'_> {
    fn id(&mut self, metadata: &k8s::Metadata) -> Option<PodId> {
        if metadata.name.is_none()
            && !self.written.has("metadata.name")
            && self.written.has("metadata.generateName")
        {
            let message = "is missing, and no name is made of generateName";
            self.problem("metadata.name", message, "write `name`: a pod is known by it");
            return None;
        }
        let name = self.required("metadata.name", metadata.name.as_deref());
        let name = name.and_then(|name| self.parsed::<PodName>("metadata.name", name));
        let namespace = match metadata.namespace.as_deref() {
            None | Some("") => Some(Namespace::default()),
            Some(namespace) => self.parsed("metadata.namespace", namespace),
        };
        Some(PodId { namespace: namespace?, name: name? })
    }

    fn labels(&mut self, labels: &BTreeMap<String, String>) {
        self.count("metadata.labels", labels.len(), MAX_LABELS_PER_POD);
        for (key, value) in labels {
            let path = format!("metadata.labels.{}", path_key(key));
            self.check(
                &path,
                names::qualified_name(key).map_err(|error| format!("is not a label key: {error}")),
            );
            self.check(&path, names::label_value(value));
        }
    }

    fn annotations(&mut self, annotations: &BTreeMap<String, String>) {
        self.count("metadata.annotations", annotations.len(), MAX_ANNOTATIONS_PER_POD);
        let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_ANNOTATION_BYTES {
            let message = format!("are {bytes} bytes together, at most {MAX_ANNOTATION_BYTES} are allowed");
            self.problem("metadata.annotations", message, "");
        }
        for key in annotations.keys() {
            let path = format!("metadata.annotations.{}", path_key(key));
            // Kubernetes tolerates capitals here.
            let lower = key.to_ascii_lowercase();
            self.check(
                &path,
                names::qualified_name(&lower).map_err(|error| format!("is not an annotation key: {error}")),
            );
            let known = ANNOTATIONS.iter().any(|(name, _)| name == key);
            if lower.starts_with(ANNOTATION_PREFIX) && !known {
                let names: Vec<&str> = ANNOTATIONS.iter().map(|(name, _)| *name).collect();
                self.problem(
                    &path,
                    "is not an annotation of magikvm",
                    format!("known are {}", names.join(", ")),
                );
            }
        }
    }

    fn nested(&mut self, annotations: &BTreeMap<String, String>) -> Nested {
        let Some(text) = annotations.get(ANNOTATION_NESTED) else { return Nested::Masked };
        let path = format!("metadata.annotations.{ANNOTATION_NESTED}");
        let table = [("true", Nested::Exposed), ("false", Nested::Masked)];
        self.one_of(&path, Some(text), Nested::Masked, &table)
    }

    fn runtime_class(&mut self, spec: &k8s::Spec) -> RuntimeClass {
        let table = RuntimeClass::ALL.map(|class| (class.as_str(), class));
        let name = spec.runtime_class_name.as_deref();
        self.one_of("spec.runtimeClassName", name, RuntimeClass::default(), &table)
    }

    fn grace(&mut self, spec: &k8s::Spec) -> u64 {
        let Some(seconds) = spec.termination_grace_period_seconds else { return DEFAULT_GRACE_PERIOD_SECS };
        let max = raised::in_force().grace_secs;
        match u64::try_from(seconds).ok().filter(|&seconds| seconds <= max) {
            Some(seconds) => seconds,
            None => {
                let message = format!("must be 0 to {max}, not {seconds}");
                let hint = if seconds < 0 { String::new() } else { raised::remedy("grace-secs") };
                self.problem("spec.terminationGracePeriodSeconds", message, hint);
                DEFAULT_GRACE_PERIOD_SECS
            }
        }
    }

    fn hostname(&mut self, spec: &k8s::Spec, name: &PodName) -> Option<String> {
        let Some(hostname) = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty()) else {
            let cut = name.as_str().get(..MAX_HOSTNAME_LEN).unwrap_or(name.as_str());
            return Some(cut.trim_end_matches(['-', '.']).to_owned());
        };
        match names::hostname(hostname) {
            Ok(()) => Some(hostname.to_owned()),
            Err(message) => {
                self.problem("spec.hostname", format!("{} {message}", quote(hostname)), "");
                None
            }
        }
    }

    fn container_names(&mut self, containers: &[k8s::Container]) {
        if containers.is_empty() && !self.written.has("spec.containers") {
            self.problem("spec.containers", "is missing", "a Pod has 1 to 16 containers");
        } else if containers.is_empty() || containers.len() > MAX_CONTAINERS_PER_POD {
            let message =
                format!("has {} entries, 1 to {MAX_CONTAINERS_PER_POD} are allowed", containers.len());
            self.problem("spec.containers", message, "");
        }
        let mut seen = HashMap::new();
        for (index, container) in containers.iter().enumerate() {
            let Some(name) = container.name.as_deref() else { continue };
            if let Some(first) = seen.insert(name, index) {
                let message = format!("{} is also the name of spec.containers[{first}]", quote(name));
                self.problem(
                    &format!("spec.containers[{index}].name"),
                    message,
                    "names are unique within a pod",
                );
            }
        }
    }

    fn container(
        &mut self,
        index: usize,
        written: &k8s::Container,
        volumes: &volumes::Known,
    ) -> Option<ContainerSpec> {
        let at = format!("spec.containers[{index}]");
        let path = |field: &str| format!("{at}.{field}");
        let name = self.required(&path("name"), written.name.as_deref());
        let name = name.and_then(|name| self.parsed::<ContainerName>(&path("name"), name));
        let image = self.required(&path("image"), written.image.as_deref());
        let reference = image.and_then(|image| self.reference(&path("image"), image));
        let pull_policy = self.pull_policy(&path("imagePullPolicy"), written, reference.as_ref());
        self.arguments(&path("command"), &written.command);
        self.arguments(&path("args"), &written.args);
        if written.command.first().is_some_and(String::is_empty) {
            self.problem(&path("command[0]"), "must not be empty", "it is the program to run");
        }
        let working_dir = written.working_dir.as_deref().filter(|dir| !dir.is_empty());
        if let Some(dir) = working_dir {
            self.check(&path("workingDir"), names::absolute_path(dir));
        }
        let env = self.env(&at, written);
        let mounts = self.mounts(&at, &written.volume_mounts, volumes, &env);
        let resources = self.resources(&path("resources"), &written.resources);
        let ports = self.ports(&path("ports"), &written.ports);
        let security = self.security(&path("securityContext"), &written.security_context);
        Some(ContainerSpec {
            name: name?,
            image: reference?,
            image_text: image?.to_owned(),
            pull_policy,
            command: written.command.clone(),
            args: written.args.clone(),
            env,
            working_dir: working_dir.map(str::to_owned),
            resources,
            ports,
            security,
            stdio: if written.tty { Stdio::Terminal } else { Stdio::Pipes },
            stdin: match (written.stdin, written.stdin_once) {
                (false, _) => Stdin::Closed,
                (true, false) => Stdin::Open,
                (true, true) => Stdin::Once,
            },
            mounts,
        })
    }

    fn reference(&mut self, path: &str, text: &str) -> Option<Reference> {
        let wrong = match text.parse::<Reference>() {
            Ok(reference) => return Some(reference),
            Err(error) => error,
        };
        self.problem(path, chain(&wrong), "a reference looks like registry.example/team/app:1.0");
        None
    }

    fn pull_policy(&mut self, path: &str, written: &k8s::Container, image: Option<&Reference>) -> PullPolicy {
        let default = match image {
            Some(image) if !image.is_latest() => PullPolicy::IfNotPresent,
            Some(_) | None => PullPolicy::Always,
        };
        let table = [
            ("Always", PullPolicy::Always),
            ("IfNotPresent", PullPolicy::IfNotPresent),
            ("Never", PullPolicy::Never),
        ];
        self.one_of(path, written.image_pull_policy.as_deref(), default, &table)
    }

    fn arguments(&mut self, path: &str, arguments: &[String]) {
        for (index, argument) in arguments.iter().enumerate() {
            self.check(&format!("{path}[{index}]"), names::no_nul(argument));
        }
    }

    fn ports(&mut self, path: &str, written: &[k8s::Port]) -> Vec<ContainerPort> {
        let mut ports = Vec::new();
        let mut seen = HashSet::new();
        for (index, port) in written.iter().enumerate() {
            let at = format!("{path}[{index}]");
            let (number_path, name_path) = (format!("{at}.containerPort"), format!("{at}.name"));
            let protocol = self.one_of(
                &format!("{at}.protocol"),
                port.protocol.as_deref(),
                Protocol::Tcp,
                &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)],
            );
            let name = port.name.as_deref().filter(|name| !name.is_empty());
            if let Some(name) = name {
                self.check(
                    &name_path,
                    names::port_name(name).map_err(|error| format!("{} {error}", quote(name))),
                );
                if !seen.insert(name) {
                    self.problem(
                        &name_path,
                        format!("{} names another port of this container too", quote(name)),
                        "",
                    );
                }
            }
            let Some(number) = port.container_port else {
                self.required(&number_path, None);
                continue;
            };
            match u16::try_from(number).ok().filter(|&number| number != 0) {
                Some(container_port) => {
                    ports.push(ContainerPort { name: name.map(str::to_owned), container_port, protocol })
                }
                None => self.problem(&number_path, format!("must be 1 to 65535, not {number}"), ""),
            }
        }
        ports
    }

    fn security(&mut self, path: &str, written: &k8s::ContainerSecurity) -> Security {
        let pod = &self.written.pod.spec.security_context;
        let (pod_user, pod_group) = (pod.run_as_user, pod.run_as_group);
        let non_root = written.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false);
        let field = |own: bool, name: &str| match own {
            true => format!("{path}.{name}"),
            false => format!("spec.securityContext.{name}"),
        };
        let user_path = field(written.run_as_user.is_some(), "runAsUser");
        let run_as_user = self.id_number(&user_path, written.run_as_user.or(pod_user));
        let group_path = field(written.run_as_group.is_some(), "runAsGroup");
        let run_as_group = self.id_number(&group_path, written.run_as_group.or(pod_group));
        if non_root && run_as_user == Some(0) {
            self.problem(&user_path, "is 0, which runAsNonRoot forbids", "");
        }
        let add_capabilities =
            self.capabilities(&format!("{path}.capabilities.add"), &written.capabilities.add);
        let drop_capabilities =
            self.capabilities(&format!("{path}.capabilities.drop"), &written.capabilities.drop);
        let sys_admin = match &add_capabilities {
            CapabilityList::All => true,
            CapabilityList::Only(list) => list.contains(&Capability::SysAdmin),
        };
        if written.allow_privilege_escalation == Some(false) && sys_admin {
            let message = "can't be false for a container that gets CAP_SYS_ADMIN";
            self.problem(&format!("{path}.allowPrivilegeEscalation"), message, "");
        }
        Security {
            run_as_user,
            run_as_group,
            root_user: if non_root { RootUser::Refused } else { RootUser::Allowed },
            root_filesystem: match written.read_only_root_filesystem {
                true => RootFilesystem::ReadOnly,
                false => RootFilesystem::Writable,
            },
            privilege_escalation: match written.allow_privilege_escalation {
                Some(false) => PrivilegeEscalation::Denied,
                _ => PrivilegeEscalation::Allowed,
            },
            add_capabilities,
            drop_capabilities,
        }
    }

    /// The group of the volumes, and the additional groups of all containers, including that one.
    fn groups(&mut self, spec: &k8s::Spec) -> (Option<u32>, Vec<u32>) {
        let written = &spec.security_context;
        let volumes = self.id_number("spec.securityContext.fsGroup", written.fs_group);
        let path = "spec.securityContext.supplementalGroups";
        self.count(path, written.supplemental_groups.len(), MAX_GROUPS);
        let additional = written.supplemental_groups.iter().take(MAX_GROUPS).enumerate();
        let additional =
            additional.filter_map(|(index, group)| self.id_number(&format!("{path}[{index}]"), Some(*group)));
        let mut groups: Vec<u32> = additional.chain(volumes).collect();
        groups.sort_unstable();
        groups.dedup();
        (volumes, groups)
    }

    fn id_number(&mut self, path: &str, id: Option<i64>) -> Option<u32> {
        let id = id?;
        match u32::try_from(id) {
            Ok(number) if id <= MAX_ID => Some(number),
            _ => {
                self.problem(path, format!("must be 0 to {MAX_ID}, not {id}"), "");
                None
            }
        }
    }

    fn capabilities(&mut self, path: &str, names: &[String]) -> CapabilityList {
        let mut list = Vec::new();
        let mut all = false;
        for (index, name) in names.iter().enumerate() {
            if name.eq_ignore_ascii_case("ALL") {
                all = true;
            } else if let Some(capability) = names::capability(name) {
                list.push(capability);
            } else {
                let hint = "names are those of capabilities(7), with or without CAP_";
                self.problem(
                    &format!("{path}[{index}]"),
                    format!("{} is not a capability", quote(name)),
                    hint,
                );
            }
        }
        list.sort_by_key(Capability::to_string);
        list.dedup();
        if all { CapabilityList::All } else { CapabilityList::Only(list) }
    }
}
