//! Runs rows: those of a unit one after the other on one host, either directly or together in one boot of the lab.

use crate::GROUPS;
use crate::caught::caught;
use crate::row::{Group, Outcome, Pods, Row, judge};
use crate::subject::Subject;
use libtest_mimic::{Arguments, Trial};
use magikvm_lab::{Lab, LabCommand, LabError};
use magikvm_tests::virtual_machine::Driver;
use serde_json::{Value, json};
use std::error::Error;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Time for the lab's boot and the start of a shared pod, in addition to that of each row.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Prefix of the line with a row's outcome, for the process that started this program in the lab.
const MARK: &str = "@row ";

/// The name of the test of one row, or of several rows, which only the lab has.
pub(crate) fn name(driver: Driver, group: &Group, rows: &[&Row]) -> String {
    let rows: Vec<&str> = rows.iter().map(|row| row.name).collect();
    format!("{}::{}::{}", driver.name(), group.name, rows.join(","))
}

#[derive(Debug)]
pub(crate) struct Unit {
    driver: Driver,
    group: &'static Group,
    rows: Vec<&'static Row>,
    outcomes: OnceLock<Vec<Outcome>>,
}

impl Unit {
    pub(crate) fn new(driver: Driver, group: &'static Group, rows: Vec<&'static Row>) -> Self {
        Self { driver, group, rows, outcomes: OnceLock::new() }
    }

    /// The names of the tests of its rows.
    pub(crate) fn names(&self) -> Vec<String> {
        self.rows.iter().map(|row| name(self.driver, self.group, &[row])).collect()
    }

    /// The outcome of a row. The first caller runs all rows.
    pub(crate) fn outcome(&self, number: usize) -> Outcome {
        let run = || {
            let began = Instant::now();
            let outcomes = match self.driver {
                Driver::Krun | Driver::ContainersV2 | Driver::ContainersUser if !magikvm_lab::runs_here() => {
                    self.in_the_lab()
                }
                _ => self.here(),
            };
            magikvm_lab::took(&name(self.driver, self.group, &self.rows), began.elapsed());
            outcomes
        };
        self.outcomes.get_or_init(run)[number].clone()
    }

    /// Under the lab's emulation of an emulated processor a timer's interrupt can get lost, and with it the guest (its kernel then reports stalls,
    /// in up to one boot of twenty) or the lab itself (which then does not report what is still running, as it does at half of its time). Such a
    /// unit gets two more boots, which are counted: `ci/test.sh` fails if more than one boot in a hundred is a repetition. The first boot's
    /// registers and stacks are printed. VMs get no second boot there, so that each silent one is counted. A hang by an error of magikvm repeats, or
    /// shows under QEMU, whose rows are run once.
    fn in_the_lab(&self) -> Vec<Outcome> {
        const MORE_BOOTS: usize = 2;
        let silent = |outcome: &Outcome| {
            outcome.as_ref().is_err_and(|said| {
                let stood_still = said.contains("without a result") && !said.contains("Still running:");
                stood_still || said.contains("Reason: AgentSilent")
            })
        };
        let mut outcomes = self.one_boot_of_the_lab();
        for _ in 0..MORE_BOOTS {
            let Some(said) = outcomes.iter().find(|outcome| silent(outcome)) else { break };
            eprintln!("{}", said.as_ref().err().map_or("", String::as_str));
            magikvm_lab::repeats(&name(self.driver, self.group, &self.rows));
            outcomes = self.one_boot_of_the_lab();
        }
        outcomes
    }

    fn one_boot_of_the_lab(&self) -> Vec<Outcome> {
        let names: Vec<&str> = self.rows.iter().map(|row| row.name).collect();
        let limits: Duration = self.rows.iter().map(|row| row.limit).sum();
        let this = std::env::current_exe().expect("the path of this program");
        let command = LabCommand::new(this)
            .args([&name(self.driver, self.group, &self.rows), "--exact", "--nocapture", "--test-threads=1"])
            .limit(BOOT_LIMIT + limits);
        match Lab::from_environment().and_then(|lab| lab.run(&command)) {
            Ok(output) => {
                let [stdout, stderr] =
                    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
                outcomes_of(&names, output.code, &stdout, &format!("{stderr}\n{}", output.console))
            }
            Err(error) => vec![Err(with_causes(&error)); names.len()],
        }
    }

