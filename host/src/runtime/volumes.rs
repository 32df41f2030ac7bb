//! A pod's volumes for the guest: which of them are in the pod's private file system, on its scratch disk, and shared by the host. And where
//! containers keep the changes to their root file systems.

use super::{PodToPrepare, RuntimeError};
use crate::image::erofs::SmallFile;
use crate::manifest::plan::{MountSpec, RootFilesystem, RootPlace, VolumeSource, VolumeSpec};
use crate::manifest::{Claim, ContainerSpec, PodFacts, PodPlan, RuntimeClass};
use crate::store::atomic::FileError;
use crate::vmm::lasting;
use crate::vmm::scratch::Room;
use crate::volume::claims::{ClaimError, ClaimUse, Claims, Origin, Terms, set_group};
use crate::volume::host::OpenedPath;
use crate::volume::tree::Shared;
use crate::volume::{ClaimForm, GroupChange, HostPathKind, VolumeError};
use magikvm_proto::id::{PodId, PodName};
use magikvm_proto::plan::Layer;
use magikvm_proto::site::volume_files;
use magikvm_proto::volume::{self as guest, Access, MountPlan, Part, Regroup, VolumePlan};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Bytes of the directories that a layer consists of before its container starts: those of overlayfs, and the usual mount points. A limit is what
/// the container has beside them.
const EMPTY_LAYER: u64 = 24 * 4096;
/// Permissions of files in volumes that have a group, which may read them.
const GROUP_READS: u16 = 0o440;

#[derive(Debug, Default)]
pub(super) struct Volumes {
    pub(super) plans: Vec<VolumePlan>,
    pub(super) mounts: Vec<Vec<MountPlan>>,
    /// One for each container.
    pub(super) layers: Vec<Layer>,
    pub(super) rooms: Vec<Room>,
    /// Index of the room for everything without a limit.
    shared_room: Option<usize>,
    pub(super) shared: Shared,
    /// The volumes of its entries, in their order.
    pub(super) shared_names: Vec<String>,
    /// What the pod uses until it ends.
    pub(super) claims: Vec<ClaimUse>,
    pub(super) warnings: Vec<String>,
}

/// A file or directory of the host that is shared, and whether the pod may change it at all.
type Found = Option<(OpenedPath, Access)>;

/// What holds the content of a claim, and whether no pod may change it.
enum Place {
    Directory(PathBuf, Access),
    /// A disk with this GUID.
    Disk(String),
}

/// Finds everything that the volumes need from the host, except the content of volumes that are files ([`files`]). `scratch` tells whether the
/// guest can keep layers of containers on a scratch disk. `images` are the partitions of the volumes that are images, in their order.
pub(super) fn plan(
    to_prepare: &PodToPrepare<'_>,
    scratch: bool,
    images: &[u32],
) -> Result<Volumes, RuntimeError> {
    let pod = to_prepare.plan;
    let mut volumes = Volumes::default();
    let mut images = images.iter().copied();
    for container in &pod.containers {
        let layer = volumes.layer(pod, container, scratch);
        volumes.layers.push(layer);
    }
    let mut found: Vec<Found> = Vec::with_capacity(pod.volumes.len());
    for volume in &pod.volumes {
        let of_host = match &volume.source {
            VolumeSource::HostPath { path, kind } => {
                Some((OpenedPath::open(path, *kind).map_err(of_volume(volume))?, Access::ReadWrite))
            }
            VolumeSource::Claim { name, make, access } => {
                match volumes.claim(volume, name, make.as_ref(), to_prepare)? {
                    Place::Directory(path, most) => {
                        let found =
                            OpenedPath::open(&path, HostPathKind::Directory).map_err(of_volume(volume))?;
                        Some((found, most.min(*access)))
                    }
                    Place::Disk(disk) => {
                        let regroup = match pod.volume_group_change {
                            GroupChange::Always => Regroup::Always,
                            GroupChange::OnRootMismatch => Regroup::OnRootMismatch,
                        };
                        let source = guest::VolumeSource::Lasting { disk, regroup };
                        found.push(None);
                        volumes.plans.push(VolumePlan { source, group: pod.volume_group });
                        continue;
                    }
                }
            }
            VolumeSource::Memory { .. }
            | VolumeSource::Disk { .. }
            | VolumeSource::Files(_)
            | VolumeSource::Image { .. } => None,
        };
        found.push(of_host);
        let plan = volumes.volume(volume, pod, &mut images);
        volumes.plans.push(plan);
    }
    let mut entries = HashMap::new();
    for container in &pod.containers {
        let mut mounts = Vec::with_capacity(container.mounts.len());
        for mount in &container.mounts {
            let mut access = mount.access;
            let part = match (pod.volumes.get(mount.volume), found.get(mount.volume)) {
                (Some(volume), Some(Some((found, most)))) => {
                    access = if *most == Access::ReadOnly { *most } else { access };
                    Part::Shared(volumes.entry(volume, found, mount, access, &mut entries)?)
                }
                _ => mount.sub_path.clone().map_or(Part::Whole, Part::Path),
            };
            mounts.push(MountPlan {
                volume: u32::try_from(mount.volume).unwrap_or(u32::MAX),
                part,
                destination: mount.path.clone(),
                access,
            });
        }
        // A mount beneath another one comes after it.
        mounts.sort_by_key(|mount| guest::names(&mount.destination).count());
        volumes.mounts.push(mounts);
    }
    Ok(volumes)
}

