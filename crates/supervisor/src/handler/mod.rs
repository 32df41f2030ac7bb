//! Carries out probes and hooks, each on a separate thread, and says how it went. Owns: the clients of HTTP, TCP and gRPC, and the
//! programs that run in a container. Must not know: when a probe is due, and what follows from its outcome.
//!
//! An attempt never waits without its deadline and its bell. It ends in time, and at once when the one who began it is no longer
//! interested. What the other side sends is hostile: every length is bounded, and the parsers ([`answer`], [`h2`]) are pure.
//!
//! The words of failures are those of the kubelet, which people search for.

pub mod answer;
mod exec;
mod grpc;
pub mod h2;
mod hpack;
mod http;
#[cfg_attr(not(feature = "https"), path = "no_tls.rs")]
mod tls;
mod url;
mod wire;

#[cfg(test)]
mod tests;

use crate::pod::Pod;
use crate::sync::{self, Bell, lock};
use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::Handler;
use magikvm_proto::plan::GuestPlan;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::{Limit, Where, Wire};

/// Most attempts at a time. Each of 32 containers has at most three probes and one hook under way; others were cancelled and have not
/// ended yet.
const MAX_AT_ONCE: usize = 160;
/// Stack of an attempt, in bytes. Its deepest work is a TLS handshake.
const STACK: usize = 512 << 10;

/// How a probe or a hook has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure(String),
    /// It could not be carried out, which says nothing about the container.
    Error(String),
}

/// What an attempt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Probe,
    /// As in the kubelet, an HTTP answer of any status is a success.
    Hook,
}

/// The container of a probe or a hook.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) container: &'a ContainerName,
    pub(crate) purpose: Purpose,
}

/// A probe or a hook that is being run. Dropping it cancels it: `done` is not called any more, and its program is killed.
#[derive(Debug)]
pub(crate) struct Running(Option<Arc<Bell>>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(bell) = &self.0 {
            bell.ring();
        }
    }
}

/// The attempts of this process that have not ended.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// One of [`MAX_AT_ONCE`].
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let free = |count: usize| (count < MAX_AT_ONCE).then_some(count + 1);
        UNDER_WAY.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Begins to run a probe or a hook. `done` is called once, on any thread, when it has ended by itself, has timed out or could not begin.
pub(crate) fn run(
    handler: &Handler,
    target: Target<'_>,
    timeout: Duration,
    done: impl FnOnce(Outcome) + Send + 'static,
) -> Running {
    // The thread takes it, or this function if there is no thread.
    let done = Arc::new(Mutex::new(Some(done)));
    let tell = {
        let done = Arc::clone(&done);
        move |outcome| {
            if let Some(done) = lock(&done).take() {
                done(outcome);
            }
        }
    };
    match begin(handler, target, timeout, tell.clone()) {
        Ok(running) => running,
        Err(why) => {
            tell(Outcome::Error(format!("cannot begin: {why}")));
            Running(None)
        }
    }
}

fn begin(
    handler: &Handler,
    target: Target<'_>,
    timeout: Duration,
    tell: impl FnOnce(Outcome) + Send + 'static,
) -> Result<Running, String> {
    let place = Place::take().ok_or_else(|| format!("{MAX_AT_ONCE} probes and hooks have not ended yet"))?;
    let bell = Arc::new(Bell::new().map_err(|error| error.to_string())?);
    let limit = Limit::new(timeout, Arc::clone(&bell));
    let (handler, pod, container) = (handler.clone(), Arc::clone(target.pod), target.container.clone());
    let purpose = target.purpose;
    let work = move || {
        let outcome = match &handler {
            Handler::Exec { command } => exec::run(&pod, &container, command, purpose, &limit),
            other => contact(other, purpose, &addresses(pod.plan.as_ref()), &limit),
        };
        drop(place);
        if let Some(outcome) = outcome {
            tell(outcome);
        }
    };
    sync::thread_with_stack("handler", STACK, work).map_err(|error| error.to_string())?;
    Ok(Running(Some(bell)))
}

/// The addresses at which the pod is asked, in this order: its first one, or those of its loopback interface if it has no network. The
/// kubelet does not reach what listens on loopback only, and so a probe of a pod with a network does not.
fn addresses(plan: Option<&GuestPlan>) -> Vec<IpAddr> {
    let planned = |plan: &GuestPlan| plan.network.as_ref()?.addresses.first().map(|first| first.address);
    match plan.and_then(|plan| planned(plan).or(plan.given_address)) {
        Some(first) => vec![first],
        None => LOOPBACK.to_vec(),
    }
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A handler that runs no program. `None` if it was cancelled.
fn contact(handler: &Handler, purpose: Purpose, pod: &[IpAddr], limit: &Limit) -> Option<Outcome> {
    match handler {
        Handler::HttpGet { scheme, host, port, path, headers } => {
            let place = Where::of(host.as_deref(), pod);
            http::get(&http::Get { scheme: *scheme, place, port: *port, path, headers, purpose }, limit)
        }
        Handler::TcpSocket { host, port } => {
            let place = Where::of(host.as_deref(), pod);
            match Wire::connect(&place, *port, limit) {
                Ok(_) => Some(Outcome::Success),
                Err(wire::Broken::Cancelled) => None,
                Err(broken) => Some(Outcome::Failure(broken.to_string())),
            }
        }
        Handler::Grpc { port, service } => grpc::check(&Where::of(None, pod), *port, service, limit),
        Handler::Sleep { seconds } => limit.sleep(Duration::from_secs(*seconds)),
        Handler::Exec { .. } => Some(Outcome::Error("there is no container to run a program in".to_owned())),
    }
}
