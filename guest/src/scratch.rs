//! The file systems of the scratch disk: mounted while the pod's plan is read, so that no container waits for them.

use crate::lasting;
use crate::load::{self, LoadError};
use crate::trim;
use magikvm_containers::pod::make_dir;
use magikvm_proto::path::SCRATCH_DISK;
use magikvm_proto::plan::{GuestPlan, Layer};
use magikvm_proto::site::Site;
use magikvm_proto::volume::VolumeSource;
use nix::mount::MsFlags;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::thread::JoinHandle;

/// Tables of inodes are zeros on a new disk and need no initialization, and bitmaps are read when they are needed: at the start of a pod everything
/// else is more urgent.
const OPTIONS: &str = "noinit_itable,no_prefetch_block_bitmaps";

/// File systems that are being mounted.
#[derive(Debug)]
pub(crate) struct Early(JoinHandle<Result<BTreeSet<u32>, LoadError>>);

/// Begins to mount the file systems that are there already, whatever the plan will say.
pub(crate) fn begin(site: &Site) -> io::Result<Early> {
    let site = site.clone();
    let mount = move || {
        // A pod without a scratch disk may have a disk in its place that outlives it.
        let first = if lasting::is_of_pod(SCRATCH_DISK) { 1 } else { u32::MAX };
        let there = (first..u32::MAX).take_while(|partition| Path::new(&device(*partition)).exists());
        there.map(|partition| mount(&site, partition).map(|()| partition)).collect()
    };
    std::thread::Builder::new().name("scratch".to_owned()).spawn(mount).map(Early)
}

impl Early {
    /// Waits until all file systems that the plan names are mounted.
    pub(crate) fn finish(self, site: &Site, plan: &GuestPlan) -> Result<(), LoadError> {
        let panicked =
            |_| LoadError::Thread(io::Error::other("the thread that mounts scratch disks panicked"));
        let mounted = self.0.join().map_err(panicked)??;
        let named = partitions(plan);
        named.difference(&mounted).try_for_each(|partition| mount(site, *partition))?;
        trim::start(named.into_iter().map(|partition| site.scratch(partition)).collect())
            .map_err(LoadError::Thread)
    }
}

fn partitions(plan: &GuestPlan) -> BTreeSet<u32> {
    let layers = plan.containers.iter().filter_map(|container| match container.layer {
        Layer::Disk { partition } => Some(partition),
        Layer::Memory { .. } => None,
    });
    let volumes = plan.volumes.iter().filter_map(|volume| match volume.source {
        VolumeSource::Disk { partition } => Some(partition),
        _ => None,
    });
    layers.chain(volumes).collect()
}

fn device(partition: u32) -> String {
    format!("{SCRATCH_DISK}{partition}")
}

fn mount(site: &Site, partition: u32) -> Result<(), LoadError> {
    let target = site.scratch(partition);
    make_dir(&target)?;
    load::mount_device(&device(partition), &target, "ext4", MsFlags::MS_NODEV, Some(OPTIONS))
}