    fn here(&self) -> Vec<Outcome> {
        match &self.group.pods {
            Pods::Own => self.with_pods_of_their_own(),
            Pods::Shared { name, start } => self.with_the_pod(name, *start),
        }
    }

    fn with_pods_of_their_own(&self) -> Vec<Outcome> {
        let mut kept = None;
        let mut run = |row: &Row| {
            let subject = match kept.take() {
                Some(subject) => subject,
                None => caught(|| Subject::new(self.driver, None))?,
            };
            judge(caught(|| row.look(&subject)), row.difference(self.driver))?;
            caught(|| subject.clear())?;
            kept = Some(subject);
            Ok(())
        };
        self.rows.iter().map(|row| run(row)).collect()
    }

    fn with_the_pod(&self, pod: &'static str, start: fn(&Subject)) -> Vec<Outcome> {
        let started = caught(|| {
            let subject = Subject::new(self.driver, Some(pod));
            start(&subject);
            subject
        });
        let subject = match started {
            Ok(subject) => subject,
            Err(said) => return vec![Err(format!("its pod {pod} was not started: {said}")); self.rows.len()],
        };
        let look = |row: &&Row| judge(caught(|| row.look(&subject)), row.difference(self.driver));
        let mut outcomes: Vec<Outcome> = self.rows.iter().map(look).collect();
        if let (Some(last), Err(said)) = (outcomes.last_mut(), caught(|| subject.clear())) {
            let so_far = last.as_ref().err().map(|said| format!("{said}\n")).unwrap_or_default();
            *last = Err(format!("{so_far}after the last row, pod {pod} was removed: {said}"));
        }
        outcomes
    }
}

fn with_causes(error: &LabError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The outcome of each of several rows that another process ran, from its exit code and output. `other` is more output, which is shown if the
/// outcome is unclear.
pub(crate) fn outcomes_of(rows: &[&str], code: i32, stdout: &str, other: &str) -> Vec<Outcome> {
    let lines: Vec<Value> =
        stdout.lines().filter_map(|line| serde_json::from_str(line.strip_prefix(MARK)?).ok()).collect();
    let unclear = |what: String| Err(format!("{what}\n{stdout}\n{other}"));
    let outcome = |row: &&str| match lines.iter().find(|line| line["row"] == **row) {
        Some(line) if line["said"].is_null() => Ok(()),
        Some(line) => Err(line["said"].as_str().unwrap_or("a line that cannot be read").to_owned()),
        None => unclear(format!("nothing was heard of it; the tests in the lab ended with code {code}")),
    };
    let mut outcomes: Vec<Outcome> = rows.iter().map(outcome).collect();
    if let (true, Some(last)) = (code != 0 && outcomes.iter().all(Result::is_ok), outcomes.last_mut()) {
        *last = unclear(format!("no row failed, and yet the tests in the lab ended with code {code}"));
    }
    outcomes
}

/// The line with a row's outcome.
pub(crate) fn line_about(row: &str, outcome: &Outcome) -> String {
    format!("{MARK}{}", json!({ "row": row, "said": outcome.as_ref().err() }))
}

/// The rows of a unit by its name.
fn find(name: &str) -> Option<Unit> {
    let parts: Vec<&str> = name.split("::").collect();
    let [driver, group, rows] = parts[..] else { return None };
    let driver = Driver::ALL.into_iter().find(|known| known.name() == driver)?;
    let group = GROUPS.iter().copied().find(|known| known.name == group)?;
    let row = |name: &str| group.rows.iter().find(|known| known.name == name);
    Some(Unit::new(driver, group, rows.split(',').map(row).collect::<Option<_>>()?))
}

/// In the lab: the test of all rows of a unit, requested by the unit's name, which prints the outcome of each row.
pub(crate) fn asked_by_another(args: &Arguments) -> Option<Trial> {
    let name = args.filter.clone().filter(|_| args.exact && magikvm_lab::is_inside())?;
    let unit = find(&name)?;
    Some(Trial::test(name, move || {
        let outcomes = unit.here();
        // The harness has begun a line.
        println!();
        for (row, outcome) in unit.rows.iter().zip(&outcomes) {
            println!("{}", line_about(row.name, outcome));
        }
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        if failed == 0 { Ok(()) } else { Err(format!("{failed} rows failed").into()) }
    }))
}
