//! `pod-microvm-containers`: one VM for the pod. The host writes the pod's plan into a small file system, makes a composite disk of it and
//! the images, and starts a VMM. The guest runs the containers.

use super::control::BySignals;
use super::files::{self, PodFiles, ProfileSources};
use super::volumes::{self, Volumes};
use super::{PodRuntime, PodToPrepare, Prepared, Running, RuntimeError, Sandbox, check, network};
use crate::image::erofs;
use crate::image::{Wanted, host_processor};
use crate::jail::{self, Cgroup, Requirement};
use crate::manifest::PodPlan;
use crate::nested::{self, Nested};
use crate::net::settle::Ways;
use crate::process::{self, Ended, Motion};
use crate::store::atomic::{self, FileError};
use crate::store::layout::PodDir;
use crate::store::sandbox::{SandboxEnd, SandboxRecord, VmRecord};
use crate::store::text::chain;
use crate::store::undo::{Scope, Step, Undo};
use crate::vmm::console::{self, ConsoleTail};
use crate::vmm::disk::{self, Part};
use crate::vmm::end::{self, Seen};
use crate::vmm::qmp::DiskWatch;
use crate::vmm::report::Reports;
use crate::vmm::scratch;
use crate::vmm::{
    Accel, DriverOptions, JailOptions, KernelChoice, Places, Unavailable, VmConfig, Vmm, VmmKind, driver,
};
use crate::volume::claims::ClaimUse;
use magikvm_proto::guest_image::{self, Arch, GuestManifest, GuestManifestError};
use magikvm_proto::limits::MAX_LASTING_DISKS;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for reading the rest of the console after the end of a VMM.
const CONSOLE_END_WAIT: Duration = Duration::from_millis(500);
/// Last lines of the console that are searched for a panic.
const CONSOLE_LINES: usize = 200;

/// Memory of the VM's processes in addition to the guest's memory. QEMU keeps up to a GiB of translated code.
const VMM_MEMORY_MIB: u64 = 512;
const EMULATOR_MEMORY_MIB: u64 = 1536;
/// Threads and processes of a pod: far more than its VMM needs, and far fewer than the host allows.
const MAX_PIDS: u64 = 1024;

/// The alternative on hosts without hardware virtualization.
const WITHOUT_HARDWARE: &str =
    " Or run without hardware isolation with `--accel tcg` (slow, and not a security boundary).";

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("it has no {}", guest_image::MANIFEST)]
    Missing(#[source] std::io::Error),
    #[error("its {} is not valid", guest_image::MANIFEST)]
    Manifest(#[source] GuestManifestError),
    /// Built for another version of magikvm.
    #[error("it speaks generation {found} of the wire, this magikvm {expected}")]
    Generation { found: u32, expected: u32 },
    /// The image was replaced by one for another processor since the pod was planned.
    #[error("it was for {expected} a moment ago and is for {found} now")]
    Changed { expected: Arch, found: Arch },
    /// A part is missing or incomplete.
    #[error("its part {part} is missing or damaged ({found} bytes, {expected} expected)")]
    Part { part: String, found: u64, expected: u64 },
}

/// The options of a pod's VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmOptions {
    pub vmm: VmmKind,
    #[serde(default)]
    pub kernel: KernelChoice,
    pub accel: Accel,
    pub guest: PathBuf,
    /// What happens if the host does not offer an isolation layer.
    #[serde(default)]
    pub jail: Requirement,
}

/// The best variant of programs that QEMU's emulation of an x86_64 processor runs (`-cpu max`): it has had AVX2 since QEMU 7.2, and no
/// AVX-512.
const EMULATED_X86_64: &str = "v3";

#[derive(Debug)]
pub struct MicroVm {
    options: VmOptions,
    vmm: Box<dyn Vmm>,
    ways: Ways,
    templates: PathBuf,
    profiles: Vec<PathBuf>,
    /// The manifest of the guest image, or why it cannot be used; None for VMs that boot none.
    image: Option<Result<GuestManifest, GuestError>>,
    arch: Arch,
}

