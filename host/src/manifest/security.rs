//! Who a container is and what it may do.

use super::build::no_vm;
use super::checks::Build;
use super::k8s;
use super::names;
use super::plan::{
    CapabilityList, MAX_NAMESPACE_ID, PrivilegeEscalation, ProcMount, RootFilesystem, RootUser, RuntimeClass,
    Security,
};
use super::problem::quote;
use magikvm_proto::security::{ImageGroups, Privilege};
use oci_spec::runtime::Capability;

/// Largest user or group id (core/v1).
const MAX_ID: i64 = i32::MAX as i64;
/// Most additional groups of a container.
const MAX_GROUPS: usize = 64;

/// Capabilities that are not bounded by the namespaces of a pod, if its users are those of the host. With CAP_SYS_PTRACE a container takes over the
/// process that enters it for an exec or a probe, which still has the rights of the supervisor.
const HOST_POWERS: [Capability; 20] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::DacReadSearch,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Perfmon,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysModule,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::Syslog,
    Capability::WakeAlarm,
];

impl Build<'_> {
    /// `path` is that of the security context, `name` that of the container as written.
    pub(super) fn security(
        &mut self,
        path: &str,
        name: Option<&str>,
        written: &k8s::ContainerSecurity,
    ) -> Security {
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
        if written.allow_privilege_escalation == Some(false) && (sys_admin || written.privileged) {
            let what = if written.privileged { "is privileged" } else { "gets CAP_SYS_ADMIN" };
            let message = format!("can't be false for a container that {what}");
            self.problem(&format!("{path}.allowPrivilegeEscalation"), message, "");
        }
        if written.privileged {
            self.only_in_a_vm(&format!("{path}.privileged"));
        }
        let proc_mount = self.one_of(
            &format!("{path}.procMount"),
            written.proc_mount.as_deref(),
            ProcMount::default(),
            &[("Default", ProcMount::Masked), ("Unmasked", ProcMount::Unmasked)],
        );
        if self.has_host_users() {
            self.powers_over_the_host(path, &add_capabilities, proc_mount);
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
            privilege: if written.privileged { Privilege::Privileged } else { Privilege::Confined },
            proc_mount,
            seccomp: self.seccomp_of(path, &written.seccomp_profile),
            app_armor: self.app_armor_of(name, path, &written.app_armor_profile),
        }
    }

    /// Refuses a field that gives a container power over its kernel, unless that kernel is the pod's own.
    pub(super) fn only_in_a_vm(&mut self, path: &str) {
        if !self.class.has_vm() {
            let vm = RuntimeClass::PodMicrovmContainers;
            self.problem(path, no_vm(self.class), format!("run the pod in the class {vm}, or leave it out"));
        }
    }

    /// Whether root of a container is root of the host.
    fn has_host_users(&self) -> bool {
        self.class == RuntimeClass::PodContainers && self.written.pod.spec.host_users == Some(true)
    }

    /// Refuses what would give a container with the users of the host power over the host.
    fn powers_over_the_host(&mut self, path: &str, added: &CapabilityList, proc_mount: ProcMount) {
        const HINT: &str =
            "leave out spec.hostUsers, so that the pod has users of its own, or run the pod in a VM";
        let at = format!("{path}.capabilities.add");
        let network: &[Capability] = match self.written.pod.spec.host_network {
            true => &[Capability::NetAdmin],
            false => &[],
        };
        let powers: Vec<Capability> = match added {
            CapabilityList::All => vec![Capability::SysAdmin],
            CapabilityList::Only(list) => {
                let is_power = |one: &&Capability| HOST_POWERS.contains(one) || network.contains(one);
                list.iter().filter(is_power).copied().collect()
            }
        };
        for power in powers {
            let message =
                format!("CAP_{power} is power over the host for a pod with its users (spec.hostUsers: true)");
            self.problem(&at, message, HINT);
        }
        if proc_mount == ProcMount::Unmasked {
            let message = "\"Unmasked\" shows the parameters of the host's kernel to a pod with its users (spec.hostUsers: true)";
            self.problem(&format!("{path}.procMount"), message, HINT);
        }
    }

    /// The group of the volumes, and the additional groups of all containers, including that one.
    pub(super) fn groups(&mut self, spec: &k8s::Spec) -> (Option<u32>, Vec<u32>) {
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

    pub(super) fn image_groups(&mut self, spec: &k8s::Spec) -> ImageGroups {
        let table = [("Merge", ImageGroups::Merge), ("Strict", ImageGroups::Strict)];
        let written = spec.security_context.supplemental_groups_policy.as_deref();
        self.one_of("spec.securityContext.supplementalGroupsPolicy", written, ImageGroups::Merge, &table)
    }

    fn id_number(&mut self, path: &str, id: Option<i64>) -> Option<u32> {
        let id = id?;
        let has_range = self.class == RuntimeClass::PodContainers && !self.has_host_users();
        match u32::try_from(id) {
            Ok(number) if has_range && number > MAX_NAMESPACE_ID && id <= MAX_ID => {
                let message = format!("must be 0 to {MAX_NAMESPACE_ID} for a pod in namespaces, not {id}");
                self.problem(path, message, "such a pod has 65536 ids of its own");
                None
            }
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
