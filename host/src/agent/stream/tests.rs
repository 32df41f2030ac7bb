//! Both ends working at once, and guests that do not follow the rules.

use super::*;
use magikvm_proto::stream::{STDERR, STDIN, STDOUT, WINDOW_TO_GUEST, WINDOW_TO_HOST};
use magikvm_proto::wire::{ExitStatus, WindowSize};
use std::os::unix::net::UnixStream;
use std::thread;

fn over(socket: UnixStream, side: Side) -> AgentStream {
    AgentStream::new(GuestStream::own(socket), side, Traffic::PROCESS, &[], None).unwrap()
}

/// Both ends of a stream.
fn pair() -> (AgentStream, AgentStream) {
    let (host, guest) = UnixStream::pair().unwrap();
    (over(host, Side::Host), over(guest, Side::Guest))
}

/// The host's end, and a raw socket in place of the guest.
fn against() -> (AgentStream, UnixStream) {
    let (host, guest) = UnixStream::pair().unwrap();
    (over(host, Side::Host), guest)
}

fn letters(count: usize) -> Vec<u8> {
    (0..count).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect()
}

/// Behaves like `cat`, which reads only when it has written.
fn cat(guest: &AgentStream) {
    while let Some(received) = guest.next().unwrap() {
        let Received::Data { channel: STDIN, bytes } = received else { panic!("{received:?}") };
        guest.send(STDOUT, &bytes).unwrap();
    }
    guest.say(&StreamMessage::Exit(ExitStatus::exited(3))).unwrap();
    guest.end();
}

#[test]
fn megabytes_go_both_ways_at_once_and_the_exit_comes_last() {
    let (host, guest) = pair();
    let guest = thread::spawn(move || cat(&guest));
    let sent = letters(8 << 20);
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            host.send(STDIN, &sent).unwrap();
            host.end();
        });
        loop {
            match host.next().unwrap().unwrap() {
                Received::Data { channel: STDOUT, bytes } => back.extend(bytes),
                received => {
                    break assert_eq!(
                        received,
                        Received::Message(StreamMessage::Exit(ExitStatus::exited(3)))
                    );
                }
            }
        }
    });
    assert!(back == sent);
    assert_eq!(host.next().unwrap(), None);
    guest.join().unwrap();
}

#[test]
fn who_does_not_take_output_may_still_send_input() {
    let (host, guest) = pair();
    thread::scope(|scope| {
        let printed = scope.spawn(|| {
            // Runs until the end of the input, however much of the output is read.
            let printer = scope.spawn(|| while guest.send(STDERR, &[b'y'; 1000]).is_ok() {});
            let mut input = 0;
            while let Some(Received::Data { bytes, .. }) = guest.next().unwrap() {
                input += bytes.len();
            }
            guest.close();
            printer.join().unwrap();
            input
        });
        // Sends some megabytes without reading a byte of the output. Only one window's worth of it is held.
        host.send(STDIN, &letters(4 << 20)).unwrap();
        let held = host.lock().link.inbox().len();
        assert!(held > 0 && held < WINDOW_TO_HOST as usize, "{held}");
        host.end();
        assert_eq!(printed.join().unwrap(), 4 << 20);
    });
    while host.next().is_ok() {}
}

#[test]
fn a_new_size_does_not_wait_for_input_that_nobody_takes() {
    let (host, guest) = pair();
    thread::scope(|scope| {
        let sender = scope.spawn(|| host.send(STDIN, &letters(1 << 20)));
        let mut state = guest.lock();
        while state.link.inbox().len() < WINDOW_TO_GUEST as usize / 2 {
            state = guest.progress(state);
        }
        drop(state);
        let size = UrgentMessage::Resize(WindowSize { rows: 50, cols: 132 });
        host.send_urgent(&size).unwrap();
        let message = loop {
            let mut state = guest.lock();
            if let Some(message) = state.link.take_urgent() {
                break message;
            }
            drop(guest.progress(state));
        };
        assert_eq!(serde_json::from_slice::<UrgentMessage>(&message).unwrap(), size);
        host.close();
        assert!(matches!(sender.join().unwrap(), Err(StreamError::Closed)));
    });
}

