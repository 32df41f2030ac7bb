//! Misbehaviour on the guest's port for forwarded connections. The supervisor handles honest manners, with the ports of the host.

use super::Manner;
use crate::store::layout::FORWARD_SOCK;
use crate::store::text::ignore;
use magikvm_proto::codec::{read_message, write_message};
use magikvm_proto::forward::ForwardRequest;
use magikvm_proto::wire::{Done, Reply};
use std::io::{self, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// Whether the guest deviates from the supervisor on this port.
pub(super) fn lies(manner: Manner) -> bool {
    matches!(manner, Manner::ForwardGarbage | Manner::ForwardSilent | Manner::ForwardFlood)
}

/// Starts to serve the port.
pub(super) fn listen(manner: Manner) -> io::Result<()> {
    let listener = UnixListener::bind(FORWARD_SOCK)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            std::thread::spawn(move || {
                ignore(serve(stream, manner), "the host has gone, or has had enough");
            });
        }
    });
    Ok(())
}

fn serve(mut stream: UnixStream, manner: Manner) -> io::Result<()> {
    match manner {
        Manner::ForwardGarbage => stream.write_all(b"\x00\xff nonsense }\n\x1b[2J"),
        Manner::ForwardSilent => {
            std::thread::sleep(Duration::from_secs(3600));
            Ok(())
        }
        Manner::ForwardFlood => {
            read_message::<ForwardRequest>(&mut BufReader::new(&stream)).map_err(io::Error::other)?;
            write_message(&mut stream, &Reply::Ok(Done {})).map_err(io::Error::other)?;
            // More than the window allows.
            loop {
                stream.write_all(&[0, 0, 0, 1, b'x'])?;
            }
        }
        _ => Ok(()),
    }
}
