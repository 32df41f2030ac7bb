//! Extensions that fail in every way.

use super::host::Deadlines;
use super::*;
use crate::sync::lock;
use magikvm_proto::id::{Namespace, PodId};
use magikvm_proto::plan::{ProcessNamespace, RestartPolicy};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);
const PATIENT: Deadlines = Deadlines { start: LONG, event: LONG, stop: LONG };

type Calls<T> = Box<dyn FnMut(T) -> Result<(), ExtensionError> + Send>;

/// An extension whose calls are given.
struct Given {
    start: Calls<Threads>,
    event: Calls<Occurrence>,
    stop: Calls<()>,
}

impl Given {
    fn new() -> Self {
        Self { start: Box::new(|_| Ok(())), event: Box::new(|_| Ok(())), stop: Box::new(|()| Ok(())) }
    }

    fn start(mut self, call: impl FnMut(Threads) -> Result<(), ExtensionError> + Send + 'static) -> Self {
        self.start = Box::new(call);
        self
    }

    fn event(mut self, call: impl FnMut(Occurrence) -> Result<(), ExtensionError> + Send + 'static) -> Self {
        self.event = Box::new(call);
        self
    }

    fn stop(mut self, call: impl FnMut(()) -> Result<(), ExtensionError> + Send + 'static) -> Self {
        self.stop = Box::new(call);
        self
    }
}

impl Extension for Given {
    fn name(&self) -> &'static str {
        "given"
    }

    fn start(&mut self, pod: &PodView<'_>, threads: &Threads) -> Result<(), ExtensionError> {
        assert_eq!(pod.plan.hostname, "shop");
        (self.start)(threads.clone())
    }

    fn event(&mut self, occurrence: &Occurrence, _: &PodView<'_>) -> Result<(), ExtensionError> {
        (self.event)(occurrence.clone())
    }

    fn stop(&mut self) -> Result<(), ExtensionError> {
        (self.stop)(())
    }
}

fn plan() -> GuestPlan {
    GuestPlan {
        generation: magikvm_proto::GENERATION,
        pod: PodId { namespace: Namespace::default(), name: "shop".parse().unwrap() },
        uid: String::new(),
        hostname: "shop".to_owned(),
        restart_policy: RestartPolicy::Never,
        process_namespace: ProcessNamespace::PerContainer,
        grace_ms: 0,
        deadline_ms: None,
        containers: Vec::new(),
        volumes: Vec::new(),
        network: None,
        given_address: None,
        sysctls: Vec::new(),
        limits: magikvm_proto::security::PodLimits::default(),
    }
}

/// The extensions, and what is told of their failures.
fn begun(deadlines: Deadlines, all: Vec<Given>) -> (Extensions, Receiver<String>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let around = Around {
        plan: plan(),
        states: Box::new(Vec::new),
        failed: Box::new(move |name, what| lock(&tell).send(format!("{name} {what}")).unwrap()),
    };
    let all = all.into_iter().map(|one| Box::new(one) as Box<dyn Extension>).collect();
    (Extensions::start_within(deadlines, all, around), told)
}

fn failure(told: &Receiver<String>) -> String {
    told.recv_timeout(LONG).expect("a failure is told")
}

/// A call that does not return before the sender is dropped.
fn stuck() -> (Sender<()>, impl FnMut() + Send + 'static) {
    let (end, ended) = channel::<()>();
    (end, move || {
        ended.recv().ok();
    })
}

#[test]
fn everything_is_told_in_order_and_then_the_end() {
    let (seen, calls) = channel();
    let (of_start, of_event, of_stop) = (seen.clone(), seen.clone(), seen);
    let given = Given::new()
        .start(move |_| Ok(of_start.send("start".to_owned())?))
        .event(move |occurrence| Ok(of_event.send(format!("{occurrence:?}"))?))
        .stop(move |()| Ok(of_stop.send("stop".to_owned())?));
    let (extensions, told) = begun(PATIENT, vec![given]);
    extensions.tell(&EventKind::PodStarted);
    extensions.tell(&EventKind::ShuttingDown);
    extensions.stop();
    let calls: Vec<String> = calls.iter().collect();
    assert_eq!(calls, ["start", "Event(PodStarted)", "Event(ShuttingDown)", "stop"]);
    extensions.tell(&EventKind::PodEnded);
    extensions.stop();
    assert!(told.try_recv().is_err(), "nothing has failed");
}

#[test]
fn a_panic_ends_only_its_extension() {
    let (seen, events) = channel();
    let others = Given::new().event(move |occurrence| Ok(seen.send(occurrence)?));
    let crashing = Given::new().event(|_| panic!("it has {}", "crashed"));
    let (extensions, told) = begun(PATIENT, vec![crashing, others]);
    extensions.tell(&EventKind::PodStarted);
    assert_eq!(failure(&told), "given has panicked: it has crashed");
    assert_eq!(events.recv_timeout(LONG).unwrap(), Occurrence::Event(EventKind::PodStarted));
    extensions.tell(&EventKind::ShuttingDown);
    assert_eq!(events.recv_timeout(LONG).unwrap(), Occurrence::Event(EventKind::ShuttingDown));
    extensions.stop();
    assert!(told.try_recv().is_err(), "it is told once, and the other one is well");
}