fn of_volume(volume: &VolumeSpec) -> impl FnOnce(VolumeError) -> RuntimeError {
    let name = volume.name.clone();
    move |source| RuntimeError::Volume { name, source }
}

/// What a pod asks of a claim that it makes. The host's kernel mounts no disk that a VM may have written, so that pods without one have directories.
pub(super) fn terms(pod: &PodPlan, claim: &Claim) -> Terms {
    Terms {
        access_modes: claim.access_modes.clone(),
        storage_bytes: Some(claim.storage_bytes),
        form: match pod.runtime_class {
            RuntimeClass::PodMicrovmContainers => claim.form(),
            RuntimeClass::PodContainers | RuntimeClass::PodWasm => ClaimForm::Directory,
        },
        labels: claim.labels.clone(),
    }
}

/// Entries by volume, path in it and access.
type Entries<'a> = HashMap<(usize, Option<&'a str>, Access), u32>;

impl Volumes {
    fn volume(
        &mut self,
        volume: &VolumeSpec,
        pod: &PodPlan,
        images: &mut impl Iterator<Item = u32>,
    ) -> VolumePlan {
        let source = match &volume.source {
            VolumeSource::HostPath { .. } | VolumeSource::Claim { .. } => {
                return VolumePlan { source: guest::VolumeSource::Shared, group: None };
            }
            VolumeSource::Image { .. } => {
                // There is one for each; the guest refuses 0.
                let partition = images.next().unwrap_or(0);
                return VolumePlan { source: guest::VolumeSource::Image { partition }, group: None };
            }
            VolumeSource::Memory { size_bytes } => guest::VolumeSource::Memory { size_bytes: *size_bytes },
            VolumeSource::Disk { size_bytes } => {
                guest::VolumeSource::Disk { partition: self.partition(*size_bytes, pod) }
            }
            VolumeSource::Files(_) => guest::VolumeSource::Files,
        };
        VolumePlan { source, group: pod.volume_group }
    }

