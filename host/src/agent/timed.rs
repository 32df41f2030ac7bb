//! Reads that end at a deadline, and the reasons to extend it.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Asked when a deadline has passed: whether the peer has a reason to be late and gets the same time once more. A paused VM has one; what
/// the guest itself says never counts.
pub struct DeadlineExtension(Box<dyn FnMut() -> bool + Send>);

impl DeadlineExtension {
    pub fn new(is_excused: impl FnMut() -> bool + Send + 'static) -> Self {
        Self(Box::new(is_excused))
    }

    pub(super) fn is_excused(&mut self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for DeadlineExtension {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeadlineExtension")
    }
}

/// A stream whose reads end at a deadline, however many there are: a peer that sends a byte now and then gains nothing.
#[derive(Debug)]
pub(super) struct Timed {
    stream: UnixStream,
    deadline: Option<Instant>,
    /// The time from when the deadline was set until the deadline.
    time: Duration,
    extension: Option<DeadlineExtension>,
    armed: bool,
}

impl Timed {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, deadline: None, time: Duration::ZERO, extension: None, armed: false }
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
        self.time =
            deadline.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
    }

    pub(super) fn extend_deadlines(&mut self, extension: DeadlineExtension) {
        self.extension = Some(extension);
    }

    pub(super) fn take_extension(&mut self) -> Option<DeadlineExtension> {
        self.extension.take()
    }

    /// How long a read may take from now on.
    fn left(&mut self, deadline: Instant) -> io::Result<Duration> {
        let left = deadline.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Ok(left);
        }
        let is_excused = self.extension.as_mut().is_some_and(DeadlineExtension::is_excused);
        if !is_excused || self.time.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.deadline = Some(Instant::now() + self.time);
        Ok(self.time)
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(deadline) = self.deadline {
                let left = self.left(deadline)?;
                self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                self.armed = true;
            } else if self.armed {
                self.stream.set_read_timeout(None)?;
                self.armed = false;
            }
            match self.stream.read(buffer) {
                // The deadline, which is checked once more, or slightly before it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.deadline.is_some() => {}
                result => return result,
            }
        }
    }
}
