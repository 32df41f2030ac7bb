//! The type of the list's rows.

use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::Driver;
use std::time::Duration;

/// Number of rows with separate pods that share one boot of the lab. An additional VM in the same boot is slower than the first one, and a
/// boot costs some seconds.
const ROWS_PER_BOOT: usize = 2;

/// How long a row may take in the lab, unless it says more.
const LIMIT: Duration = Duration::from_secs(60);

/// Rows about one thing.
#[derive(Debug)]
pub(crate) struct Group {
    /// In the names of tests.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// The pods that the rows use.
    pub(crate) pods: Pods,
    pub(crate) rows: &'static [Row],
}

/// The pods that the rows of a group use.
#[derive(Debug)]
pub(crate) enum Pods {
    /// Each row starts its own pods and may change them.
    Own,
    /// One pod that all rows use one after the other in any order, and must not change.
    Shared { name: &'static str, start: fn(&Subject) },
}

impl Group {
    /// How many rows may be run together.
    pub(crate) fn rows_together(&self, driver: Driver) -> usize {
        match (&self.pods, driver) {
            (Pods::Shared { .. }, _) => usize::MAX,
            (Pods::Own, Driver::Krun) => ROWS_PER_BOOT,
            (Pods::Own, Driver::Qemu | Driver::Containers) => 1,
            (Pods::Own, Driver::ContainersV2 | Driver::ContainersUser) => usize::MAX,
        }
    }
}

/// A behaviour of pods that every driver must have.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The behaviour in a plain sentence.
    pub(crate) what: &'static str,
    /// The fields of a Pod or the verbs that promise it. May be empty.
    pub(crate) of: &'static str,
    /// The drivers with another behaviour.
    pub(crate) differs: &'static [Difference],
    /// How long it may take in the lab.
    pub(crate) limit: Duration,
    pub(crate) check: Check,
}

/// The drivers without VMs.
pub(crate) const NAMESPACES: [Driver; 3] = [Driver::Containers, Driver::ContainersV2, Driver::ContainersUser];

/// Drivers on which a row's check fails, and must.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Difference {
    pub(crate) drivers: &'static [Driver],
    pub(crate) why: &'static str,
    /// A part of what the failed check says.
    pub(crate) says: &'static str,
}

/// The way to check a row.
#[derive(Debug)]
pub(crate) enum Check {
    /// Scripts in containers of the group's pod: container, script, and its whole output.
    Shell(&'static [(&'static str, &'static str, &'static str)]),
    /// A pod that is run in the foreground, to its end.
    Run(fn() -> Pod, Ended),
    /// Anything else; fails by panicking.
    Code(fn(&Subject)),
}

/// The expected outcome of a pod that is run to its end.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Additional arguments of `run`.
    pub(crate) options: &'static [&'static str],
    pub(crate) code: i32,
    pub(crate) stdout: &'static str,
    pub(crate) stderr: &'static str,
    pub(crate) phase: &'static str,
}

impl Row {
    pub(crate) const fn shell(
        name: &'static str,
        what: &'static str,
        seen: &'static [(&'static str, &'static str, &'static str)],
    ) -> Self {
        Self { name, what, of: "", differs: &[], limit: LIMIT, check: Check::Shell(seen) }
    }

    pub(crate) const fn run(name: &'static str, what: &'static str, pod: fn() -> Pod, seen: Ended) -> Self {
        Self { name, what, of: "", differs: &[], limit: LIMIT, check: Check::Run(pod, seen) }
    }

    pub(crate) const fn code(name: &'static str, what: &'static str, check: fn(&Subject)) -> Self {
        Self { name, what, of: "", differs: &[], limit: LIMIT, check: Check::Code(check) }
    }

    pub(crate) const fn of(self, of: &'static str) -> Self {
        Self { of, ..self }
    }

    /// A row that takes longer in the lab than others.
    pub(crate) const fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The drivers with another behaviour.
    pub(crate) const fn differs(self, differs: &'static [Difference]) -> Self {
        Self { differs, ..self }
    }

    /// The difference declared for a driver.
    pub(crate) fn difference(&self, driver: Driver) -> Option<&'static Difference> {
        self.differs.iter().find(|difference| difference.drivers.contains(&driver))
    }

    /// Checks the row. Panics if the behaviour differs.
    pub(crate) fn look(&self, subject: &Subject) {
        match &self.check {
            Check::Shell(seen) => {
                let pod = subject.pod();
                for (container, script, prints) in *seen {
                    assert_eq!(subject.sh(pod, container, script), *prints, "in {container}: {script}");
                }
            }
            Check::Run(pod, seen) => {
                let pod = pod();
                let output = subject.run(&pod).args(seen.options).run().expect_code(seen.code);
                assert_eq!((output.stdout.as_str(), output.stderr.as_str()), (seen.stdout, seen.stderr));
                assert_eq!(subject.phase(pod.name()), seen.phase);
            }
            Check::Code(check) => check(subject),
        }
    }
}

/// The outcome of a row: nothing, or the message of its failed check.
pub(crate) type Outcome = Result<(), String>;

/// The outcome of a row for which a difference may be declared.
pub(crate) fn judge(seen: Outcome, declared: Option<&Difference>) -> Outcome {
    let Some(Difference { drivers, why, says }) = declared else {
        return seen;
    };
    match seen {
        Err(said) if said.contains(says) => Ok(()),
        Err(said) => Err(format!("it fails, but not by {says:?} as declared:\n{said}")),
        Ok(()) => {
            let names: Vec<&str> = drivers.iter().map(|driver| driver.name()).collect();
            Err(format!(
                "the declared difference of {} has disappeared; remove it from the list: {why}",
                names.join(" and ")
            ))
        }
    }
}
