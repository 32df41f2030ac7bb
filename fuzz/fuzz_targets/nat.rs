//! A hostile guest before its NAT. The host's side of every socket is a pair of which the fuzzer plays the other end. Nothing may break, the
//! tables stay within their caps, and what goes to the guest is a frame that the filter can read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm::net::nat::{Kind, Nat, Outside};
use magikvm::net::{GUEST_4, GUEST_6, GUEST_MAC, PASST_MAC, packet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const MAX_STEPS: usize = 64;

/// The ends that the fuzzer plays.
#[derive(Default)]
struct Pairs {
    streams: Vec<UnixStream>,
    others: Vec<UnixDatagram>,
}

struct World<'a>(&'a std::cell::RefCell<Pairs>);

impl Outside for World<'_> {
    fn open(&mut self, kind: Kind, to: SocketAddr) -> nix_result::Result {
        let mut pairs = self.0.borrow_mut();
        let failed = |_| nix_result::refused(to.port());
        if kind == Kind::Tcp {
            let (one, two) = UnixStream::pair().map_err(failed)?;
            one.set_nonblocking(true).map_err(failed)?;
            two.set_nonblocking(true).map_err(failed)?;
            pairs.streams.push(two);
            Ok(OwnedFd::from(one))
        } else {
            let (one, two) = UnixDatagram::pair().map_err(failed)?;
            one.set_nonblocking(true).map_err(failed)?;
            two.set_nonblocking(true).map_err(failed)?;
            pairs.others.push(two);
            Ok(OwnedFd::from(one))
        }
    }
}

/// What the NAT expects of the outside.
mod nix_result {
    pub type Result = std::result::Result<std::os::fd::OwnedFd, nix::errno::Errno>;

    pub fn refused(port: u16) -> nix::errno::Errno {
        if port % 2 == 0 { nix::errno::Errno::EMFILE } else { nix::errno::Errno::EHOSTUNREACH }
    }
}

/// Sets what no fuzzer would guess: the frame's addresses and lengths, and few ports.
fn dressed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = [PASST_MAC.0, GUEST_MAC.0].concat();
    let protocol = [6, 17, 1, 6][usize::from(kind >> 1 & 3)];
    let mut transport = body.to_vec();
    transport.resize(transport.len().max(20), 0);
    if protocol != 1 {
        (transport[0], transport[2]) = (0, 0);
        transport[1] = 1 + transport[1] % 3;
        transport[3] = 80 + transport[3] % 2;
    }
    if protocol == 17 {
        let length = u16::try_from(transport.len()).unwrap_or(u16::MAX);
        transport[4..6].copy_from_slice(&length.to_be_bytes());
    }
    if kind & 1 == 0 {
        let length = u16::try_from(20 + transport.len()).unwrap_or(u16::MAX);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(GUEST_4.octets());
        frame.extend([203, 0, 113, 5]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(transport.len()).unwrap_or(u16::MAX).to_be_bytes());
        frame.extend([if protocol == 1 { 58 } else { protocol }, 64]);
        frame.extend(GUEST_6.octets());
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
    }
    frame.extend(transport);
    frame
}

fn check(out: &mut Vec<u8>) {
    let mut rest = &out[..];
    while let Some((header, after)) = rest.split_first_chunk::<4>() {
        let (frame, after) = after.split_at(u32::from_be_bytes(*header) as usize);
        assert!(frame[..6] == GUEST_MAC.0 && packet::of_carrier(frame).is_ok());
        rest = after;
    }
    assert!(rest.is_empty());
    out.clear();
}

fuzz_target!(|bytes: &[u8]| {
    let pairs = std::cell::RefCell::new(Pairs::default());
    let mut now = Instant::now();
    let mut nat = Nat::new(World(&pairs), Vec::new(), now).expect("a poller");
    let (mut out, mut rest) = (Vec::new(), bytes);
    for _ in 0..MAX_STEPS {
        let Some((&[kind, length], after)) = rest.split_first_chunk::<2>() else { break };
        let (body, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        match kind >> 4 {
            // The peers speak, read or leave.
            0 => {
                for stream in &mut pairs.borrow_mut().streams {
                    let _ = stream.write(body);
                }
            }
            1 => {
                for other in &pairs.borrow().others {
                    let _ = other.send(body);
                }
            }
            2 => {
                for stream in &mut pairs.borrow_mut().streams {
                    let _ = stream.read(&mut [0; 4096]);
                }
            }
            3 => drop(pairs.borrow_mut().streams.pop()),
            4 => drop(pairs.borrow_mut().others.pop()),
            5 => now += Duration::from_millis(u64::from(length) * 40),
            6 => nat.from_guest(body, now, &mut out),
            _ => nat.from_guest(&dressed(kind & 15, body), now, &mut out),
        }
        nat.turn(now, &mut out).expect("a turn");
        check(&mut out);
    }
    let [tcp, udp, pings] = nat.counts();
    assert!(tcp <= MAX_STEPS && udp <= MAX_STEPS && pings <= MAX_STEPS);
});
