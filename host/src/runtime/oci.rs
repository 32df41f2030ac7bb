//! The OCI runtime configuration of one container, the same for every runtime class that has Linux containers.
//!
//! Pure: plan in, `config.json` out. The guest adds what only it knows: the user's numbers, the terminal's size, and the paths of a shared
//! PID namespace and of the cgroup.

use super::capabilities::capabilities;
use super::check;
use super::seccomp;
use crate::manifest::ResolvedProcess;
use crate::manifest::plan::{
    ContainerSpec, PodPlan, PrivilegeEscalation, ProcMount, QosClass, Resources, RootFilesystem, Seccomp,
    Security,
};
use crate::net::Provider;
use crate::net::settle::Settled;
use magikvm_proto::plan::{ProcessNamespace, Stdio};
use magikvm_proto::security::Privilege;
use magikvm_proto::site::Site;
use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit,
    LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources, LinuxSeccomp, Mount, Process,
    Root, Spec, User,
};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// The address of the host name in a pod without a network.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));
/// Version of the runtime specification that the configuration follows.
const OCI_VERSION: &str = "1.0.2";
/// Processes and threads of one container: enough for any honest program, and too few to starve the VM's other containers.
pub const PIDS_LIMIT: i64 = 4096;
/// Paths that read as empty (containerd's list).
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Paths that are read-only (containerd's list), including /proc/sys: the VM's kernel belongs to the pod, not to one container.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Length of the period of a CPU limit, in microseconds (the kubelet's).
const CPU_PERIOD_US: u64 = 100_000;
/// Smallest quota that the kernel takes, in microseconds.
const MIN_CPU_QUOTA_US: u64 = 1000;
/// Shares of a container that requests no CPU, and the largest value (the kubelet's).
const CPU_SHARES: RangeInclusive<u64> = 2..=262_144;

/// The profiles of the host that a container has.
#[derive(Debug, Default)]
pub struct Profiles {
    /// The seccomp profile that it names.
    pub seccomp: Option<LinuxSeccomp>,
    /// The name of its AppArmor profile, which is loaded.
    pub app_armor: Option<String>,
}

/// The configuration of one container. The user stays 0:0 until the guest sets it from `ContainerPlan::user`.
pub fn container_config(
    plan: &PodPlan,
    container: &ContainerSpec,
    process: &ResolvedProcess,
    site: &Site,
    profiles: Profiles,
) -> Spec {
    let security = &container.security;
    let is_privileged = security.privilege == Privilege::Privileged;
    let capabilities = capabilities(security);
    let masked = !is_privileged && security.proc_mount == ProcMount::Masked;
    let paths = |paths: &[&str]| masked.then(|| paths.iter().map(|&path| path.to_owned()).collect());
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(plan.process_namespace)))
        .set_resources(Some(resources(&container.resources)))
        .set_masked_paths(paths(&MASKED_PATHS))
        .set_readonly_paths(paths(&READONLY_PATHS))
        .set_seccomp(match (&security.seccomp, profiles.seccomp) {
            _ if is_privileged => None,
            (Seccomp::Unconfined, _) => None,
            (Seccomp::Localhost(_), Some(profile)) => Some(profile),
            (Seccomp::Localhost(_) | Seccomp::RuntimeDefault, _) => Some(seccomp::profile(&capabilities)),
        });
    let mut process = self::process(plan, container, process, &capabilities);
    process.set_apparmor_profile(profiles.app_armor);
    let mut root = Root::default();
    let read_only = container.security.root_filesystem == RootFilesystem::ReadOnly;
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(read_only));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        // The UTS namespace is the VM's, which has its host name already.
        .set_hostname(None)
        .set_annotations(None)
        .set_mounts(Some(mounts(security, site, &plan.network.provider)))
        .set_process(Some(process))
        .set_linux(Some(linux));
    spec
}

