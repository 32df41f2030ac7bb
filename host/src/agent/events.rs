//! The pod's events as they arrive.

use super::{AgentStream, Received, StreamError};
use magikvm_proto::limits::MAX_LINE_LEN;
use magikvm_proto::wire::Event;
use std::sync::Arc;

#[derive(Debug)]
pub struct EventStream {
    stream: AgentStream,
    /// The beginning of a line, and perhaps lines behind it.
    lines: Vec<u8>,
    /// The leading bytes known to contain no newline.
    searched: usize,
}

impl EventStream {
    /// The stream that follows the answer to the request for events.
    #[must_use]
    pub fn new(stream: AgentStream) -> Self {
        Self { stream, lines: Vec::new(), searched: 0 }
    }

    /// The next event; `None` once the guest says that no more will follow. If the connection ends before, that is an error.
    pub fn event(&mut self) -> Result<Option<Event>, StreamError> {
        loop {
            if let Some(end) = self.lines[self.searched..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.lines.drain(..=self.searched + end).collect();
                self.searched = 0;
                let event = serde_json::from_slice(&line);
                return event.map(Some).map_err(|error| StreamError::Message(Arc::new(error)));
            }
            self.searched = self.lines.len();
            if self.lines.len() >= MAX_LINE_LEN {
                return Err(StreamError::LineTooLong);
            }
            match self.stream.next()? {
                Some(Received::Data { bytes, .. }) => self.lines.extend_from_slice(&bytes),
                Some(Received::Message(_)) => {}
                None => return Ok(None),
            }
        }
    }
}