    /// Begins the use of a claim, unless another volume of the pod is the same one.
    fn claim(
        &mut self,
        volume: &VolumeSpec,
        name: &PodName,
        make: Option<&Claim>,
        pod: &PodToPrepare<'_>,
    ) -> Result<Place, RuntimeError> {
        let failed =
            |source: ClaimError| RuntimeError::Claim { name: volume.name.clone(), source: Box::new(source) };
        let id = PodId { namespace: pod.plan.id.namespace.clone(), name: name.clone() };
        if let Some(used) = self.claims.iter().find(|used| used.record.id == id) {
            return Ok(place(used));
        }
        let terms = make.map(|claim| terms(pod.plan, claim));
        let used = Claims::at(pod.claims)
            .attach_beside(&id, terms.as_ref(), &pod.plan.id, self.claims.first())
            .map_err(failed)?;
        if used.record.form == ClaimForm::Disk {
            let bytes = used.record.storage_bytes.unwrap_or_default();
            lasting::prepare(&used.path, used.record.guid(), bytes)
                .map_err(|source| RuntimeError::Lasting { name: volume.name.clone(), source })?;
            let found = place(&used);
            self.claims.push(used);
            return Ok(found);
        }
        match pod.plan.volume_group {
            Some(group) if nix::unistd::geteuid().is_root() => {
                set_group(&used.path, group, pod.plan.volume_group_change).map_err(failed)?;
            }
            Some(_) => self.warnings.push(format!(
                "volume {}: fsGroup has no effect on a claim, because only root may give files to a group",
                volume.name
            )),
            None => {}
        }
        if let Some(claim) = make
            && (used.origin == Origin::Made || claim.form() == ClaimForm::Disk)
        {
            self.warnings.push(format!(
                "volume {}: {id} is a directory, for which the {} MiB that it requests are not a limit",
                volume.name,
                claim.storage_bytes >> 20
            ));
        }
        let found = place(&used);
        self.claims.push(used);
        Ok(found)
    }

    /// The disks of the claims that the pod uses.
    pub(super) fn disks(&self) -> Vec<&Path> {
        let disks = self.claims.iter().filter(|used| used.record.form == ClaimForm::Disk);
        disks.map(|used| used.path.as_path()).collect()
    }

    /// A root file system that is read-only keeps nothing but mount points.
    fn layer(&mut self, pod: &PodPlan, container: &ContainerSpec, scratch: bool) -> Layer {
        let limit = container.resources.disk_limit_bytes;
        let writable = container.security.root_filesystem == RootFilesystem::Writable;
        match pod.root {
            RootPlace::Disk if scratch && writable => {
                Layer::Disk { partition: self.partition(limit.map(|bytes| bytes + EMPTY_LAYER), pod) }
            }
            RootPlace::Disk | RootPlace::Memory => {
                Layer::Memory { size_bytes: limit.or(pod.disk_limit_bytes) }
            }
        }
    }

    /// One file system for each limit, and one for everything without.
    fn partition(&mut self, size_bytes: Option<u64>, pod: &PodPlan) -> u32 {
        let add = |rooms: &mut Vec<Room>, room: Room| {
            rooms.push(room);
            rooms.len() - 1
        };
        let index = match size_bytes {
            Some(bytes) => add(&mut self.rooms, Room::Limited(bytes)),
            None => *self.shared_room.get_or_insert_with(|| add(&mut self.rooms, shared_room(pod))),
        };
        u32::try_from(index).unwrap_or(u32::MAX - 1) + 1
    }

    fn entry<'a>(
        &mut self,
        volume: &VolumeSpec,
        found: &OpenedPath,
        mount: &'a MountSpec,
        access: Access,
        entries: &mut Entries<'a>,
    ) -> Result<u32, RuntimeError> {
        let key = (mount.volume, mount.sub_path.as_deref(), access);
        if let Some(&number) = entries.get(&key) {
            return Ok(number);
        }
        let add = |shared: &mut Shared, found: &OpenedPath| {
            let failed = FileError::at("share", Path::new(&volume.name));
            shared.add(found, access).map_err(failed)
        };
        let number = match &mount.sub_path {
            None => add(&mut self.shared, found)?,
            Some(path) => add(&mut self.shared, &found.within(path).map_err(of_volume(volume))?)?,
        };
        self.shared_names.push(volume.name.clone());
        entries.insert(key, number);
        Ok(number)
    }
}

fn place(used: &ClaimUse) -> Place {
    match used.record.form {
        ClaimForm::Disk => Place::Disk(
            used.record.guid().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")),
        ),
        ClaimForm::Directory => {
            let most = if used.record.is_read_only() { Access::ReadOnly } else { Access::ReadWrite };
            Place::Directory(used.path.clone(), most)
        }
    }
}