/// Serializes a configuration so that equal configurations are equal bytes.
pub fn to_json(spec: &Spec) -> serde_json::Result<Vec<u8>> {
    let mut json = serde_json::to_value(spec)?;
    // These are the only unordered collections of a configuration.
    if let Some(sets) = json.pointer_mut("/process/capabilities").and_then(serde_json::Value::as_object_mut) {
        for set in sets.values_mut().filter_map(serde_json::Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    serde_json::to_vec(&json)
}

/// The files of the pod's `/etc`: name and content.
pub fn pod_etc(plan: &PodPlan, network: &Settled) -> Vec<(String, Vec<u8>)> {
    let mut hosts = format!(
        "# Written by magikvm for the pod {}.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         fe00::\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
        plan.id
    );
    if let Some(files) = &network.files {
        hosts.clone_from(&files.hosts);
        if !hosts.ends_with('\n') {
            hosts.push('\n');
        }
    }
    let mut names = match &plan.full_name {
        Some(full_name) => format!("{full_name}\t{}", plan.label),
        None => plan.label.clone(),
    };
    if !names.split('\t').any(|name| name == plan.hostname) {
        names = format!("{names}\t{}", plan.hostname);
    }
    let own = network.addresses();
    // Without a network the pod's name must still resolve.
    let own = if own.is_empty() { vec![NO_ADDRESS] } else { own };
    // The host has its own names.
    for address in own.into_iter().filter(|_| network.files.is_none()) {
        hosts += &format!("{address}\t{names}\n");
    }
    for alias in plan.network.aliases.iter().filter(|alias| !alias.names.is_empty()) {
        hosts += &format!("{}\t{}\n", alias.ip, alias.names.join("\t"));
    }
    let resolv = plan.network.dns.merged(&network.resolv, &network.forwarded);
    vec![
        ("hosts".to_owned(), hosts.into_bytes()),
        ("hostname".to_owned(), format!("{}\n", network.hostname(&plan.hostname)).into_bytes()),
        ("resolv.conf".to_owned(), resolv.text().into_bytes()),
    ]
}

fn process(
    plan: &PodPlan,
    container: &ContainerSpec,
    resolved: &ResolvedProcess,
    capabilities: &Capabilities,
) -> Process {
    let mut sets = LinuxCapabilities::default();
    // Neither inheritable nor ambient: as in containerd, a program that runs as another user than root has no capabilities.
    sets.set_bounding(Some(capabilities.clone()))
        .set_effective(Some(capabilities.clone()))
        .set_permitted(Some(capabilities.clone()))
        .set_inheritable(None)
        .set_ambient(None);
    let mut process = Process::default();
    let mut user = User::default();
    // The guest adds the groups that the image gives the user.
    user.set_additional_gids(Some(plan.further_groups.clone()).filter(|groups| !groups.is_empty()));
    process
        .set_terminal(Some(container.stdio == Stdio::Terminal))
        .set_user(user)
        .set_args(Some(resolved.args.clone()))
        .set_env(Some(resolved.env.clone()))
        .set_cwd(PathBuf::from(&resolved.cwd))
        .set_capabilities(Some(sets))
        // Raising a limit needs privileges that a caller may lack, so that each process inherits its starter's limits.
        .set_rlimits(None)
        // `false` would make libcontainer load the seccomp filter as if privileges had been dropped already.
        .set_no_new_privileges(match container.security.privilege_escalation {
            PrivilegeEscalation::Denied => Some(true),
            PrivilegeEscalation::Allowed => None,
        })
        .set_oom_score_adj(Some(oom_score_adj(plan, container)));
    process
}

/// The kubelet's rule with the VM as the node, or the host for a pod without one: a container that requested more of its memory is killed later.
fn oom_score_adj(plan: &PodPlan, container: &ContainerSpec) -> i32 {
    match plan.qos_class() {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let asked = container.resources.memory_request_bytes.unwrap_or(0);
            // What only the pod has asked for is shared equally.
            let all = plan.containers.iter().filter_map(|one| one.resources.memory_request_bytes);
            let rest = plan.resources.memory_request_bytes.unwrap_or(0);
            let rest = rest.saturating_sub(all.fold(0, u64::saturating_add));
            let count = u64::try_from(plan.containers.len()).unwrap_or(u64::MAX).max(1);
            let asked = asked.saturating_add(rest / count);
            let share = u128::from(asked) * 1000 / u128::from(check::node(plan).memory_bytes.max(1));
            1000 - i32::try_from(share).unwrap_or(1000).clamp(1, 997)
        }
    }
}

/// The pod shares the VM's network, IPC and UTS namespaces. The guest adds a shared PID namespace with its path.
fn namespaces(processes: ProcessNamespace) -> Vec<LinuxNamespace> {
    let own_pid = match processes {
        ProcessNamespace::PerContainer => Some(LinuxNamespaceType::Pid),
        ProcessNamespace::Pod => None,
    };
    let kinds = [Some(LinuxNamespaceType::Mount), Some(LinuxNamespaceType::Cgroup), own_pid];
    let namespace = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    kinds.into_iter().flatten().map(namespace).collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

fn mounts(security: &Security, site: &Site, network: &Provider) -> Vec<Mount> {
    let mut of_kernel = vec!["nosuid", "noexec", "nodev"];
    let mut of_cgroup = vec!["nosuid", "noexec", "nodev", "relatime"];
    if security.privilege == Privilege::Confined {
        of_kernel.push("ro");
        of_cgroup.push("ro");
    }
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(
            "/dev/shm",
            "bind",
            &site.shm().to_string_lossy(),
            &["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        match network {
            // A view of the devices needs rights in the network namespace.
            Provider::Host => mount(
                "/sys",
                "bind",
                &site.kernel_view().to_string_lossy(),
                &["rbind", "rprivate", "ro", "nosuid", "noexec", "nodev"],
            ),
            Provider::Magikvm | Provider::Cni(_) => mount("/sys", "sysfs", "sysfs", &of_kernel),
        },
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &of_cgroup),
    ];
    let writable = match security.root_filesystem {
        RootFilesystem::Writable => "rw",
        RootFilesystem::ReadOnly => "ro",
    };
    for file in ["hosts", "hostname", "resolv.conf"] {
        let source = site.etc().join(file);
        mounts.push(mount(
            &format!("/etc/{file}"),
            "bind",
            &source.to_string_lossy(),
            &["rbind", "rprivate", writable],
        ));
    }
    mounts
}

fn resources(asked: &Resources) -> LinuxResources {
    let mut pids = LinuxPids::default();
    pids.set_limit(PIDS_LIMIT);
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(devices())).set_pids(Some(pids)).set_cpu(Some(cpu(asked)));
    if let Some(limit) = asked.memory_limit_bytes {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut memory = LinuxMemory::default();
        // The limit includes swap, so that there is no swap beyond it.
        memory.set_limit(Some(limit)).set_swap(Some(limit));
        resources.set_memory(Some(memory));
    }
    let huge_pages = asked.huge_pages.each().into_iter().filter(|(_, bytes)| *bytes > 0);
    let huge_pages: Vec<LinuxHugepageLimit> = huge_pages
        .map(|(size, bytes)| {
            let mut limit = LinuxHugepageLimit::default();
            limit
                .set_page_size(size.in_cgroups.to_owned())
                .set_limit(i64::try_from(bytes).unwrap_or(i64::MAX));
            limit
        })
        .collect();
    resources.set_hugepage_limits((!huge_pages.is_empty()).then_some(huge_pages));
    resources
}

