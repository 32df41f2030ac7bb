//! The hidden verbs: the processes that magikvm starts from its own program file. [`VERBS`] is the only place that connects a verb with its
//! function; `docs/processes.md` describes each of these processes for people.

use crate::{jail, monitor, net, os, pod, vmm};
use std::ffi::OsString;
use std::process::ExitCode;

/// One kind of process that this program can become.
struct HiddenVerb {
    name: &'static str,
    lifetime: Lifetime,
    run: Run,
}

/// With whom a process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    /// It dies with the process that started it. On Linux the kernel sees to that (the parent-death signal is requested before this program
    /// starts); elsewhere [`os::follow_parent`] watches the parent.
    OfParent,
    /// It outlives the process that started it, or ends at once by itself.
    Independent,
}

#[derive(Clone, Copy)]
enum Run {
    /// The whole life of the process.
    Process(fn() -> ExitCode),
    /// Builds a jail around this process and returns the verb to continue with, or an exit code.
    Jail(fn() -> Result<String, i32>),
}

/// Every hidden verb, whether it dies with its parent, and its function.
const VERBS: &[HiddenVerb] = &[
    process(pod::launch::MONITOR_VERB, Lifetime::Independent, || code(monitor::main())),
    process(pod::pull::PULLER_VERB, Lifetime::OfParent, || code(pod::pull::main())),
    HiddenVerb { name: jail::JAIL_VERB, lifetime: Lifetime::OfParent, run: Run::Jail(jail::enter) },
    process(vmm::krun::VMM_VERB, Lifetime::OfParent, || code(vmm::krun::main())),
    #[cfg(target_os = "linux")]
    process(crate::volume::serve::SERVER_VERB, Lifetime::OfParent, || code(crate::volume::serve::main())),
    #[cfg(target_os = "linux")]
    process(crate::runtime::containers::errand::ERRAND_VERB, Lifetime::OfParent, || {
        code(crate::runtime::containers::errand::main())
    }),
    process(net::NET_VERB, Lifetime::OfParent, || code(net::main())),
    process(net::NAT_VERB, Lifetime::OfParent, || code(net::nat_main())),
    process(vmm::jails::TRIAL_VERB, Lifetime::Independent, || ExitCode::SUCCESS),
    #[cfg(all(feature = "testing", target_os = "linux"))]
    process(vmm::file_trial::STARTER_VERB, Lifetime::Independent, vmm::file_trial::start),
    #[cfg(all(feature = "testing", target_os = "linux"))]
    process(vmm::file_trial::SERVER_VERB, Lifetime::Independent, vmm::file_trial::serve),
    #[cfg(all(feature = "testing", target_os = "linux"))]
    process(vmm::fake::GUEST_VERB, Lifetime::OfParent, vmm::fake::guest_main),
];

const fn process(name: &'static str, lifetime: Lifetime, main: fn() -> ExitCode) -> HiddenVerb {
    HiddenVerb { name, lifetime, run: Run::Process(main) }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(70))
}

/// Becomes the process that the first argument names. `None` if the argument is not a hidden verb.
pub(super) fn dispatch(first: Option<OsString>) -> Option<ExitCode> {
    let mut name = first?;
    loop {
        let verb = VERBS.iter().find(|verb| name == verb.name)?;
        if verb.lifetime == Lifetime::OfParent {
            os::follow_parent();
        }
        match verb.run {
            Run::Process(main) => return Some(main()),
            Run::Jail(enter) => match enter() {
                Ok(next) => name = next.into(),
                Err(failure) => return Some(code(failure)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn page() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/processes.md");
        std::fs::read_to_string(path).unwrap()
    }

    /// The names in backticks that look like a hidden verb.
    fn documented(page: &str) -> BTreeSet<&str> {
        page.split('`').skip(1).step_by(2).filter(|word| word.starts_with("__")).collect()
    }

    #[test]
    fn every_verb_is_documented() {
        let page = page();
        let documented = documented(&page);
        for verb in VERBS {
            assert!(documented.contains(verb.name), "docs/processes.md does not list {}", verb.name);
        }
    }

    #[cfg(all(feature = "testing", target_os = "linux"))]
    #[test]
    fn every_documented_verb_exists() {
        let names: BTreeSet<&str> = VERBS.iter().map(|verb| verb.name).collect();
        assert_eq!(documented(&page()), names, "docs/processes.md lists verbs that the table lacks");
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<&str> = VERBS.iter().map(|verb| verb.name).collect();
        assert_eq!(names.len(), VERBS.len());
    }

    #[test]
    fn other_arguments_are_not_hidden_verbs() {
        for argument in [None, Some("run"), Some("__"), Some("--help")] {
            assert_eq!(dispatch(argument.map(OsString::from)), None, "{argument:?}");
        }
    }
}
