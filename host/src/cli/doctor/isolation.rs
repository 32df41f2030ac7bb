//! The isolation layers of the jail around each VM, as a trial process has just had them.

use super::check::Check;
use crate::process::{Layer, Layers};

const NEEDED_FOR: &str = "protecting this host from a guest that has taken over its VMM; run --require-jail";

/// One for each layer.
pub(super) fn checks(tried: Result<Layers, String>) -> Vec<Check> {
    let layers = match tried {
        Ok(layers) => layers,
        Err(why) => {
            let remedy = "see docs/jail.md; no pod can run until this is fixed";
            return vec![Check::missing("jail", "every pod", why, remedy).required()];
        }
    };
    let check = |layer: Layer| {
        let name = name(layer);
        match layers.missing.iter().find(|missing| missing.layer == layer) {
            Some(missing) => Check::missing(name, NEEDED_FOR, missing.why.clone(), remedy(layer)),
            None if layers.had.contains(&layer) => Check::ok(name, found(layer)),
            None => Check::missing(name, NEEDED_FOR, "it was not tried", remedy(layer)),
        }
    };
    Layer::ALL.into_iter().map(check).collect()
}

fn name(layer: Layer) -> &'static str {
    match layer {
        Layer::Cgroup => "jail: cgroup",
        Layer::User => "jail: user",
        Layer::Files => "jail: files",
        Layer::Processes => "jail: processes",
        Layer::Ipc => "jail: ipc",
        Layer::Hostname => "jail: hostname",
        Layer::Network => "jail: network",
        Layer::Capabilities => "jail: capabilities",
        Layer::Limits => "jail: limits",
        Layer::Landlock => "jail: landlock",
        Layer::Syscalls => "jail: syscalls",
    }
}

fn found(layer: Layer) -> &'static str {
    match layer {
        Layer::Cgroup => "limits of memory and processes",
        Layer::User => "a separate user or user namespace",
        Layer::Files => "a root directory with only the pod's files",
        Layer::Processes => "no other process is visible",
        Layer::Ipc => "a private IPC namespace",
        Layer::Hostname => "a private host name",
        Layer::Network => "no network",
        Layer::Capabilities => "none, and no way to gain any",
        Layer::Limits => "few open files, no core dumps",
        Layer::Landlock => "the kernel's file rules, in addition",
        Layer::Syscalls => "a list of allowed system calls",
    }
}

fn remedy(layer: Layer) -> &'static str {
    match layer {
        Layer::Cgroup => {
            "run as root; or, on a host with unified cgroups, in a delegated cgroup: `systemd-run --user --scope -p Delegate=yes magikvm …`"
        }
        Layer::User | Layer::Files | Layer::Processes | Layer::Ipc | Layer::Hostname | Layer::Network => {
            "allow this user to create user namespaces (see that check), or run as root with CAP_SYS_ADMIN"
        }
        Layer::Capabilities | Layer::Limits => "see docs/jail.md",
        Layer::Landlock => {
            "run a kernel with CONFIG_SECURITY_LANDLOCK and with `landlock` in lsm= on its command line"
        }
        Layer::Syscalls => "run a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;
    use crate::process::Missing;

    #[test]
    fn each_layer_has_a_check_and_what_is_missing_a_remedy() {
        let missing = vec![Missing { layer: Layer::Landlock, why: "no".to_owned() }];
        let had = Layer::ALL.into_iter().filter(|layer| *layer != Layer::Landlock).collect();
        let checks = checks(Ok(Layers { had, missing, ..Layers::default() }));
        assert_eq!(checks.len(), Layer::ALL.len());
        for check in &checks {
            let expected = if check.name == "jail: landlock" { State::Warn } else { State::Ok };
            assert_eq!(
                (check.state, check.remedy.is_some()),
                (expected, expected == State::Warn),
                "{check:?}"
            );
        }
    }

    #[test]
    fn where_no_jail_can_be_built_no_pod_runs() {
        let checks = checks(Err("cannot build the jail".to_owned()));
        assert_eq!(checks.iter().map(|check| check.state).collect::<Vec<_>>(), [State::Fail]);
    }
}