/// The kubelet's `MilliCPUToShares` and `MilliCPUToQuota`.
fn cpu(asked: &Resources) -> LinuxCpu {
    let shares = asked.cpu_request_millis.unwrap_or(0).saturating_mul(1024) / 1000;
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(shares.clamp(*CPU_SHARES.start(), *CPU_SHARES.end())));
    if let Some(millis) = asked.cpu_limit_millis {
        let quota = (millis.saturating_mul(CPU_PERIOD_US) / 1000).max(MIN_CPU_QUOTA_US);
        cpu.set_quota(Some(i64::try_from(quota).unwrap_or(i64::MAX))).set_period(Some(CPU_PERIOD_US));
    }
    cpu
}

/// Containers may make device files, and use only the few that every program needs.
fn devices() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow, kind, major, minor, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(kind)
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.to_owned()));
        rule
    };
    let character = Some(LinuxDeviceType::C);
    let mut rules = vec![
        rule(false, Some(LinuxDeviceType::A), None, None, "rwm"),
        rule(true, character, None, None, "m"),
        rule(true, Some(LinuxDeviceType::B), None, None, "m"),
    ];
    // null, zero, full, random, urandom; tty, console, ptmx; the terminals of /dev/pts.
    let known = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    rules.extend(known.map(|(major, minor)| rule(true, character, Some(major), Some(minor), "rwm")));
    rules.push(rule(true, character, Some(136), None, "rwm"));
    rules
}

