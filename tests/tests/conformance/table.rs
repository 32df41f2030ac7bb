//! The list as a page of the documentation.

use crate::row::{Group, Row};
use crate::{GROUPS, LAB_WHEN_ASKED, OF_CGROUPS, OF_DISKS, OF_VMS};
use magikvm_tests::virtual_machine::Driver;
use std::fmt::Write;
use std::path::Path;

const HEAD: &str = "\
# Conformance

Generated from the rows in `tests/tests/conformance/`. Each row is a test on each driver: a small pod, and what must be
seen of it. Where a driver differs, the row declares the difference with a reason, and the test fails when the
difference disappears. The rows of krun run on hardware virtualization, in the lab; those of qemu run by software
emulation. Rows with \"lab\" look only at the supervisor, with a VM for each row: on krun they are run by `ci/lab.sh`, and
not by `ci/test.sh`, which would take too long. The rows of containers run in namespaces of the host, those of
containers_v2 in the lab, whose control groups are those of version 2; sections with \"-\" are about what only a VM
has, or need a disk, which the lab has not.

The name of a test consists of its driver, section and row: `cargo test -p magikvm-tests --test conformance
qemu::exec::exit_codes`, with the environment that `ci/test.sh` sets.
";

fn cell(group: &Group, row: &Row, driver: Driver) -> String {
    let plain = match driver {
        Driver::Krun if LAB_WHEN_ASKED.contains(&group.name) => "lab",
        Driver::Containers | Driver::ContainersV2 | Driver::ContainersUser
            if OF_VMS.contains(&group.name) =>
        {
            "-"
        }
        Driver::ContainersV2 | Driver::ContainersUser if OF_DISKS.contains(&group.name) => "-",
        Driver::ContainersV2 | Driver::ContainersUser if !OF_CGROUPS.contains(&group.name) => "lab",
        _ => "yes",
    };
    row.difference(driver)
        .map_or_else(|| plain.to_owned(), |difference| format!("differs: {}", difference.why))
}

fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for group in GROUPS {
        let drivers = Driver::ALL.map(Driver::name).join(" | ");
        let rule = "|---".repeat(3 + Driver::ALL.len());
        let (title, name) = (group.title, group.name);
        write!(page, "\n## {title} (`{name}`)\n\n| row | what must be seen | of | {drivers} |\n{rule}|\n")
            .unwrap();
        for row in group.rows {
            let cells = Driver::ALL.map(|driver| cell(group, row, driver)).join(" | ");
            writeln!(page, "| `{}` | {} | {} | {cells} |", row.name, row.what, row.of).unwrap();
        }
    }
    page
}

/// Fails unless the page in the tree is up to date.
pub(crate) fn is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    if std::env::var_os("MAGIKVM_BLESS").is_some() {
        std::fs::write(&path, markdown()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == markdown(),
        "docs/conformance.md is not current: MAGIKVM_BLESS=1 cargo test -p magikvm-tests --test conformance docs"
    );
}
