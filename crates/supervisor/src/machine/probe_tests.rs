use super::*;
use magikvm_proto::lifecycle::Handler;
use proptest::prelude::*;

fn plan(period_secs: u64, success_threshold: u32, failure_threshold: u32) -> ProbePlan {
    ProbePlan {
        handler: Handler::TcpSocket { host: None, port: 1 },
        initial_delay_secs: 5,
        period_secs,
        timeout_secs: 1,
        success_threshold,
        failure_threshold,
        grace_secs: None,
    }
}

fn failure() -> Handled {
    Handled::Failure("no".to_owned())
}

#[test]
fn the_first_run_follows_the_delay_and_the_next_ones_the_period() {
    let mut probe = Probe::new(ProbeKind::Liveness, plan(10, 1, 3));
    assert!(!probe.tick(u64::MAX), "it has not begun");
    probe.begin(1000, 1000);
    assert_eq!(probe.deadline(), Some(6000));
    assert!(!probe.tick(5999) && probe.tick(6000));
    assert_eq!(probe.deadline(), None);
    assert!(!probe.tick(60_000), "it runs already");
    probe.answered(&Handled::Success, 6100);
    assert_eq!(probe.deadline(), Some(16_000));
    assert!(probe.tick(16_000));
    probe.answered(&Handled::Success, 30_000);
    assert_eq!(probe.deadline(), Some(30_000), "a slow one is followed at once");
    // A startup probe has succeeded long after the start: nothing is left of the delay.
    probe.begin(1000, 40_000);
    assert!(probe.tick(40_000));
    assert!(probe.stop() && !probe.stop());
    assert_eq!(probe.answered(&failure(), 40_001), Change::Nothing);
}

#[test]
fn thresholds_count_results_in_a_row() {
    let mut probe = Probe::new(ProbeKind::Readiness, plan(1, 2, 3));
    probe.begin(0, 10_000);
    let mut now = 10_000;
    let mut said = |answer: Handled| {
        assert!(probe.tick(now));
        now += 1000;
        (probe.answered(&answer, now), probe.is_news())
    };
    let (ok, bad) = (|| Handled::Success, failure);
    let error = || Handled::Error("cannot".to_owned());
    let mut changes = Vec::new();
    for answer in [bad(), bad(), ok(), bad(), bad(), error(), bad(), bad(), ok(), ok(), ok()] {
        changes.push(said(answer).0);
    }
    use Change::{Failed as F, Nothing as N, Succeeded as S};
    assert_eq!(changes, [N, N, N, N, N, N, F, F, N, S, S]);
    let news = (0..9).filter(|_| said(failure()).1).count();
    assert_eq!(news, 5, "1, 2, 3, 4 and 8");
}

proptest! {
    /// Whatever the answers and their times: runs never overlap, begin a period apart unless the last one took longer, and a change is
    /// told exactly when the last answers in a row reach the threshold.
    #[test]
    fn any_answers_are_judged_as_documented(
        period in 1..20u64, success in 1..4u32, failures in 1..4u32,
        answers in prop::collection::vec((0..3u8, 0..40_000u64), 1..60),
    ) {
        let mut probe = Probe::new(ProbeKind::Readiness, plan(period, success, failures));
        probe.begin(0, 0);
        let (mut now, mut last, mut row) = (5000, None::<(u64, u64)>, (None, 0));
        for (answer, took) in answers {
            prop_assert_eq!(probe.deadline(), Some(now));
            prop_assert!(now == 0 || !probe.tick(now - 1));
            prop_assert!(probe.tick(now) && !probe.tick(now + took));
            if let Some((begun, ended)) = last {
                prop_assert!(now == (begun + period * 1000).max(ended));
            }
            last = Some((now, now + took));
            let answer = match answer {
                0 => Handled::Success,
                1 => failure(),
                _ => Handled::Error("cannot".to_owned()),
            };
            let result = match answer {
                Handled::Success => Some(true),
                Handled::Failure(_) => Some(false),
                Handled::Error(_) => None,
            };
            let change = probe.answered(&answer, now + took);
            if result.is_some() {
                row = if row.0 == result { (result, row.1 + 1) } else { (result, 1) };
            }
            let expected = match result {
                Some(true) if row.1 >= success => Change::Succeeded,
                Some(false) if row.1 >= failures => Change::Failed,
                _ => Change::Nothing,
            };
            prop_assert_eq!(change, expected);
            now = (now + period * 1000).max(now + took);
        }
    }
}