impl MicroVm {
    /// The VM's architecture is that of the guest image. `probe` reports an image that cannot be read.
    pub fn new(options: VmOptions, places: Places) -> Self {
        let VmOptions { vmm: kind, kernel, .. } = options;
        let image = needs_guest(kind).then(|| check_guest(&options.guest));
        let stated = image.as_ref().and_then(|image| Some(image.as_ref().ok()?.arch));
        let arch = stated.or_else(Arch::native).unwrap_or(Arch::X86_64);
        let ways = network::ways(kind, kernel);
        let (templates, profiles) = (places.templates.clone(), places.seccomp.clone());
        let vmm = driver(kind, DriverOptions { guest: arch, kernel, places });
        Self { ways, templates, profiles, vmm, options, image, arch }
    }

    /// Makes the control group of a pod, or returns why there is none.
    fn cgroup(
        &self,
        pod: &PodToPrepare<'_>,
        undo: &mut Undo,
    ) -> Result<Result<Cgroup, String>, RuntimeError> {
        if self.image.is_none() {
            return Ok(Err("it has no VM".to_owned()));
        }
        let cgroup = match jail::place_cgroup(&cgroup_name(pod.dir.path())) {
            Ok(cgroup) => cgroup,
            Err(why) => return Ok(Err(why)),
        };
        undo.plan(Scope::Run, Step::RemoveCgroup { dirs: cgroup.dirs.clone() })?;
        let beside = match self.options.accel {
            Accel::Kvm => VMM_MEMORY_MIB,
            Accel::Tcg => EMULATOR_MEMORY_MIB,
        };
        let bytes = (pod.plan.vm.memory.get() + beside) << 20;
        Ok(jail::make_cgroup(&cgroup, bytes, MAX_PIDS).map(|()| cgroup))
    }

    fn guest_error(&self, source: GuestError) -> RuntimeError {
        RuntimeError::Guest { dir: self.options.guest.clone(), source }
    }

    /// Paths of kernel and initramfs, after a check of their sizes. `magikvm-image inspect` checks their digests: reading 30 MiB at each start
    /// would cost more than the rest of the start.
    fn guest_parts(&self) -> Result<(PathBuf, PathBuf), RuntimeError> {
        let found = check_guest(&self.options.guest).map_err(|source| self.guest_error(source))?.arch;
        if found != self.arch {
            return Err(self.guest_error(GuestError::Changed { expected: self.arch, found }));
        }
        Ok((self.options.guest.join(guest_image::KERNEL), self.options.guest.join(guest_image::INITRAMFS)))
    }

    /// Whether the guest's kernel has the file system of scratch disks. That of libkrunfw does.
    fn has_scratch(&self) -> bool {
        let has = |image: &GuestManifest| image.features.contains(guest_image::FEATURE_SCRATCH);
        let kernel = self.options.kernel;
        self.image
            .as_ref()
            .and_then(|image| image.as_ref().ok())
            .is_some_and(|image| kernel == KernelChoice::Libkrunfw || has(image))
    }

    /// Makes the scratch disk and returns its name in the VM's directory.
    fn make_scratch(
        &self,
        pod: &PodToPrepare<'_>,
        volumes: &Volumes,
        dir: &Path,
        undo: &mut Undo,
    ) -> Result<String, RuntimeError> {
        undo.plan(Scope::Run, Step::RemoveDir { path: pod.scratch.to_owned() })?;
        atomic::create_dir_all(pod.scratch, 0o700)?;
        let file = pod.scratch.join("disk");
        scratch::make(&file, &volumes.rooms, &self.templates)?;
        let link = dir.join(SCRATCH);
        std::os::unix::fs::symlink(&file, &link).map_err(FileError::at("link", &link))?;
        Ok(SCRATCH.to_owned())
    }