/// What the pod's limit leaves beside those of its containers.
fn shared_room(pod: &PodPlan) -> Room {
    let limits = || pod.containers.iter().map(|container| container.resources.disk_limit_bytes);
    let layers = limits().filter(Option::is_none).map(|_| EMPTY_LAYER).sum::<u64>();
    let left = |all: u64| all.saturating_sub(limits().flatten().sum());
    pod.disk_limit_bytes.map_or(Room::Shared, |all| Room::Limited(left(all) + layers))
}

/// The content of volumes in the pod's private file system.
pub(super) fn files(pod: &PodPlan, facts: &PodFacts) -> Vec<(String, SmallFile)> {
    let mut built = Vec::new();
    for (index, volume) in (0..).zip(&pod.volumes) {
        let VolumeSource::Files(files) = &volume.source else { continue };
        let dir = volume_files(index);
        let group = pod.volume_group;
        for file in files {
            let mode = file.mode | group.map_or(0, |_| GROUP_READS);
            let content = match file.late {
                Some(field) => facts.value(field).unwrap_or_default().into_bytes(),
                None => file.content.bytes().to_vec(),
            };
            built.push((
                format!("{dir}/{}", file.path),
                SmallFile::File { mode, gid: group.unwrap_or(0), content },
            ));
        }
        built.push((dir, SmallFile::Directory));
    }
    built
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layout::PodDir;

    fn planned(spec: &str, scratch: bool) -> Volumes {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {{{spec}}}}}");
        let base = tempfile::tempdir().unwrap();
        let pod = PodToPrepare {
            plan: &crate::manifest::parse(text.as_bytes(), "pod.yaml").unwrap(),
            uid: "u",
            images: &[],
            dir: &PodDir::at(base.path().join("pod")),
            scratch: &base.path().join("scratch"),
            claims: &base.path().join("volumes"),
        };
        plan(&pod, scratch, &[7, 9]).unwrap()
    }

    #[test]
    fn images_have_their_partitions() {
        let found = planned(
            "containers: [{name: a, image: x}], volumes: [{name: one, image: {reference: x}}, {name: v, emptyDir: {}}, {name: two, image: {reference: z}}]",
            true,
        );
        let image = |partition| guest::VolumeSource::Image { partition };
        assert_eq!((&found.plans[0].source, &found.plans[2].source), (&image(7), &image(9)));
    }

    const CONTAINERS: &str = "containers: [{name: a, image: x}, {name: b, image: x, resources: {limits: {ephemeral-storage: 1Gi}}}, \
        {name: c, image: x}, {name: d, image: x, securityContext: {readOnlyRootFilesystem: true}}], volumes: [{name: v, emptyDir: {}}]";

    #[test]
    fn a_container_with_a_limit_has_a_file_system_and_the_others_share_one() {
        let disk = |partition| Layer::Disk { partition };
        let found = planned(CONTAINERS, true);
        assert_eq!(found.layers, [disk(1), disk(2), disk(1), Layer::Memory { size_bytes: None }]);
        assert_eq!(found.rooms, [Room::Shared, Room::Limited((1 << 30) + EMPTY_LAYER)]);
        assert_eq!(found.plans[0].source, guest::VolumeSource::Disk { partition: 1 });
        let found =
            planned(&format!("{CONTAINERS}, resources: {{limits: {{ephemeral-storage: 3Gi}}}}"), true);
        assert_eq!(found.rooms[0], Room::Limited((2 << 30) + 3 * EMPTY_LAYER));
    }

    #[test]
    fn without_a_scratch_disk_limits_hold_in_memory() {
        let memory = |size_bytes| Layer::Memory { size_bytes };
        let found = planned(CONTAINERS, false);
        assert_eq!(found.layers, [memory(None), memory(Some(1 << 30)), memory(None), memory(None)]);
        assert_eq!(found.rooms, [Room::Shared], "the volume");
    }
}
