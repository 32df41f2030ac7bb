//! From the Pod as written to the plan: validation beyond single values, and defaults.

use super::checks::Build;
use super::fields::{
    ANNOTATION_MEMORY, ANNOTATION_NESTED, ANNOTATION_NETWORK, ANNOTATION_PREFIX, ANNOTATION_VCPUS,
    ANNOTATIONS,
};
use super::k8s::{self, Written};
use super::lifecycle::{List, POLICIES};
use super::names;
use super::objects::Objects;
use super::plan::{
    ContainerPort, ContainerSpec, Nested, PodPlan, PodUsers, Protocol, PullPolicy, RuntimeClass,
};
use super::probes::Owner;
use super::problem::{ProblemCollector, path_key, quote};
use super::profiles::APPARMOR_PREFIX;
use super::volumes;
use crate::image::Reference;
use crate::store::text::chain;
use magikvm_proto::id::{ContainerName, Namespace, PodId, PodName};
use magikvm_proto::lifecycle::Role;
use magikvm_proto::limits::{
    DEFAULT_GRACE_PERIOD_SECS, MAX_ANNOTATIONS_PER_POD, MAX_CONTAINERS_PER_POD, MAX_INIT_CONTAINERS_PER_POD,
    MAX_LABELS_PER_POD,
};
use magikvm_proto::plan::{ProcessNamespace, RestartPolicy, Stdin, Stdio};
use magikvm_proto::raised;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Bytes of all annotations of a pod together, as in Kubernetes.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// Longest host name derived from a pod's name (the kubelet's rule).
const MAX_HOSTNAME_LEN: usize = 63;
/// Longest host name that the kernel takes (`__NEW_UTS_LEN`).
const MAX_KERNEL_HOSTNAME_LEN: usize = 64;
/// The domain of full names, kubeadm's default.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// An annotation that says something of a VM.
struct OfVms {
    key: &'static str,
    /// Values that a pod without a VM may have, too.
    is_harmless: fn(&str) -> bool,
    /// What does without a VM.
    hint: &'static str,
}

const OF_VMS: [OfVms; 4] = [
    OfVms {
        key: ANNOTATION_MEMORY,
        is_harmless: |_| false,
        hint: "leave it out: resources.limits.memory bounds what containers use",
    },
    OfVms {
        key: ANNOTATION_VCPUS,
        is_harmless: |_| false,
        hint: "leave it out: resources.limits.cpu bounds what containers use",
    },
    OfVms {
        key: ANNOTATION_NESTED,
        is_harmless: |value| value == "false",
        hint: "leave it out, or run the pod in a VM",
    },
    OfVms {
        key: ANNOTATION_NETWORK,
        is_harmless: |value| !["tsi", "user"].contains(&value),
        hint: "write nat, or leave it out",
    },
];

/// Why something about a VM cannot be had.
pub(super) fn no_vm(class: RuntimeClass) -> String {
    format!("is possible only in a VM, and pods of the class {class} have none")
}