#[cfg(test)]
mod tests {
    use super::super::capabilities::{ALL_CAPABILITIES, DEFAULT_CAPABILITIES};
    use super::*;
    use crate::image::ImageDefaults;
    use crate::manifest;
    use crate::manifest::{PodFacts, resolve_process};
    use magikvm_proto::signal::Signal;
    use proptest::prelude::*;

    fn pod(spec: &str, container: &str) -> PodPlan {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{spec}  containers:\n  - name: main\n    image: busybox\n    command: [/bin/sh]\n{container}"
        );
        manifest::parse(text.as_bytes(), "x").unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn config(plan: &PodPlan) -> Spec {
        let container = &plan.containers[0];
        let facts = PodFacts { hostname: plan.hostname.clone(), ..PodFacts::default() };
        let process = resolve_process(container, &ImageDefaults::default(), &facts).unwrap();
        container_config(plan, container, &process, &Site::guest(), Profiles::default())
    }

    fn config_of(container: &str) -> Spec {
        config(&pod("", container))
    }

    fn capabilities_of(change: &str) -> Vec<String> {
        let spec = config_of(&format!("    securityContext: {{capabilities: {change}}}\n"));
        let process = spec.process().clone().unwrap();
        let sets = process.capabilities().clone().unwrap();
        assert_eq!((sets.ambient(), sets.inheritable()), (&None, &None));
        assert_eq!(sets.bounding(), sets.effective());
        assert_eq!(sets.bounding(), sets.permitted());
        let mut names: Vec<String> = sets.bounding().iter().flatten().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn a_typical_container_has_this_configuration() {
        let spec = config_of(
            "    resources: {limits: {cpu: 500m, memory: 64Mi}}\n    securityContext: {runAsUser: 1000}\n    env: [{name: A, value: b}]\n",
        );
        let mut json: serde_json::Value = serde_json::from_slice(&to_json(&spec).unwrap()).unwrap();
        // The first two rules are the lists of seccomp.txt, which other tests cover.
        for rule in 0..2 {
            json["linux"]["seccomp"]["syscalls"][rule]["names"] = serde_json::json!(["…"]);
        }
        insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
    }

    #[test]
    fn equal_configurations_are_equal_bytes_and_read_back() {
        let (one, two) = (config_of(""), config_of(""));
        let bytes = to_json(&one).unwrap();
        assert_eq!(bytes, to_json(&two).unwrap());
        assert_eq!(serde_json::from_slice::<Spec>(&bytes).unwrap(), one);
    }

    #[test]
    fn capabilities_change_in_containerds_order() {
        let default: Vec<String> = {
            let mut names = DEFAULT_CAPABILITIES.map(|capability| capability.to_string()).to_vec();
            names.sort();
            names
        };
        assert_eq!(capabilities_of("{}"), default);
        assert_eq!(capabilities_of("{add: [SYS_ADMIN]}").len(), 15);
        assert_eq!(capabilities_of("{drop: [KILL, NET_ADMIN]}").len(), 13);
        assert_eq!(capabilities_of("{drop: [ALL]}"), Vec::<String>::new());
        assert_eq!(capabilities_of("{add: [NET_ADMIN], drop: [ALL]}"), ["NET_ADMIN"]);
        assert_eq!(capabilities_of("{add: [NET_ADMIN], drop: [NET_ADMIN]}"), default);
        assert_eq!(capabilities_of("{add: [ALL]}").len(), ALL_CAPABILITIES.len());
        assert_eq!(capabilities_of("{add: [ALL], drop: [SYS_MODULE]}").len(), ALL_CAPABILITIES.len() - 1);
        assert_eq!(capabilities_of("{add: [ALL], drop: [ALL]}"), Vec::<String>::new());
    }

    #[test]
    fn flags_of_the_plan_arrive() {
        let spec = config_of(
            "    tty: true\n    workingDir: /srv\n    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false}\n",
        );
        let process = spec.process().clone().unwrap();
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.cwd(), &PathBuf::from("/srv"));
        assert_eq!(process.user().uid(), 0);
        assert_eq!(spec.root().clone().unwrap().readonly(), Some(true));
        let mounts = spec.mounts().clone().unwrap();
        let hosts = mounts.iter().find(|mount| mount.destination() == &PathBuf::from("/etc/hosts")).unwrap();
        assert!(hosts.options().clone().unwrap().contains(&"ro".to_owned()));
        let json = String::from_utf8(to_json(&config_of("")).unwrap()).unwrap();
        assert!(!json.contains("noNewPrivileges") && !json.contains("rlimits"));
    }

