//! The guest's side of forwarded connections, for tests: without a guest, "the pod's ports" are sockets of the host.

use super::Client;
use crate::os::{Interest, Poller};
use magikvm_proto::codec::{read_message, write_message};
use magikvm_proto::forward::ForwardRequest;
use magikvm_proto::stream::{Link, Ready, Side, Traffic, Verdict, pump};
use magikvm_proto::wire::{Done, Refusal, RefusalCode, Reply};
use std::io::{self, BufReader};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Serves one connection to its end, like vminit.
pub(super) fn serve(host: UnixStream, connect: impl FnOnce(u16) -> io::Result<TcpStream>) -> io::Result<()> {
    // The host sends nothing more before it has the answer.
    let request = read_message::<ForwardRequest>(&mut BufReader::new(&host)).map_err(io::Error::other)?;
    let Some(ForwardRequest::Forward { port }) = request else { return Ok(()) };
    match connect(port) {
        Err(_) => {
            let refusal =
                Refusal::new(RefusalCode::NotFound, format!("nothing in the pod listens on port {port}"));
            write_message(&mut &host, &Reply::<Done>::Error(refusal)).map_err(io::Error::other)
        }
        Ok(port) => {
            write_message(&mut &host, &Reply::Ok(Done {})).map_err(io::Error::other)?;
            carry(host, Client(port))
        }
    }
}

fn carry(mut host: UnixStream, mut port: Client) -> io::Result<()> {
    host.set_nonblocking(true)?;
    port.0.set_nonblocking(true)?;
    let (mut link, mut scratch) = (Link::new(Side::Guest, Traffic::PORT), vec![0; 32 << 10]);
    let (mut poller, mut found) = (Poller::new()?, Vec::new());
    let mut watched = [Interest::NONE; 2];
    let mut ready = Ready { peer: (true, true), local: (true, true) };
    loop {
        let wanted = match pump(&mut link, &mut host, &mut port, ready, &mut scratch) {
            Verdict::Waits(wanted) => wanted,
            Verdict::Finished => return Ok(()),
            Verdict::Reset(_) | Verdict::Cut | Verdict::Violated(_) => {
                port.reset();
                return Ok(());
            }
        };
        let wanted = [wanted.peer, wanted.local].map(|(read, write)| Interest { read, write });
        for (key, (fd, (old, new))) in
            (0..).zip([host.as_fd(), port.0.as_fd()].into_iter().zip(watched.into_iter().zip(wanted)))
        {
            poller.set(fd, key, old, new)?;
        }
        watched = wanted;
        poller.wait(None, &mut found)?;
        ready = Ready::default();
        for (key, Interest { read, write }) in &found {
            if *key == 0 { ready.peer = (*read, *write) } else { ready.local = (*read, *write) }
        }
    }
}
