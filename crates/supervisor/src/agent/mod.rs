//! Serves the host's requests on a socket. Owns: who may connect and how many. Must not know: how
//! containers are made.

mod attach;
mod connection;
mod exec;
mod follow;
mod input;
mod requests;
mod stream;

use crate::interface::Door;
use crate::output::MAX_CHUNK;
use crate::output::attach::QUEUE;
use crate::pod::Pod;
use crate::sync::{lock, thread};
use connection::Connection;
use magikvm_proto::limits::{MAX_AGENT_CONNECTIONS, MAX_LINE_LEN, MAX_SESSIONS};
use magikvm_proto::stream::WINDOW_TO_GUEST;
use magikvm_proto::wire::{Done, Refusal, RefusalCode, Reply};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Delay after a failed accept, so that a lasting failure does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Memory that one session may hold beside its thread and its process: its request, what the host has sent and the process has not taken, one
/// frame that is sent and one that is read, and for attach the output that waits.
const SESSION_BYTES: usize = MAX_LINE_LEN + WINDOW_TO_GUEST as usize + 2 * MAX_CHUNK + QUEUE;
/// All sessions together must fit into what a VM has in addition to the memory of its containers (96 MiB), with room for the rest.
const _: () = assert!(MAX_SESSIONS * SESSION_BYTES <= 32 << 20);

/// Counts one served connection as long as this value lives.
struct Slot(Arc<Mutex<usize>>);

impl Slot {
    fn take(slots: &Arc<Mutex<usize>>) -> Option<Self> {
        let mut taken = lock(slots);
        if *taken == MAX_AGENT_CONNECTIONS {
            return None;
        }
        *taken += 1;
        Some(Self(Arc::clone(slots)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *lock(&self.0) -= 1;
    }
}

pub(crate) fn start(pod: Arc<Pod>) -> io::Result<()> {
    let slots = Arc::new(Mutex::new(0));
    thread("agent", move || {
        loop {
            match pod.home.accept(Door::Agent) {
                Ok(None) => {}
                Ok(Some(socket)) => admit(&pod, &slots, Connection::new(socket)),
                Err(error) => {
                    pod.home.note(&format!("agent: {error}"));
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    })
}

fn admit(pod: &Arc<Pod>, slots: &Arc<Mutex<usize>>, mut connection: Connection) {
    let Some(slot) = Slot::take(slots) else {
        let message = format!("the agent already serves {MAX_AGENT_CONNECTIONS} connections");
        connection.try_send(&Reply::<Done>::Error(Refusal::new(RefusalCode::Busy, message)));
        return;
    };
    let (pod, home) = (Arc::clone(pod), Arc::clone(&pod.home));
    let served = thread("connection", move || {
        requests::serve(&pod, connection);
        drop(slot);
    });
    if let Err(error) = served {
        home.note(&format!("agent: cannot start a thread: {error}"));
    }
}