    #[test]
    fn a_privileged_container_has_nothing_in_its_way() {
        let spec = config_of("    securityContext: {privileged: true, capabilities: {drop: [ALL]}}\n");
        let linux = spec.linux().clone().unwrap();
        assert_eq!((linux.seccomp(), linux.masked_paths(), linux.readonly_paths()), (&None, &None, &None));
        let bounding = spec.process().clone().unwrap().capabilities().clone().unwrap().bounding().clone();
        assert_eq!(bounding.unwrap().len(), ALL_CAPABILITIES.len());
        let json = String::from_utf8(to_json(&spec).unwrap()).unwrap();
        assert!(!json.contains("\"ro\""), "{json}");
    }

    #[test]
    fn profiles_and_masks_are_as_asked() {
        let linux =
            |text: &str| config_of(&format!("    securityContext: {text}\n")).linux().clone().unwrap();
        let plain = linux("{}");
        let open = linux("{procMount: Unmasked}");
        assert!(plain.masked_paths().is_some() && open.masked_paths().is_none());
        assert!(open.readonly_paths().is_none() && open.seccomp().is_some());
        assert_eq!(linux("{seccompProfile: {type: Unconfined}}").seccomp(), &None);
        // Without the host's file it is not without a filter.
        let local = linux("{seccompProfile: {type: Localhost, localhostProfile: a.json}}");
        assert_eq!(local.seccomp(), plain.seccomp());
    }