    /// Links the disks that outlive the pod into the VM's directory, and returns the names of the links.
    fn link_disks(&self, volumes: &Volumes, dir: &Path) -> Result<Vec<String>, RuntimeError> {
        let disks = volumes.disks();
        if disks.len() > MAX_LASTING_DISKS {
            return Err(RuntimeError::TooManyDisks { found: disks.len() });
        }
        if let Some(used) = volumes.claims.iter().find(|used| disks.contains(&used.path.as_path()))
            && self.image.is_some()
            && !self.has_scratch()
        {
            return Err(RuntimeError::NoLasting { name: used.record.id.name.to_string() });
        }
        let link = |(number, disk): (usize, &&Path)| {
            let name = format!("lasting{number}");
            let link = dir.join(&name);
            std::os::unix::fs::symlink(disk, &link).map_err(FileError::at("link", &link))?;
            Ok(name)
        };
        disks.iter().enumerate().map(link).collect()
    }

    /// The host's processor can execute only guests of its own architecture.
    fn check_processor(&self) -> Result<(), Unavailable> {
        if self.options.accel == Accel::Tcg || Some(self.arch) == Arch::native() {
            return Ok(());
        }
        let (guest, here) = (self.arch, std::env::consts::ARCH);
        Err(Unavailable {
            reason: format!(
                "the guest image in {} is for {guest}, the host's processor is {here}; --accel tcg emulates it",
                self.options.guest.display()
            ),
            remedy: format!("Name a guest image for {here} with `--guest DIR` or MAGIKVM_GUEST."),
        })
    }

    /// Checks that a guest can have what the pod asks for.
    fn check_nested(&self, plan: &PodPlan) -> Result<(), RuntimeError> {
        let reason = match (plan.nested, self.options.accel) {
            (Nested::Masked, _) => return Ok(()),
            (Nested::Exposed, _) if self.arch != Arch::X86_64 => "only guests of x86_64 can have it",
            (Nested::Exposed, Accel::Tcg) => return Ok(()),
            (Nested::Exposed, Accel::Kvm) if nested::is_offered() => return Ok(()),
            (Nested::Exposed, Accel::Kvm) => {
                "the host's KVM does not offer it: load kvm_intel or kvm_amd with nested=1, or leave it out"
            }
        };
        Err(RuntimeError::NoNested { reason })
    }

    /// Checks that the host has everything that the VM needs.
    fn check(&self) -> Result<(), Unavailable> {
        self.check_processor()?;
        self.vmm.probe(self.options.accel)?;
        if let Some(Err(error)) = &self.image {
            return Err(Unavailable {
                reason: format!(
                    "the guest image in {} cannot be used: {}",
                    self.options.guest.display(),
                    chain(error)
                ),
                remedy:
                    "Make one with `magikvm-image build`, or name one with `--guest DIR` or MAGIKVM_GUEST."
                        .to_owned(),
            });
        }
        Ok(())
    }
}

fn needs_guest(kind: VmmKind) -> bool {
    match kind {
        VmmKind::Krun | VmmKind::Qemu => true,
        #[cfg(all(feature = "testing", target_os = "linux"))]
        VmmKind::Fake => false,
    }
}

/// Checks that a guest image can be used.
pub fn check_guest(dir: &Path) -> Result<GuestManifest, GuestError> {
    let max = u64::try_from(guest_image::MAX_GUEST_MANIFEST_SIZE).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(dir.join(guest_image::MANIFEST))
        .and_then(|file| file.take(max + 1).read_to_end(&mut bytes))
        .map_err(GuestError::Missing)?;
    let manifest = GuestManifest::parse(&bytes).map_err(GuestError::Manifest)?;
    let expected = magikvm_proto::GENERATION;
    if manifest.generation != expected {
        return Err(GuestError::Generation { found: manifest.generation, expected });
    }
    for (name, part) in &manifest.parts {
        let found = fs::metadata(dir.join(name)).map_or(0, |there| there.len());
        if found != part.size {
            return Err(GuestError::Part { part: name.clone(), found, expected: part.size });
        }
    }
    Ok(manifest)
}