#[test]
fn what_was_said_before_the_connection_ended_is_heard() {
    let (host, mut guest) = against();
    guest.write_all(&[0, 0, 0, 3, b'b', b'y', b'e', 0, 0, 0x40, 4, b'h']).unwrap();
    drop(guest);
    assert!(matches!(host.next(), Ok(Some(Received::Data { channel: STDOUT, bytes })) if bytes == b"bye"));
    assert!(matches!(host.next(), Ok(Some(Received::Data { channel: STDERR, bytes })) if bytes == b"h"));
    assert!(matches!(host.next(), Err(StreamError::Closed)));
    assert!(matches!(host.send(STDIN, b"x"), Err(StreamError::Closed)));
}

#[test]
fn what_no_honest_guest_sends_ends_the_stream() {
    let urgent = [5, 0, 0, 1, b'x'];
    let huge = [0, 0, 0x3f, 0xff];
    let flood = [0, 0, 0, 1, b'x'].repeat(1000);
    for bytes in [urgent.as_slice(), &huge, &flood, b"{\"stream\":\"stdout\",\"len\":5}\n"] {
        let (host, mut guest) = against();
        guest.write_all(bytes).unwrap();
        // Data sent before the failure may be received first.
        let error = loop {
            if let Err(error) = host.next() {
                break error;
            }
        };
        assert!(matches!(error, StreamError::Violation(_)), "{error:?}");
    }
    let (host, mut guest) = against();
    guest.write_all(b"\x04\0\0\x05hello").unwrap();
    assert!(matches!(host.next(), Err(StreamError::Message(_))));
}

#[test]
fn silence_is_waited_for_and_half_a_frame_is_not() {
    for (half, excuses) in [([0].as_slice(), 0), (&[4, 0, 0, 9, b'{'], 0), (&[0, 0], 2)] {
        let (host, mut guest) = against();
        let mut left = excuses;
        {
            let mut state = host.lock();
            state.time = Duration::from_millis(100);
            state.extension = Some(DeadlineExtension::new(move || {
                left -= 1;
                left >= 0
            }));
        }
        let begun = Instant::now();
        let silent = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            guest.write_all(half).unwrap();
            // Sending a byte of a frame now and then gains nothing.
            guest
        });
        assert!(matches!(host.next(), Err(StreamError::Late)));
        let least = Duration::from_millis(300 + 100 * u64::try_from(excuses + 1).unwrap());
        assert!((least..Duration::from_secs(20)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        drop(silent.join().unwrap());
    }
}

#[test]
fn a_guest_that_reads_nothing_is_given_up() {
    let (host, guest) = against();
    host.lock().time = Duration::from_millis(50);
    let mut result = Ok(());
    for _ in 0..100_000 {
        result = host.send_urgent(&UrgentMessage::Signal { signal: 2 });
        if result.is_err() {
            break;
        }
    }
    assert!(matches!(result, Err(StreamError::Late)), "{result:?}");
    drop(guest);
}

#[test]
fn two_ends_with_two_threads_each_never_wait_for_each_other() {
    for round in 0..20usize {
        let (host, guest) = pair();
        let drive = |end: &AgentStream, size: usize| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for piece in letters(1 << 20).chunks(size) {
                        end.send(0, piece).unwrap();
                    }
                    end.end();
                });
                let mut count = 0;
                while let Some(Received::Data { bytes, .. }) = end.next().unwrap() {
                    count += bytes.len();
                }
                count
            })
        };
        let other = thread::spawn(move || drive(&guest, 200 + 777 * round));
        assert_eq!(drive(&host, 300 + 333 * round), 1 << 20);
        assert_eq!(other.join().unwrap(), 1 << 20);
    }
}

#[test]
fn a_reader_is_told_when_a_writer_finds_that_the_guest_accepts_nothing() {
    let (host, guest) = UnixStream::pair().unwrap();
    nix::sys::socket::setsockopt(&host, nix::sys::socket::sockopt::SndBuf, &4096).unwrap();
    let host = over(host, Side::Host);
    host.lock().time = Duration::from_millis(50);
    thread::scope(|scope| {
        let reader = scope.spawn(|| host.next());
        let sent = host.send(STDIN, &letters(60_000));
        assert!(matches!(sent, Err(StreamError::Late)), "{sent:?}");
        assert!(matches!(reader.join().unwrap(), Err(StreamError::Late)));
    });
    drop(guest);
}
