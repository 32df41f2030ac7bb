//! Tries what the sandbox of a pod needs of the kernel, without a pod. Each feature has a process of its own, so that the namespaces and mounts of one
//! trial change nothing of another one, and nothing is left of any of them.

use super::loop_device::{self, Use};
use super::root::mount_image;
use super::spaces::Spaces;
use super::sys::{self, Attributes};
use super::talk::Talk;
use super::{Failed, INTERFACE, at, read_settings};
use crate::sys::{Fork, exit_now, fork_single_threaded};
use magikvm_proto::sandbox::{Feature, FromSandbox, NetworkSpace, TrialSettings, Users};
use magikvm_supervisor::text::chain;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir};
use std::fs;
use std::io::{self, Read, Write};

/// Most bytes of the reason why a feature cannot be had.
const MAX_REASON: u64 = 4 << 10;

pub(super) fn main(talk: &Talk) -> Result<(), Failed> {
    let settings = read_settings(|settings: &TrialSettings| settings.generation)?;
    let spaces = Spaces::make(Users::Own { root: settings.root }, NetworkSpace::Isolated, talk);
    for feature in Feature::ALL {
        let error = match (&spaces, feature) {
            (Err(error), Feature::Namespaces) => Some(chain(error)),
            (Ok(_), Feature::Namespaces) => None,
            (Err(_), Feature::Owners | Feature::Overlays) => {
                Some("there are no namespaces for it".to_owned())
            }
            (spaces, _) => apart(|| attempt(feature, &settings, spaces.as_ref().ok()))
                .map_err(at("try what a pod needs"))?,
        };
        talk.tell(&FromSandbox::Tried { feature, error }, &[]).map_err(at("tell what a pod needs"))?;
    }
    Ok(())
}

/// Does something in another process, and returns why it failed.
fn apart(work: impl FnOnce() -> Result<(), Failed>) -> io::Result<Option<String>> {
    let (reads, mut writes) = io::pipe()?;
    let child = match fork_single_threaded()? {
        Fork::Child => {
            drop(reads);
            let said = work().err().map_or_else(|| "+".to_owned(), |error| format!("-{}", chain(&error)));
            writes.write_all(said.as_bytes()).ok();
            exit_now(0)
        }
        Fork::Parent { child } => child,
    };
    drop(writes);
    let mut said = Vec::new();
    let read = reads.take(MAX_REASON).read_to_end(&mut said);
    waitpid(Pid::from_raw(child), None).ok();
    read?;
    let said = String::from_utf8_lossy(&said);
    Ok(match said.as_ref() {
        "+" => None,
        "" => Some("the process that tried it has ended".to_owned()),
        reason => Some(reason.trim_start_matches('-').to_owned()),
    })
}

/// Tries one feature in a process of its own.
fn attempt(feature: Feature, settings: &TrialSettings, spaces: Option<&Spaces>) -> Result<(), Failed> {
    match feature {
        Feature::Namespaces => Ok(()),
        Feature::Images => mount_image(&settings.image).map(drop).map_err(at("mount an image")),
        Feature::Owners => {
            // Without the files of images their directory form has to be mapped.
            let mounted = mount_image(&settings.image).or_else(|_| sys::copy_of_path(&settings.dir));
            let mounted = mounted.map_err(at("mount an image"))?;
            let attributes = Attributes { read_only: true, no_suid: false, no_devices: true };
            sys::change_mount(&mounted, attributes, spaces.and_then(Spaces::users))
                .map_err(at("map the owners of the files of an image"))
        }
        Feature::Overlays => overlay(settings, spaces),
        Feature::LoopDevices => loop_device::attach(&settings.image, Use::Read)
            .map(drop)
            .map_err(at("attach a file to a loop device")),
        Feature::Interface => {
            unshare(CloneFlags::CLONE_NEWNET).map_err(at("make a network namespace"))?;
            sys::tap(INTERFACE, [2, 0, 0, 0, 0, 1]).map(drop).map_err(at("make a network interface"))
        }
    }
}

/// Mounts an overlay as the root of the pod's users, as it is done for each container.
fn overlay(settings: &TrialSettings, spaces: Option<&Spaces>) -> Result<(), Failed> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(at("keep mounts out of the host's namespace"))?;
    let owner = settings.root;
    let options = format!("mode=0755,size=1m,uid={owner},gid={owner}");
    mount(Some("trial"), &settings.dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(at("mount a tmpfs"))?;
    // The pod's users cannot enter the directories above it.
    chdir(&settings.dir).map_err(at("enter a tmpfs"))?;
    if let Some(spaces) = spaces {
        spaces.enter_users()?;
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(at("make a mount namespace of the pod's users"))?;
    sys::become_root().map_err(at("become root of the pod's users"))?;
    for dir in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir).map_err(at("make a directory as root of the pod's users"))?;
    }
    let layers = "lowerdir=lower,upperdir=upper,workdir=work,userxattr";
    mount(Some("overlay"), "merged", Some("overlay"), MsFlags::empty(), Some(layers))
        .map_err(at("mount an overlay"))
}