/// Builds the plan, in this class or in that of the manifest. `None` only after a problem was reported; problems may also be reported beside
/// `Some`.
pub(super) fn build(
    written: &Written,
    objects: &Objects,
    class: Option<RuntimeClass>,
    report: &mut ProblemCollector,
) -> Option<PodPlan> {
    let (metadata, spec) = (&written.pod.metadata, &written.pod.spec);
    let mut build = Build { written, objects, report, class: RuntimeClass::default(), copied: 0 };
    let of_manifest = build.runtime_class(spec);
    build.class = class.unwrap_or(of_manifest);
    let id = build.id(metadata);
    build.labels(&metadata.labels);
    build.annotations(&metadata.annotations);
    build.annotations_of_vms(&metadata.annotations);
    let restart_policy =
        build.one_of("spec.restartPolicy", spec.restart_policy.as_deref(), RestartPolicy::Always, &POLICIES);
    let grace_seconds = build.grace(spec);
    let deadline_seconds = build.deadline(spec);
    let (volumes, known) = build.volumes();
    let (volume_group, further_groups) = build.groups(spec);
    let image_groups = build.image_groups(spec);
    let volume_group_change = build.group_change(spec);
    let sysctls = build.sysctls();
    let containers: Vec<Option<ContainerSpec>> = listed(spec)
        .map(|(list, index, container)| build.container(list, index, container, &known, grace_seconds))
        .collect();
    build.container_names(spec);
    let containers: Option<Vec<ContainerSpec>> = containers.into_iter().collect();
    let nested = build.nested(&metadata.annotations);
    let service_directory = build.service_directory();
    let network = super::network::network(written, build.class, build.report);
    let id = id?;
    let label = build.label(spec, &id.name)?;
    let full_name = network
        .subdomain
        .as_ref()
        .map(|domain| format!("{label}.{domain}.{}.svc.{CLUSTER_DOMAIN}", id.namespace));
    let hostname = build.hostname(spec, &label, full_name.as_deref())?;
    let containers = containers?;
    let resources = build.pod_resources(&containers);
    let vm = build.vm_size(&metadata.annotations, &containers, &resources)?;
    let logs = build.log_options(&metadata.annotations);
    let root = build.root_place(&metadata.annotations);
    let limits_kept = build.limits_kept(&metadata.annotations);
    build.check_pod_disk_limit(&resources, &containers, &volumes);
    let pull_secrets = build.pull_secrets();
    let class = build.class;
    let published = super::ports::published(written, report);
    Some(PodPlan {
        id,
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        logs,
        hostname,
        label,
        full_name,
        runtime_class: class,
        restart_policy,
        users: match spec.host_users {
            Some(true) => PodUsers::Host,
            Some(false) | None => PodUsers::Own,
        },
        process_namespace: match spec.share_process_namespace {
            true => ProcessNamespace::Pod,
            false => ProcessNamespace::PerContainer,
        },
        grace_seconds,
        vm,
        root,
        limits_kept,
        disk_limit_bytes: resources.disk_limit_bytes,
        resources,
        deadline_seconds,
        containers,
        published,
        volumes,
        volume_group,
        volume_group_change,
        further_groups,
        image_groups,
        sysctls,
        network,
        nested,
        service_directory,
        pull_secrets,
        manifest: written.json.clone(),
    })
}

/// All containers in the order of the plan, with their places.
pub(super) fn listed(spec: &k8s::Spec) -> impl Iterator<Item = (List, usize, &k8s::Container)> {
    let lists = [(List::Init, &spec.init_containers), (List::Main, &spec.containers)];
    lists.into_iter().flat_map(|(list, containers)| {
        containers.iter().enumerate().map(move |(index, container)| (list, index, container))
    })
}

