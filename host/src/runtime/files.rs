//! What a pod consists of besides its images: its plan, the configurations of its containers, and the content of its volumes that are files. The same
//! for every class that has Linux containers. Must not know: where the files go.

use super::oci::{self, Profiles};
use super::volumes::{self, Volumes};
use super::{PodToPrepare, RuntimeError, check, seccomp_file};
use crate::image::erofs::SmallFile;
use crate::manifest::{ContainerSpec, PodPlan, Protocol, huge_pages, resolve_process};
use crate::net::settle::Settled;
use magikvm_proto::limits::MAX_PLAN_SIZE;
use magikvm_proto::path::FIRST_IMAGE_PARTITION;
use magikvm_proto::plan::{ContainerPlan, GuestPlan, Rootfs};
use magikvm_proto::security::PodLimits;
use magikvm_proto::service_directory::{DirectoryAccess, ListedPort, PortProtocol};
use magikvm_proto::site::{POD_ETC, SPEC_JSON, Site, container_config};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Containers need images; artifacts have files only.
pub(super) fn check_artifacts(pod: &PodToPrepare<'_>) -> Result<(), RuntimeError> {
    let all = pod.plan.containers.iter().zip(pod.images);
    match all.into_iter().find(|(_, image)| image.record.is_artifact) {
        Some((container, _)) => Err(RuntimeError::Artifact { container: container.name.clone() }),
        None => Ok(()),
    }
}

/// An image as the sandbox mounts it: an EROFS file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageFile<'a> {
    pub(super) path: &'a Path,
    pub(super) size_bytes: u64,
}

/// The partition of each image, and the distinct images in partition order.
pub(super) fn partitions<'a>(pod: &PodToPrepare<'a>) -> (Vec<u32>, Vec<ImageFile<'a>>) {
    let mut files: Vec<ImageFile<'a>> = Vec::new();
    let numbers = pod.images.iter().map(|image| {
        let (path, size_bytes) = (image.rootfs.path.as_path(), image.rootfs.size_bytes);
        let index = files.iter().position(|file| file.path == path).unwrap_or_else(|| {
            files.push(ImageFile { path, size_bytes });
            files.len() - 1
        });
        FIRST_IMAGE_PARTITION + u32::try_from(index).unwrap_or(u32::MAX - FIRST_IMAGE_PARTITION)
    });
    (numbers.collect(), files)
}

/// The files of a pod by their paths, and warnings about the images.
pub(super) struct PodFiles {
    pub(super) files: Vec<(String, SmallFile)>,
    pub(super) warnings: Vec<String>,
}

/// Where the profiles of containers come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProfileSources<'a> {
    /// The directories of seccomp profiles.
    pub(super) seccomp: &'a [PathBuf],
    /// The names of AppArmor profiles in the order of the containers; fewer, if the others have none.
    pub(super) app_armor: &'a [Option<String>],
}

/// Makes the files of a pod in memory. `partitions` are those of its images.
pub(super) fn pod_files(
    pod: &PodToPrepare<'_>,
    sources: ProfileSources<'_>,
    (partitions, volumes): (&[u32], &Volumes),
    network: &Settled,
) -> Result<PodFiles, RuntimeError> {
    let plan = pod.plan;
    let mut warnings = Vec::new();
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let site = Site::guest();
    let facts = check::facts(pod, network);
    let mut containers = Vec::with_capacity(plan.containers.len());
    let seen = volumes.mounts.iter().zip(&volumes.layers);
    let all = plan.containers.iter().zip(pod.images).zip(partitions).zip(seen);
    let mut app_armor = sources.app_armor.iter();
    for (((container, image), partition), (mounts, layer)) in all {
        let process = resolve_process(container, &image.config, &facts)
            .map_err(|source| RuntimeError::Resolve { container: container.name.clone(), source })?;
        let profiles = Profiles {
            seccomp: seccomp_file::of(container, sources.seccomp)?,
            app_armor: app_armor.next().cloned().flatten(),
        };
        let config = oci::container_config(plan, container, &process, &site, profiles);
        files.push(capped(&container_config(&container.name), oci::to_json(&config))?);
        warnings.extend(process.warning);
        containers.push(ContainerPlan {
            name: container.name.clone(),
            rootfs: Rootfs::Partition(*partition),
            layer: *layer,
            user: process.user,
            image_groups: plan.image_groups,
            privilege: container.security.privilege,
            file_variables: process.file_variables,
            stdio: container.stdio,
            stdin: container.stdin,
            stop_signal: process.stop_signal,
            mounts: mounts.clone(),
            role: container.role,
            restarts: container.restarts.clone(),
            probes: container.probes.clone(),
            hooks: container.hooks.clone(),
            termination_message: container.termination_message.clone(),
            directory: match plan.service_directory.contains(&container.name) {
                true => DirectoryAccess::Socket,
                false => DirectoryAccess::None,
            },
            ports: listed_ports(plan, container),
        });
    }
    let guest = GuestPlan {
        generation: magikvm_proto::GENERATION,
        pod: plan.id.clone(),
        uid: pod.uid.to_owned(),
        hostname: network.hostname(&plan.hostname).to_owned(),
        restart_policy: plan.restart_policy,
        process_namespace: plan.process_namespace,
        grace_ms: plan.grace_seconds * 1000,
        deadline_ms: plan.deadline_seconds.map(|seconds| seconds.saturating_mul(1000)),
        containers,
        volumes: volumes.plans.clone(),
        network: network.plan.clone(),
        given_address: network.given.first().copied(),
        sysctls: plan.sysctls.clone(),
        limits: PodLimits {
            cpu_millis: plan.resources.cpu_limit_millis,
            memory_bytes: plan.resources.memory_limit_bytes,
            huge_pages: huge_pages(&plan.containers),
        },
    };
    guest.check()?;
    files.push(json(SPEC_JSON, &guest)?);
    files.extend(
        oci::pod_etc(plan, network).into_iter().map(|(name, bytes)| (format!("{POD_ETC}/{name}"), bytes)),
    );
    let plain = |(path, content)| (path, SmallFile::File { mode: 0o644, gid: 0, content });
    Ok(PodFiles {
        files: files.into_iter().map(plain).chain(volumes::files(plan, &facts)).collect(),
        warnings,
    })
}

/// The ports that the service directory lists of a container.
fn listed_ports(plan: &PodPlan, container: &ContainerSpec) -> Vec<ListedPort> {
    if plan.service_directory.is_empty() {
        return Vec::new();
    }
    let listed = container.ports.iter().map(|port| ListedPort {
        name: port.name.clone(),
        port: port.container_port,
        protocol: match port.protocol {
            Protocol::Tcp => PortProtocol::Tcp,
            Protocol::Udp => PortProtocol::Udp,
            Protocol::Sctp => PortProtocol::Sctp,
        },
    });
    listed.collect()
}

fn json<T: Serialize>(path: &str, value: &T) -> Result<(String, Vec<u8>), RuntimeError> {
    capped(path, serde_json::to_vec(value))
}

fn capped(path: &str, bytes: serde_json::Result<Vec<u8>>) -> Result<(String, Vec<u8>), RuntimeError> {
    let bytes = bytes.map_err(|source| RuntimeError::Json { what: path.to_owned(), source })?;
    if bytes.len() > MAX_PLAN_SIZE {
        return Err(RuntimeError::TooLarge { what: path.to_owned(), size: bytes.len() });
    }
    Ok((path.to_owned(), bytes))
}
