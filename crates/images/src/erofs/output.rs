//! The output of an image: gathers neighbouring bytes and seeks for the rest.

use super::ErofsError;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bytes gathered before a write.
const BUFFER_LEN: usize = 1 << 20;

/// Sets a range of the output to zeros: (output, offset, length).
pub(super) type Zero<W> = fn(&mut W, u64, u64) -> io::Result<()>;

#[derive(Debug)]
pub(super) struct Output<W> {
    out: W,
    /// Current position of `out`.
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    zero: Zero<W>,
}

impl<W: Write + Seek> Output<W> {
    pub(super) fn new(out: W, zero: Zero<W>) -> Self {
        // An impossible position, so that the first write seeks.
        Self { out, at: u64::MAX, buffer: Vec::with_capacity(BUFFER_LEN), buffer_at: 0, zero }
    }

    /// Writes bytes at an offset.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        if offset != self.buffer_at + self.buffer.len() as u64 || self.buffer.len() + bytes.len() > BUFFER_LEN
        {
            self.flush()?;
            self.buffer_at = offset;
        }
        if bytes.len() >= BUFFER_LEN {
            self.write_out(offset, bytes)?;
            self.buffer_at = offset + bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Sets a range to zeros, whatever it held before.
    pub(super) fn clear(&mut self, offset: u64, length: u64) -> Result<(), ErofsError> {
        self.flush()?;
        (self.zero)(&mut self.out, offset, length)
            .map_err(ErofsError::io("clear blocks of the file system image"))?;
        self.at = u64::MAX;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ErofsError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.write_out(self.buffer_at, &buffer);
        self.buffer_at += buffer.len() as u64;
        buffer.clear();
        self.buffer = buffer;
        result
    }

    fn write_out(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        if self.at != offset {
            self.out
                .seek(SeekFrom::Start(offset))
                .map_err(ErofsError::io("seek in the file system image"))?;
        }
        self.out.write_all(bytes).map_err(ErofsError::io("write the file system image"))?;
        self.at = offset + bytes.len() as u64;
        Ok(())
    }

    /// Writes all gathered bytes.
    pub(super) fn complete(&mut self) -> Result<(), ErofsError> {
        self.flush()?;
        self.out.flush().map_err(ErofsError::io("write the file system image"))
    }

    #[cfg(test)]
    pub(super) fn into_inner(self) -> W {
        self.out
    }
}

/// Zeros for any output, by writing them.
pub fn zero_by_writing<W: Write + Seek>(out: &mut W, offset: u64, length: u64) -> io::Result<()> {
    out.seek(SeekFrom::Start(offset))?;
    let copied = io::copy(&mut io::repeat(0).take(length), out)?;
    debug_assert_eq!(copied, length);
    Ok(())
}