impl PodRuntime for MicroVm {
    fn platform(&self) -> Wanted {
        let processor = match (self.arch, self.options.accel) {
            (Arch::X86_64, Accel::Tcg) => EMULATED_X86_64,
            // The VM has the host's processor.
            (Arch::X86_64, Accel::Kvm) => host_processor(),
            (Arch::Aarch64, _) => "v8",
        };
        Wanted::guest(self.arch, processor)
    }

    fn record(&self, plan: &PodPlan) -> SandboxRecord {
        let VmOptions { vmm, accel, .. } = self.options;
        SandboxRecord::Vm(VmRecord {
            memory_mib: plan.vm.memory.get(),
            vcpus: plan.vm.vcpus.get(),
            driver: format!("{vmm:?}/{accel:?}").to_lowercase(),
        })
    }

    fn probe(&self) -> Result<(), Unavailable> {
        self.check().map_err(|unavailable| match self.options.accel {
            Accel::Kvm if cfg!(target_os = "linux") => {
                Unavailable { remedy: format!("{}{WITHOUT_HARDWARE}", unavailable.remedy), ..unavailable }
            }
            Accel::Kvm | Accel::Tcg => unavailable,
        })
    }

    fn check_plan(&self, pod: &PodToPrepare<'_>) -> Result<(), RuntimeError> {
        if self.image.is_some() {
            self.guest_parts()?;
        }
        self.check_nested(pod.plan)?;
        files::check_artifacts(pod)?;
        check::check(pod, &self.profiles, &network::settle(pod.plan, self.ways)?)
    }

    fn prepare(&self, pod: &PodToPrepare<'_>, undo: &mut Undo) -> Result<Prepared, RuntimeError> {
        let (kernel, initramfs) = if self.image.is_some() { self.guest_parts()? } else { Default::default() };
        let dir = pod.dir.vm();
        undo.plan(Scope::Run, Step::RemoveDir { path: dir.clone() })?;
        atomic::create_dir_all(&dir, 0o700)?;

        self.check_nested(pod.plan)?;
        files::check_artifacts(pod)?;
        let (partitions, images) = files::partitions(pod);
        let of_volumes = partitions.get(pod.plan.containers.len()..).unwrap_or_default();
        let volumes = volumes::plan(pod, self.has_scratch(), of_volumes)?;
        let lasting = self.link_disks(&volumes, &dir)?;
        let network = network::settle(pod.plan, self.ways)?;
        let sources = ProfileSources { seccomp: &self.profiles, app_armor: &[] };
        let PodFiles { files, mut warnings } =
            files::pod_files(pod, sources, (&partitions, &volumes), &network)?;
        let pod_files = dir.join("pod.erofs");
        let mut out = File::create_new(&pod_files).map_err(FileError::at("create", &pod_files))?;
        erofs::write_small_tree(files, &mut out)?;
        let size = out.seek(SeekFrom::End(0)).map_err(FileError::at("measure", &pod_files))?;
        warnings.extend(network.warning.clone());
        warnings.extend(volumes.warnings.iter().cloned());
        let mut parts = vec![Part { path: pod_files, size }];
        parts.extend(images.iter().map(|image| Part { path: image.path.to_owned(), size: image.size_bytes }));
        disk::compose(&dir, &parts)?;
        let scratch =
            if volumes.rooms.is_empty() { None } else { Some(self.make_scratch(pod, &volumes, &dir, undo)?) };

        let cgroup = self.cgroup(pod, undo)?;
        let config = Box::new(VmConfig {
            name: format!("magikvm-{}.{}", pod.plan.id.namespace, pod.plan.id.name),
            id: pod.uid.to_owned(),
            memory_mib: pod.plan.vm.memory.get(),
            vcpus: pod.plan.vm.vcpus.get(),
            kernel,
            initramfs,
            disk: disk::DESCRIPTOR.to_owned(),
            accel: self.options.accel,
            scratch,
            lasting,
            shared: Some(volumes.shared).filter(|shared| !shared.is_empty()).map(Arc::new),
            nic: None,
            held: volumes.claims.first().map(ClaimUse::lock),
            nested: pod.plan.nested,
            jail: JailOptions { requirement: self.options.jail, cgroup },
        });
        Ok(Prepared::MicroVm { config, dir, network: Box::new(network), warnings, claims: volumes.claims })
    }