impl Build<'_> {
    fn id(&mut self, metadata: &k8s::Metadata) -> Option<PodId> {
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
            if key.starts_with(APPARMOR_PREFIX) {
                self.check_app_armor_annotation(&path, &annotations[key]);
            }
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
        let (path, name) = ("spec.runtimeClassName", spec.runtime_class_name.as_deref());
        let otherwise = "leave it out: each pod is then in a VM of its own";
        self.one_of_or(path, name, RuntimeClass::default(), &table, otherwise)
    }

    /// Refuses what is said of the VM of a pod that has none, unless that is what such a pod has anyway.
    fn annotations_of_vms(&mut self, annotations: &BTreeMap<String, String>) {
        if self.class.has_vm() {
            return;
        }
        for OfVms { key, is_harmless, hint } in OF_VMS {
            if let Some(value) = annotations.get(key).filter(|value| !is_harmless(value)) {
                let message = format!("{} {}", quote(value), no_vm(self.class));
                self.problem(&format!("metadata.annotations.{key}"), message, hint);
            }
        }
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

    fn label(&mut self, spec: &k8s::Spec, name: &PodName) -> Option<String> {
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

    /// The host name that the kernel has.
    fn hostname(&mut self, spec: &k8s::Spec, label: &str, full_name: Option<&str>) -> Option<String> {
        if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
            let path = "spec.hostnameOverride";
            if spec.host_network {
                let hint = "leave out one of them: the pod has the host name of the host";
                self.problem(path, "cannot be used with hostNetwork: true", hint);
            }
            if spec.set_hostname_as_fqdn {
                self.problem(path, "cannot be used with setHostnameAsFQDN: true", "leave out one of them");
            }
            match name.parse::<PodName>() {
                Ok(_) if name.len() <= MAX_KERNEL_HOSTNAME_LEN => return Some(name.to_owned()),
                Ok(_) => {
                    let message = format!(
                        "has {} characters, at most {MAX_KERNEL_HOSTNAME_LEN} are allowed",
                        name.len()
                    );
                    self.problem(path, message, "");
                }
                Err(error) => self.problem(path, format!("{} {error}", quote(name)), ""),
            }
            return None;
        }
        match full_name.filter(|_| spec.set_hostname_as_fqdn) {
            Some(name) if name.len() > MAX_KERNEL_HOSTNAME_LEN => {
                let message = format!(
                    "makes the host name {}, which has {} characters, and at most {MAX_KERNEL_HOSTNAME_LEN} are allowed",
                    quote(name),
                    name.len()
                );
                self.problem(
                    "spec.setHostnameAsFQDN",
                    message,
                    "shorten hostname or subdomain, or leave it out",
                );
                None
            }
            name => Some(name.unwrap_or(label).to_owned()),
        }
    }

    fn container_names(&mut self, spec: &k8s::Spec) {
        let containers = &spec.containers;
        if containers.is_empty() && !self.written.has("spec.containers") {
            self.problem("spec.containers", "is missing", "a Pod has 1 to 16 containers");
        } else if containers.is_empty() || containers.len() > MAX_CONTAINERS_PER_POD {
            let message =
                format!("has {} entries, 1 to {MAX_CONTAINERS_PER_POD} are allowed", containers.len());
            self.problem("spec.containers", message, "");
        }
        self.count("spec.initContainers", spec.init_containers.len(), MAX_INIT_CONTAINERS_PER_POD);
        let mut seen = HashMap::new();
        for (list, index, container) in listed(spec) {
            let Some(name) = container.name.as_deref() else { continue };
            let at = list.at(index);
            if let Some(first) = seen.get(name) {
                let message = format!("{} is also the name of {first}", quote(name));
                self.problem(&format!("{at}.name"), message, "names are unique within a pod");
            } else {
                seen.insert(name, at);
            }
        }
    }

    fn container(
        &mut self,
        list: List,
        index: usize,
        written: &k8s::Container,
        volumes: &volumes::Known,
        grace: u64,
    ) -> Option<ContainerSpec> {
        let at = list.at(index);
        let path = |field: &str| format!("{at}.{field}");
        let name = self.required(&path("name"), written.name.as_deref());
        let name = name.and_then(|name| self.parsed::<ContainerName>(&path("name"), name));
        let image = self.required(&path("image"), written.image.as_deref());
        let reference = image.and_then(|image| self.reference(&path("image"), image));
        let policy = written.image_pull_policy.as_deref();
        let pull_policy = self.pull_policy(&path("imagePullPolicy"), policy, reference.as_ref());
        self.arguments(&path("command"), &written.command);
        self.arguments(&path("args"), &written.args);
        if written.command.first().is_some_and(String::is_empty) {
            self.problem(&path("command[0]"), "must not be empty", "it is the program to run");
        }
        let working_dir = written.working_dir.as_deref().filter(|dir| !dir.is_empty());
        if let Some(dir) = working_dir {
            self.check(&path("workingDir"), names::absolute_path(dir));
        }
        let env = self.env(&at, written, volumes);
        let mounts = self.mounts(&at, &written.volume_mounts, volumes, &env);
        let resources = self.resources(&path("resources"), &written.resources);
        let ports = self.ports(&path("ports"), &written.ports);
        let security =
            self.security(&path("securityContext"), written.name.as_deref(), &written.security_context);
        let role = list.role(written);
        let restarts = self.restarts(&at, role, written);
        let owner = Owner { at: &at, role, written, ports: &ports, grace };
        let (probes, hooks) = (self.probes(&owner), self.hooks(&owner));
        let stop_signal = if role == Role::Init { None } else { self.stop_signal(&at, written) };
        let termination_message = self.termination_message(&at, written);
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
            role,
            restarts,
            probes,
            hooks,
            stop_signal,
            termination_message,
        })
    }

    pub(super) fn reference(&mut self, path: &str, text: &str) -> Option<Reference> {
        let wrong = match text.parse::<Reference>() {
            Ok(reference) => return Some(reference),
            Err(error) => error,
        };
        self.problem(path, chain(&wrong), "a reference looks like registry.example/team/app:1.0");
        None
    }

    pub(super) fn pull_policy(
        &mut self,
        path: &str,
        written: Option<&str>,
        image: Option<&Reference>,
    ) -> PullPolicy {
        let default = match image {
            Some(image) if !image.is_latest() => PullPolicy::IfNotPresent,
            Some(_) | None => PullPolicy::Always,
        };
        let table = [
            ("Always", PullPolicy::Always),
            ("IfNotPresent", PullPolicy::IfNotPresent),
            ("Never", PullPolicy::Never),
        ];
        self.one_of(path, written, default, &table)
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
}
