//! The conformance list: small pods and their required behaviour, for everything that can run a pod. A test is one row on one driver:
//! `qemu::exec::output_of_megabytes`. Rows of libkrun run in the lab.
//!
//! A row with another outcome on one driver declares the difference with its reason, and fails when the difference disappears.
//! `docs/conformance.md` is the same list.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/attach.rs"]
mod attach;
#[path = "conformance/caught.rs"]
mod caught;
#[path = "conformance/common.rs"]
mod common;
#[path = "conformance/copies.rs"]
mod copies;
#[path = "conformance/ends.rs"]
mod ends;
#[path = "conformance/exec.rs"]
mod exec;
#[path = "conformance/failures.rs"]
mod failures;
#[path = "conformance/images.rs"]
mod images;
#[path = "conformance/initializing.rs"]
mod initializing;
#[path = "conformance/isolation.rs"]
mod isolation;
#[path = "conformance/itself.rs"]
mod itself;
#[path = "conformance/jail.rs"]
mod jail;
#[path = "conformance/judged.rs"]
mod judged;
#[path = "conformance/lifecycle.rs"]
mod lifecycle;
#[path = "conformance/manifest.rs"]
mod manifest;
#[path = "conformance/network.rs"]
mod network;
#[path = "conformance/pauses.rs"]
mod pauses;
#[path = "conformance/ports.rs"]
mod ports;
#[path = "conformance/probes.rs"]
mod probes;
#[path = "conformance/processes.rs"]
mod processes;
#[path = "conformance/room.rs"]
mod room;
#[path = "conformance/row.rs"]
mod row;
#[path = "conformance/security.rs"]
mod security;
#[path = "conformance/sessions.rs"]
mod sessions;
#[path = "conformance/states.rs"]
mod states;
#[path = "conformance/stopped.rs"]
mod stopped;
#[path = "conformance/stops.rs"]
mod stops;
#[path = "conformance/streams.rs"]
mod streams;
#[path = "conformance/subject.rs"]
mod subject;
#[path = "conformance/table.rs"]
mod table;
#[path = "conformance/together.rs"]
mod together;
#[path = "conformance/told.rs"]
mod told;
#[path = "conformance/unit.rs"]
mod unit;
#[path = "conformance/vm.rs"]
mod vm;
#[path = "conformance/volumes.rs"]
mod volumes;
#[path = "conformance/volumes_more.rs"]
mod volumes_more;
#[path = "conformance/volumes_own.rs"]
mod volumes_own;

use libtest_mimic::{Arguments, Trial};
use magikvm_tests::virtual_machine::Driver;
use row::{Group, Row};
use std::process::ExitCode;
use std::sync::Arc;
use unit::Unit;

/// The groups in the order of the table.
static GROUPS: &[&Group] = &[
    &manifest::GROUP,
    &together::GROUP,
    &isolation::GROUP,
    &security::GROUP,
    &security::OWN,
    &processes::GROUP,
    &images::GROUP,
    &common::GROUP,
    &streams::GROUP,
    &exec::GROUP,
    &copies::GROUP,
    &copies::OWN,
    &attach::GROUP,
    &sessions::GROUP,
    &stopped::GROUP,
    &ends::GROUP,
    &stops::GROUP,
    &lifecycle::GROUP,
    &lifecycle::OWN,
    &initializing::GROUP,
    &probes::GROUP,
    &judged::GROUP,
    &states::GROUP,
    &told::GROUP,
    &vm::GROUP,
    &network::GROUP,
    &pauses::GROUP,
    &ports::GROUP,
    &ports::OWN,
    &failures::GROUP,
    &jail::GROUP,
    &volumes::GROUP,
    &volumes_own::GROUP,
    &volumes_more::GROUP,
    &volumes_more::OWN,
    &room::GROUP,
    &room::OWN,
];

/// Groups with a VM for each row in which only the supervisor is looked at, the same program in every VM. In the lab, where a VM takes half a
/// minute, they are run by `ci/lab.sh`, which sets `MAGIKVM_EVERY_ROW`; `ci/test.sh` runs them on QEMU only.
const LAB_WHEN_ASKED: [&str; 6] =
    ["lifecycle_own", "initializing", "security_own", "again", "processes", "images"];

/// Groups about what only a VM has.
const OF_VMS: [&str; 4] = ["vm", "pauses", "failures", "jail"];

/// Groups that depend on the arrangement of control groups. `ci/lab.sh` runs the others on version 2, too.
const OF_CGROUPS: [&str; 6] = ["security", "common", "exec", "stops", "told", "processes"];

/// Groups that need a disk, which the lab has not.
const OF_DISKS: [&str; 2] = ["room", "room_own"];

/// Whether the rows of a group are tests on a driver.
fn is_run(driver: Driver, group: &Group) -> bool {
    match driver {
        Driver::Qemu => true,
        Driver::Krun => {
            !LAB_WHEN_ASKED.contains(&group.name) || std::env::var_os("MAGIKVM_EVERY_ROW").is_some()
        }
        Driver::Containers => !OF_VMS.contains(&group.name),
        Driver::ContainersV2 | Driver::ContainersUser => {
            !OF_VMS.contains(&group.name)
                && !OF_DISKS.contains(&group.name)
                && (OF_CGROUPS.contains(&group.name) || std::env::var_os("MAGIKVM_EVERY_ROW").is_some())
        }
    }
}

/// The units of a group on a driver: requested rows are run together as far as the group allows.
fn units(driver: Driver, group: &'static Group, args: &Arguments) -> Vec<Unit> {
    let asked = |row: &&Row| {
        let trial = Trial::test(unit::name(driver, group, &[row]), || Ok(()));
        !args.is_filtered_out(&trial)
    };
    let (asked, others): (Vec<&Row>, Vec<&Row>) = group.rows.iter().partition(asked);
    let mut units: Vec<Unit> = asked
        .chunks(group.rows_together(driver))
        .map(|rows| Unit::new(driver, group, rows.to_vec()))
        .collect();
    // The harness has to know the other rows, although it will not run them.
    units.extend(others.into_iter().map(|row| Unit::new(driver, group, vec![row])));
    units
}

/// One test for each row and driver. The first rows of all units come first: the test of such a row runs the whole unit, and the other rows
/// take their outcome from it, so that two threads work on two units.
fn rows(args: &Arguments) -> Vec<Trial> {
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for driver in Driver::ALL {
        let groups = GROUPS.iter().copied().filter(|group| is_run(driver, group));
        for unit in groups.flat_map(|group| units(driver, group, args)) {
            let unit = Arc::new(unit);
            for (number, name) in unit.names().into_iter().enumerate() {
                let unit = Arc::clone(&unit);
                let trial = Trial::test(name, move || Ok(unit.outcome(number)?));
                if number == 0 { first.push(trial) } else { rest.push(trial) }
            }
        }
    }
    first.extend(rest);
    first
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    caught::install();
    let trials = match unit::asked_by_another(&args) {
        Some(trial) => vec![trial],
        None => itself::trials().into_iter().chain(rows(&args)).collect(),
    };
    libtest_mimic::run(&args, trials).exit_code()
}
