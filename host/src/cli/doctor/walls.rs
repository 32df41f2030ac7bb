//! The layers of the jail around each VM, as a process had them that was put into one just now.

use super::check::Check;
use crate::process::{Layer, Layers};

const NEEDED_FOR: &str =
    "one more wall between a guest that has taken its VMM over and this machine; run --require-jail";

/// One for each layer.
pub(super) fn checks(tried: Result<Layers, String>) -> Vec<Check> {
    let layers = match tried {
        Ok(layers) => layers,
        Err(why) => {
            let remedy = "see docs/jail.md; no pod can be started as long as this is so";
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
        Layer::User => "a user, or a user namespace, of its own",
        Layer::Files => "a root directory with the pod's own files",
        Layer::Processes => "no other process can be seen",
        Layer::Ipc => "no message or memory of others",
        Layer::Hostname => "a host name of its own",
        Layer::Network => "no network",
        Layer::Capabilities => "none, and no way to any",
        Layer::Limits => "few open files, no core dumps",
        Layer::Landlock => "the kernel's own rules for files",
        Layer::Syscalls => "a list of system calls",
    }
}

fn remedy(layer: Layer) -> &'static str {
    match layer {
        Layer::Cgroup => {
            "run as root; or as an ordinary user where control groups are unified, in a delegated one: systemd-run --user --scope -p Delegate=yes magikvm …"
        }
        Layer::User | Layer::Files | Layer::Processes | Layer::Ipc | Layer::Hostname | Layer::Network => {
            "let this user make user namespaces (see that check), or run as root with CAP_SYS_ADMIN"
        }
        Layer::Capabilities | Layer::Limits => "see docs/jail.md",
        Layer::Landlock => {
            "run a kernel with CONFIG_SECURITY_LANDLOCK and `landlock` among the modules of lsm= on its command line"
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
        let checks = checks(Ok(Layers { had, missing }));
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
