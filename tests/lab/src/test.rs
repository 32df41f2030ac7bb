//! Tests in the lab: the same test binary runs there for one test, and its result becomes that test's result here.

use crate::error::{Words, with_causes};
use crate::{Lab, LabCommand, LabError, LabOutput, MEMORY_MIB};
use std::time::Duration;

/// The resources of a test in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Memory of the lab.
    pub memory_mib: u32,
    /// Time limit, including the boot.
    pub limit: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self { memory_mib: MEMORY_MIB, limit: Duration::from_secs(180) }
    }
}

/// Whether this process runs in the lab.
pub fn is_inside() -> bool {
    std::env::var_os("MAGIKVM_INSIDE_LAB").is_some_and(|value| value == "1")
}

/// Whether a test for the lab should run its body in this process: it is in the lab, or `MAGIKVM_LAB=never` is set.
///
/// # Panics
/// If `MAGIKVM_LAB` has an unknown value.
pub fn runs_here() -> bool {
    let choice = std::env::var("MAGIKVM_LAB").unwrap_or_default();
    assert!(
        ["", "always", "never"].contains(&choice.as_str()),
        "MAGIKVM_LAB is {choice:?}; it may be always or never"
    );
    is_inside() || choice == "never"
}

/// Runs the body of a `#[test]` in the lab: `inside!(|| …)`, or `inside!(Room { … }, || …)`. The rest of the test runs in both places, so
/// the body should be all of it. A failure in the lab fails the test here and shows its output.
#[macro_export]
macro_rules! inside {
    ($body:expr) => {
        $crate::inside!($crate::Room::default(), $body)
    };
    ($room:expr, $body:expr) => {{
        fn here() {}
        $crate::run_inside(&$crate::name_of(&here), &$room, $body)
    }};
}

/// The test harness's name of the test that contains a function.
pub fn name_of<T>(_: &T) -> String {
    let path = std::any::type_name::<T>();
    let test = path.strip_suffix("::here").unwrap_or(path);
    let test = test.trim_end_matches("::{{closure}}");
    test.split_once("::").map_or(test, |(_, name)| name).to_owned()
}

/// The implementation of [`inside!`].
///
/// # Panics
/// If the test fails in the lab, or the lab is not prepared.
#[track_caller]
pub fn run_inside(name: &str, room: &Room, body: impl FnOnce()) {
    if runs_here() {
        return body();
    }
    let mut outcome = rerun_in(room, name).map_err(|error| with_causes(&error));
    for _ in 0..MORE_BOOTS {
        match &outcome {
            Err(said) if stood_still(said) => eprintln!("{said}"),
            _ => break,
        }
        crate::repeats(name);
        outcome = rerun_in(room, name).map_err(|error| with_causes(&error));
    }
    if let Err(said) = outcome {
        panic!("{said}");
    }
}

/// Boots that a test gets in addition, each of which is counted.
const MORE_BOOTS: usize = 2;

/// Whether the lab, or a VM in it, may have stood still: a test took half of its time or more. That of an error of the tested program is there in
/// the next boot as well.
fn stood_still(said: &str) -> bool {
    said.contains("Still running:") || said.contains("without a result")
}

/// Runs one test of this test binary in the lab, by its full name. For harnesses other than the standard one, which must support the options
/// `--exact`, `--nocapture` and `--test-threads` and print the same summary. Ask [`runs_here`] first.
pub fn rerun(name: &str) -> Result<(), LabError> {
    rerun_in(&Room::default(), name)
}

/// Like [`rerun`], with other limits.
pub fn rerun_in(room: &Room, name: &str) -> Result<(), LabError> {
    let this = std::env::current_exe().map_err(LabError::system("finding this program"))?;
    let command = LabCommand::new(this)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .memory_mib(room.memory_mib)
        .limit(room.limit);
    judge(name, &Lab::from_environment()?.run(&command)?)
}

/// Whether exactly one test ran and passed.
fn judge(name: &str, output: &LabOutput) -> Result<(), LabError> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let one = stdout.lines().any(|line| line.contains("test result: ok. 1 passed; 0 failed; 0 ignored"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = Box::new(Words { console: output.console.clone(), stdout, stderr, registers: None });
    let name = name.to_owned();
    match output.code {
        0 if one => Ok(()),
        0 => Err(LabError::NotOneTest { name, words }),
        code => Err(LabError::TestFailed { name, code, words }),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_test_knows_its_name() {
        fn here() {}
        assert_eq!(super::name_of(&here), "test::tests::a_test_knows_its_name");
        let in_closure = || {
            fn here() {}
            super::name_of(&here)
        };
        assert_eq!(in_closure(), "test::tests::a_test_knows_its_name");
    }
}