    #[test]
    fn a_shared_pid_namespace_is_left_to_the_guest() {
        let kinds = |plan: &PodPlan| -> Vec<LinuxNamespaceType> {
            let linux = config(plan).linux().clone().unwrap();
            linux.namespaces().iter().flatten().map(LinuxNamespace::typ).collect()
        };
        let own = kinds(&pod("", ""));
        assert_eq!(own, [LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup, LinuxNamespaceType::Pid]);
        let shared = kinds(&pod("  shareProcessNamespace: true\n", ""));
        assert_eq!(shared, [LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
    }

    #[test]
    fn limits_become_what_the_kubelet_makes_of_them() {
        let found = |text: &str| {
            let linux = config_of(&format!("    resources: {text}\n")).linux().clone().unwrap();
            let resources = linux.resources().clone().unwrap();
            let cpu = resources.cpu().clone().unwrap();
            let memory = resources.memory().map(|memory| (memory.limit(), memory.swap()));
            (cpu.shares(), cpu.quota(), cpu.period(), memory)
        };
        assert_eq!(found("{}"), (Some(2), None, None, None));
        let limit = Some(64 << 20);
        assert_eq!(
            found("{limits: {cpu: 500m, memory: 64Mi}}"),
            (Some(512), Some(50_000), Some(100_000), Some((limit, limit)))
        );
        assert_eq!(found("{requests: {cpu: 250m, memory: 64Mi}}"), (Some(256), None, None, None));
        assert_eq!(found("{limits: {cpu: 1m}}"), (Some(2), Some(1000), Some(100_000), None));
    }

    #[test]
    fn who_asked_for_memory_is_killed_later() {
        let score = |text: &str| {
            config_of(&format!("    resources: {text}\n")).process().clone().unwrap().oom_score_adj()
        };
        assert_eq!(score("{}"), Some(1000));
        assert_eq!(score("{limits: {cpu: 1, memory: 64Mi}}"), Some(-997));
        // 64 MiB of a VM of 512 + 96 + 8.
        assert_eq!(score("{requests: {memory: 64Mi}}"), Some(1000 - 64 * 1000 / 616));
        assert_eq!(score("{requests: {cpu: 1}}"), Some(999));
    }

    #[test]
    fn the_pods_etc_names_the_pod() {
        let files = pod_etc(&pod("  hostname: box\n", ""), &Settled::none(None));
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["hosts", "hostname", "resolv.conf"]);
        let hosts = String::from_utf8(files[0].1.clone()).unwrap();
        assert!(hosts.contains("127.0.0.1\tlocalhost\n") && hosts.ends_with("127.0.1.1\tbox\n"), "{hosts}");
        assert_eq!(files[1].1, b"box\n");
        assert!(files[2].1.is_empty());
        let of = |spec: &str| {
            let files = pod_etc(&pod(spec, ""), &Settled::none(None));
            files.into_iter().take(2).map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect::<Vec<_>>()
        };
        let whole = of("  hostname: box\n  subdomain: shelf\n  setHostnameAsFQDN: true\n");
        assert!(whole[0].ends_with("127.0.1.1\tbox.shelf.default.svc.cluster.local\tbox\n"), "{}", whole[0]);
        assert_eq!(whole[1], "box.shelf.default.svc.cluster.local\n");
        assert_eq!(of("  hostname: box\n  setHostnameAsFQDN: true\n")[1], "box\n");
        let other = of("  hostname: box\n  hostnameOverride: db.example.com\n");
        assert!(other[0].ends_with("127.0.1.1\tbox\tdb.example.com\n"), "{}", other[0]);
        assert_eq!(other[1], "db.example.com\n");
    }

    proptest! {
        #[test]
        fn any_process_and_amounts_make_a_configuration(
            args in proptest::collection::vec(".{0,20}", 1..4),
            cpu in proptest::option::of(any::<u64>()),
            memory in proptest::option::of(any::<u64>()),
        ) {
            let mut plan = pod("", "");
            plan.containers[0].resources = Resources {
                cpu_limit_millis: cpu,
                cpu_request_millis: cpu,
                memory_limit_bytes: memory,
                memory_request_bytes: memory,
                disk_limit_bytes: memory,
                ..Resources::default()
            };
            let process = ResolvedProcess {
                args,
                env: Vec::new(),
                cwd: "/".to_owned(),
                user: String::new(),
                file_variables: Vec::new(),
                stop_signal: Signal::TERM,
                warning: None,
            };
            let spec = container_config(&plan, &plan.containers[0], &process, &Site::guest(), Profiles::default());
            let read: Spec = serde_json::from_slice(&to_json(&spec).unwrap()).unwrap();
            prop_assert_eq!(read, spec);
        }
    }
}
