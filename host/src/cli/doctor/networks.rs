//! The networks of CNI that pods in namespaces can join.

use super::check::Check;
use crate::net::cni::Places;
#[cfg(target_os = "linux")]
use crate::pod::interface::PodRuntimeInterface;
#[cfg(target_os = "linux")]
use crate::store::lock::LockState;
use crate::store::text::chain;
#[cfg(target_os = "linux")]
use crate::store::undo;

const NAME: &str = "CNI networks";
const NEEDED_FOR: &str = "pods with the annotation magikvm.dev/cni that name them";

pub(super) fn check(places: &Places) -> Check {
    let dir = places.conf.display();
    let candidates = match places.candidates() {
        Ok(candidates) => candidates,
        Err(error) => return Check::missing(NAME, NEEDED_FOR, chain(&error), "make the directory readable"),
    };
    let (mut usable, mut wrong) = (Vec::new(), Vec::new());
    for candidate in &candidates {
        let found = candidate.parse().and_then(|conf| {
            places.programs(&conf).map_err(|error| chain(&error))?;
            let kinds: Vec<&str> = conf.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
            Ok(format!("{} ({})", conf.name, kinds.join(", ")))
        });
        match found {
            Ok(network) => usable.push(network),
            Err(why) => wrong.push(format!("{}: {why}", candidate.path.display())),
        }
    }
    let listed = match usable.len() {
        0 => format!("none that can be used in {dir}"),
        _ => usable.join(", "),
    };
    if wrong.is_empty() {
        return Check::ok(NAME, listed);
    }
    let remedy =
        "correct these files; plugins are installed with `apt-get install containernetworking-plugins`";
    Check::missing(NAME, NEEDED_FOR, format!("{listed}; {}", wrong.join("; ")), remedy)
}

/// Asks the plugins of the networks of all running pods whether these are connected as the plugins have left them (CHECK). Nothing to say of pods without
/// such a network.
#[cfg(target_os = "linux")]
pub(super) fn check_connections(pods: &PodRuntimeInterface) -> Option<Check> {
    const NAME: &str = "CNI connections";
    let (mut fine, mut wrong) = (0, Vec::new());
    for found in pods.list().unwrap_or_default() {
        if found.lock != LockState::Held {
            continue;
        }
        for attachment in undo::attachments(&found.dir) {
            match attachment.check() {
                Ok(true) => fine += 1,
                // Its version of CNI has no such question, or the pod is just starting or ending.
                Ok(false) => {}
                Err(error) => {
                    wrong.push(format!(
                        "pod {}, network {}: {}",
                        found.name(),
                        attachment.network,
                        chain(&error)
                    ));
                }
            }
        }
    }
    match (fine, wrong.is_empty()) {
        (0, true) => None,
        (_, true) => {
            let (what, whose) = if fine == 1 { ("connection", "its") } else { ("connections", "their") };
            Some(Check::ok(NAME, format!("{fine} {what} of running pods checked by {whose} plugins")))
        }
        (_, false) => {
            let remedy = "connect these pods anew with `magikvm restart POD`";
            Some(Check::missing(NAME, "the network of pods that run", wrong.join("; "), remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn networks_are_listed_and_what_is_wrong_with_them_is_said() {
        let base = tempfile::tempdir().unwrap();
        let places = Places { conf: base.path().to_owned(), bin: vec![base.path().to_owned()] };
        let nothing = check(&places);
        assert!(nothing.is_ok() && nothing.found.starts_with("none that can be used in"), "{nothing:?}");
        fs::write(base.path().join("a.conf"), r#"{"cniVersion":"1.0.0","name":"one","type":"ptp"}"#).unwrap();
        let without = check(&places);
        assert!(!without.is_ok() && without.found.contains("a.conf: the CNI plugin ptp"), "{without:?}");
        fs::write(base.path().join("ptp"), "").unwrap();
        fs::set_permissions(base.path().join("ptp"), fs::Permissions::from_mode(0o755)).unwrap();
        let found = check(&places);
        assert!(found.is_ok() && found.found == "one (ptp)", "{found:?}");
    }
}
