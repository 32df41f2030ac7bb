//! The monitor's socket, for requests that only the monitor can carry out.

use super::message::{Message, spawn};
use crate::os;
use crate::pod::control::ControlRequest;
use crate::store::atomic::FileError;
use crate::store::layout::PodDir;
use crate::store::text::ignore;
use magikvm_proto::codec::{read_message, write_message};
use magikvm_proto::wire::{Done, Refusal, RefusalCode, Reply};
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, channel};
use std::time::Duration;

/// Time for a client to send its request.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// Listens in the pod's directory and forwards each request to the reactor.
pub(super) fn listen(dir: &PodDir, to_reactor: SyncSender<Message>) -> Result<(), FileError> {
    let path = dir.control_sock();
    let listener = os::bind_unix(&path).map_err(FileError::at("listen on", &path))?;
    spawn("control", &to_reactor.clone(), move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let to_serve = to_reactor.clone();
            // A client that cannot be served now sees its connection end, and may try again.
            let served = spawn("client", &to_reactor, move || serve(&stream, &to_serve));
            ignore(served, "the connection ended with the thread's closure");
        }
    })
    .map_err(|error| FileError::at("listen on", &path)(error.into()))?;
    Ok(())
}

fn serve(mut stream: &UnixStream, to_reactor: &SyncSender<Message>) {
    if stream.set_read_timeout(Some(REQUEST_WAIT)).is_err() {
        return;
    }
    let reply = match read_message::<ControlRequest>(&mut BufReader::new(stream)) {
        Ok(Some(request)) => {
            let (done, wait) = channel();
            if to_reactor.send(Message::Control { request, done }).is_err() {
                return;
            }
            match wait.recv() {
                Ok(Ok(())) => Reply::Ok(Done {}),
                Ok(Err(refusal)) => Reply::Error(refusal),
                // The reactor drops `done` unused only when the process ends.
                Err(_) => return,
            }
        }
        Ok(None) => return,
        Err(error) => Reply::Error(Refusal::new(RefusalCode::Invalid, error.to_string())),
    };
    ignore(write_message(&mut stream, &reply), "the client has gone; its request was carried out");
}
