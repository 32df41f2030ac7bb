//! Tests of the list itself.

use crate::caught::caught;
use crate::row::{Check, Difference, Pods, judge};
use crate::table;
use crate::unit::{line_about, outcomes_of};
use crate::{GROUPS, unit};
use libtest_mimic::Trial;
use magikvm_tests::virtual_machine::Driver;
use std::collections::BTreeSet;

/// One test each, as any other.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 6] = [
        ("docs::table_is_up_to_date", table::is_up_to_date),
        ("list::rows_can_be_told_apart", rows_can_be_told_apart),
        ("list::rows_are_in_groups_that_have_what_they_need", rows_are_in_groups_that_have_what_they_need),
        ("list::declared_differences_must_be_seen", declared_differences_must_be_seen),
        ("list::a_failed_check_says_where", a_failed_check_says_where),
        ("list::what_came_of_rows_elsewhere_is_read", what_came_of_rows_elsewhere_is_read),
    ];
    tests.map(|(name, test)| Trial::test(name, move || Ok(caught(test)?))).into()
}

fn rows_can_be_told_apart() {
    let (mut names, mut sentences) = (BTreeSet::new(), BTreeSet::new());
    for group in GROUPS {
        for row in group.rows {
            let name = unit::name(Driver::Qemu, group, &[row]);
            let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
            assert!(name.chars().all(fine) && name.split("::").count() == 3, "{name}");
            assert!(names.insert(name.clone()), "there are two rows {name}");
            assert!(sentences.insert(row.what), "there are two rows that say: {}", row.what);
            assert!(row.what.starts_with(char::is_uppercase) && row.what.ends_with('.'), "{}", row.what);
            for text in [row.what, row.of].into_iter().chain(row.differs.iter().map(|differs| differs.why)) {
                assert!(!text.contains(['|', '\n']), "{name}: not for a table: {text}");
            }
        }
    }
}

fn rows_are_in_groups_that_have_what_they_need() {
    for group in GROUPS {
        assert!(!group.rows.is_empty(), "{}", group.name);
        for row in group.rows {
            let needs_pod = matches!(row.check, Check::Shell(_));
            assert!(!needs_pod || matches!(group.pods, Pods::Shared { .. }), "{}: {}", group.name, row.name);
            for driver in Driver::ALL {
                let declared =
                    row.differs.iter().filter(|difference| difference.drivers.contains(&driver)).count();
                assert!(declared <= 1, "{}: two differences of {}", row.name, driver.name());
            }
        }
    }
}

fn declared_differences_must_be_seen() {
    let declared = Difference { drivers: &[Driver::Krun], why: "it has no wings", says: "cannot fly" };
    let failed = |said: &str| Err(format!("at row.rs:1: {said}"));
    assert_eq!(judge(failed("cannot fly"), Some(&declared)), Ok(()));
    let gone = judge(Ok(()), Some(&declared)).unwrap_err();
    assert!(gone.contains("krun has disappeared; remove it from the list: it has no wings"), "{gone}");
    let other = judge(failed("cannot swim"), Some(&declared)).unwrap_err();
    assert!(other.contains("not by \"cannot fly\"") && other.contains("cannot swim"), "{other}");
    assert_eq!(judge(failed("cannot fly"), None), failed("cannot fly"));
    assert_eq!(judge(Ok(()), None), Ok(()));
}

fn a_failed_check_says_where() {
    let said = caught(|| assert_eq!(1 + 1, 3, "a sum")).unwrap_err();
    assert!(said.contains("itself.rs:") && said.contains("a sum") && said.contains("right: 3"), "{said}");
    assert_eq!(caught(|| 5), Ok(5));
    let inner = caught(|| caught(|| panic!("inner")).map_err(|said| panic!("outer of {said}")));
    let inner: Result<Result<(), ()>, String> = inner;
    assert!(inner.as_ref().is_err_and(|said| said.contains("outer of")), "{inner:?}");
}

fn what_came_of_rows_elsewhere_is_read() {
    let failed = Err("left: 1\nright: \"2\"".to_owned());
    let (one, two) = (line_about("one", &Ok(())), line_about("two", &failed));
    let outcomes = outcomes_of(&["one", "two", "three"], 101, &format!("{one}\nnoise\n{two}\n"), "the end");
    assert_eq!(outcomes[..2], [Ok(()), failed]);
    let silent = outcomes[2].clone().unwrap_err();
    assert!(silent.contains("nothing was heard of it") && silent.contains("the end"), "{silent}");
    assert_eq!(outcomes_of(&["one"], 0, &one, ""), [Ok(())]);
    // A successful test reports each row, and a test whose rows succeed is successful.
    let silent = outcomes_of(&["one", "three"], 0, &one, "");
    assert!(silent[0].is_ok() && silent[1].is_err(), "{silent:?}");
    let killed = outcomes_of(&["one"], 137, &one, "")[0].clone().unwrap_err();
    assert!(killed.contains("ended with code 137"), "{killed}");
}