    fn start(&self, prepared: Prepared, undo: &mut Undo) -> Result<Box<dyn Sandbox>, RuntimeError> {
        #[allow(irrefutable_let_patterns, reason = "there are other classes on Linux")]
        let Prepared::MicroVm { mut config, dir, network, warnings: _, claims } = prepared else {
            return Err(RuntimeError::OtherClass);
        };
        let out_of_memory_kills = end::out_of_memory_kills();
        let tail = ConsoleTail::default();
        let mut net = network::start(&network, &config)?;
        config.nic = net.nic.take();
        let mut child = self.vmm.spawn(&config, &dir)?;
        drop(config);
        child.processes.append(&mut net.processes);
        // Until this line the kernel's parent-death signal protects the processes in place of the journal.
        for process in &child.processes {
            undo.plan(Scope::Run, process.reference.undo_step())?;
        }
        console::follow(child.console, child.diagnostics, &dir.with_file_name("log"), &tail)?;
        let references = child.processes.iter().map(|process| process.reference.clone()).collect();
        let running = Running {
            control: Arc::new(BySignals(references)),
            processes: child.processes,
            connector: child.connector,
            tail,
            network: net.seen,
            _claims: claims,
            _directories: Vec::new(),
        };
        let (reports, disk) = (child.reports, child.disk);
        Ok(Box::new(MicroVmSandbox { running, reports, disk, out_of_memory_kills }))
    }
}

#[derive(Debug)]
struct MicroVmSandbox {
    running: Running,
    reports: Option<Reports>,
    disk: Option<DiskWatch>,
    /// The count at the start of the VM.
    out_of_memory_kills: u64,
}

impl Sandbox for MicroVmSandbox {
    fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    fn disk(&mut self) -> Option<DiskWatch> {
        self.disk.take()
    }

    fn wait(&mut self, on_motion: &mut dyn FnMut(Motion)) -> SandboxEnd {
        let Ended { role, name, status, violation } =
            process::wait_first(&mut self.running.processes, on_motion);
        let reports = self.reports.take().map(Reports::read).unwrap_or_default();
        // The guest's last output may still be in the pipe.
        self.running.tail.wait_end(Instant::now() + CONSOLE_END_WAIT);
        end::of(Seen {
            role,
            process: &name,
            status,
            violation: violation.as_ref(),
            reports: &reports,
            console: &self.running.tail.lines(CONSOLE_LINES),
            host_was_out_of_memory: end::out_of_memory_kills() > self.out_of_memory_kills,
        })
    }
}

/// The step that undoes the control groups of the pod in this directory, of whatever class it is. All at once, because a process that one
/// hierarchy freezes leaves no group of the others.
pub fn group_step(dir: &PodDir) -> Step {
    let mut dirs = Vec::new();
    for name in [cgroup_name(dir.path()), network_cgroup_name(dir.path())] {
        dirs.extend(jail::all_cgroups(&name));
    }
    Step::RemoveCgroup { dirs }
}

/// The group of the processes that are a pod's network, where its own group belongs to the pod.
pub(super) fn network_cgroup_name(dir: &Path) -> String {
    format!("{}.net", cgroup_name(dir))
}

/// Unique among all pods of the host, of any state directory: pods of one state directory have different directories.
pub(super) fn cgroup_name(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let root = Sha256::digest(dir.parent().unwrap_or(dir).as_os_str().as_encoded_bytes());
    format!("{name}.{:02x}{:02x}{:02x}{:02x}", root[0], root[1], root[2], root[3])
}

/// Name of the scratch disk in the VM's directory: a link, because that directory may be in memory.
const SCRATCH: &str = "scratch";