#[test]
fn errors_and_panics_of_every_call_and_thread_are_failures() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    fn refused() -> Result<(), ExtensionError> {
        Err(std::io::Error::other("refused").into())
    }
    let bomb = Bomb;
    let cases: Vec<(Given, &str)> = vec![
        (Given::new().start(|_| refused()), "has failed: refused"),
        (Given::new().start(|_| panic!("a")), "has panicked: a"),
        (Given::new().event(|_| refused()), "has failed: refused"),
        (Given::new().start(|threads| Ok(threads.start("more", |_| refused())?)), "has failed: refused"),
        (Given::new().start(|threads| Ok(threads.start("more", |_| panic!("b"))?)), "has panicked: b"),
    ];
    let at_the_end: Vec<(Given, &str)> = vec![
        (Given::new().stop(|()| refused()), "has failed: refused"),
        (Given::new().stop(|()| std::panic::panic_any(7)), "has panicked: without a message"),
        (
            Given::new().stop(move |()| {
                let _kept = &bomb;
                Ok(())
            }),
            "has panicked: dropped",
        ),
    ];
    for (given, expected) in cases {
        let (extensions, told) = begun(PATIENT, vec![given]);
        extensions.tell(&EventKind::PodStarted);
        assert_eq!(failure(&told), format!("given {expected}"));
        extensions.stop();
        assert!(told.try_recv().is_err(), "{expected}: it is told once");
    }
    for (given, expected) in at_the_end {
        let (extensions, told) = begun(PATIENT, vec![given]);
        extensions.stop();
        // It is told before the end of the pod is.
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [format!("given {expected}")]);
    }
}

#[test]
fn a_slow_start_is_given_up_and_its_events_are_not_kept() {
    let (end, mut wait) = stuck();
    let (seen, calls) = channel();
    let given = Given::new()
        .start(move |_| {
            wait();
            Ok(())
        })
        .event(move |occurrence| Ok(seen.send(occurrence)?));
    let (extensions, told) = begun(Deadlines { start: SHORT, ..PATIENT }, vec![given]);
    assert_eq!(failure(&told), "given has missed its deadline to start");
    extensions.tell(&EventKind::PodStarted);
    drop(end);
    // The value is dropped without another call.
    assert!(calls.recv_timeout(LONG).is_err());
    extensions.stop();
    assert!(told.try_recv().is_err());
}

#[test]
fn a_slow_event_is_given_up_and_nobody_waits_for_it() {
    let (end, mut wait) = stuck();
    let given = Given::new().event(move |_| {
        wait();
        Ok(())
    });
    let (extensions, told) = begun(Deadlines { event: SHORT, ..PATIENT }, vec![given]);
    extensions.tell(&EventKind::PodStarted);
    assert_eq!(failure(&told), "given has missed its deadline to take an event");
    let before = Instant::now();
    extensions.stop();
    assert!(before.elapsed() < LONG, "it was over already");
    drop(end);
}

#[test]
fn who_does_not_stop_is_left_behind_at_the_common_deadline() {
    let (ends, given): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| {
            let (end, mut wait) = stuck();
            let given = Given::new().stop(move |()| {
                wait();
                Ok(())
            });
            (end, given)
        })
        .unzip();
    let (extensions, told) = begun(Deadlines { stop: SHORT, ..PATIENT }, given);
    extensions.stop();
    // Everything is told before the end of the pod is.
    let told: Vec<String> = told.try_iter().collect();
    assert_eq!(told, ["given has missed its deadline to stop"; 3]);
    drop(ends);
}

#[test]
fn a_full_queue_is_dropped_and_counted_and_delays_nobody() {
    let (end, mut wait) = stuck();
    let (seen, calls) = channel();
    let given = Given::new()
        .start(move |_| {
            wait();
            Ok(())
        })
        .event(move |occurrence| Ok(seen.send(occurrence)?));
    let (extensions, told) = begun(PATIENT, vec![given]);
    // Nothing is taken before the start has returned, and yet none of these calls waits.
    for _ in 0..2 * MAX_WAITING + 1 {
        extensions.tell(&EventKind::PodStarted);
    }
    extensions.tell(&EventKind::ShuttingDown);
    drop(end);
    extensions.stop();
    let calls: Vec<Occurrence> = calls.iter().collect();
    let missed = Occurrence::Missed { events: 2 * MAX_WAITING as u64 };
    let [first, second] = [EventKind::PodStarted, EventKind::ShuttingDown].map(Occurrence::Event);
    assert_eq!(calls, [missed, first, second]);
    assert!(told.try_recv().is_err());
}

#[test]
fn threads_hear_of_the_end() {
    let (seen, ended) = channel();
    let given = Given::new().start(move |threads| {
        let seen = seen.clone();
        Ok(threads.start("more", move |ending| {
            seen.send(ending.has_begun())?;
            crate::sync::wait([(ending.as_fd(), nix::poll::PollFlags::POLLIN)], None)?;
            Ok(seen.send(ending.has_begun())?)
        })?)
    });
    let (extensions, told) = begun(PATIENT, vec![given]);
    assert_eq!(ended.recv_timeout(LONG), Ok(false));
    extensions.stop();
    assert_eq!(ended.recv_timeout(LONG), Ok(true));
    assert!(told.try_recv().is_err());
}

#[test]
fn a_hook_ends_the_program_for_threads_of_nobody_else() {
    assert!(!contains_panic());
    assert_eq!(contain::caught(|| 7), Ok(7));
    let asked = contain::caught(contains_panic);
    assert_eq!(asked, Ok(true));
    assert!(!contains_panic(), "the thread is not the extension's any more");
}
