//! Messages on a byte stream: a little-endian `u32` length, then that many bytes of postcard.
//!
//! There is no checksum. An emulated serial port may lose a byte but never alters one, and a lost
//! byte leaves the reader waiting for the end of a frame until its caller's deadline.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// What the agent sends before its first frame, so that stray bytes before it (a firmware's
/// banner, an echo) are recognised as such. Read as a frame's length it is far too large.
pub const MAGIC: [u8; 8] = *b"\x7fmoat\r\n\xff";

/// The most bytes that one frame may carry.
pub const MAX_FRAME: usize = 1 << 20;

/// The most bytes of a file or of memory that one message may carry: a frame less its envelope.
pub const MAX_DATA: usize = MAX_FRAME - 4096;

const LENGTH_SIZE: usize = size_of::<u32>();

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other end was closed.
    #[error("the other end of the agent's channel was closed")]
    Closed,
    /// The agent sent its greeting again where an answer was expected.
    #[error("the guest restarted: its agent sent its greeting again")]
    Restarted,
    /// A length that no correct sender writes.
    #[error("a frame of {0} bytes is above the limit of {MAX_FRAME}: the stream is out of step")]
    TooLong(usize),
    /// The bytes are not the expected message.
    #[error("a frame does not hold the expected message")]
    Malformed(#[source] postcard::Error),
    /// The stream itself failed; a deadline that has passed is `WouldBlock` or `TimedOut`.
    #[error("the agent's channel failed")]
    Io(#[from] io::Error),
}

/// Sends one message, in a single `write` where the stream allows it.
pub fn write_frame<T: Serialize>(mut writer: impl Write, message: &T) -> Result<(), FrameError> {
    let mut bytes =
        postcard::to_extend(message, vec![0; LENGTH_SIZE]).map_err(FrameError::Malformed)?;
    let length = bytes.len() - LENGTH_SIZE;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    bytes[..LENGTH_SIZE].copy_from_slice(&(length as u32).to_le_bytes());
    writer.write_all(&bytes)?;
    Ok(writer.flush()?)
}

/// Receives messages. Bytes of an incomplete frame are kept, so that a read which ended at a
/// deadline can be resumed.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    pending: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// A reader at the current position of `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// The stream underneath.
    pub fn stream(&self) -> &R {
        &self.stream
    }

    /// The stream underneath, to change its settings.
    pub fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Drops everything up to and including the next [`MAGIC`].
    pub fn skip_to_magic(&mut self) -> Result<(), FrameError> {
        loop {
            if let Some(at) = self.pending.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) {
                self.pending.drain(..at + MAGIC.len());
                return Ok(());
            }
            let undecided = self.pending.len().min(MAGIC.len() - 1);
            self.pending.drain(..self.pending.len() - undecided);
            self.fill()?;
        }
    }

    /// The next message.
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        loop {
            if let Some(end) = self.frame_end()? {
                let message = postcard::from_bytes(&self.pending[LENGTH_SIZE..end]);
                self.pending.drain(..end);
                return message.map_err(FrameError::Malformed);
            }
            self.fill()?;
        }
    }

    /// Where the first pending frame ends, once it is complete.
    fn frame_end(&self) -> Result<Option<usize>, FrameError> {
        let Some(length) = self.pending.first_chunk::<LENGTH_SIZE>() else { return Ok(None) };
        if MAGIC.starts_with(length) {
            return Err(FrameError::Restarted);
        }
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        let end = LENGTH_SIZE + length;
        Ok((self.pending.len() >= end).then_some(end))
    }

    fn fill(&mut self) -> Result<(), FrameError> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk)? {
            0 => Err(FrameError::Closed),
            count => {
                self.pending.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out one byte a read, then reports a deadline.
    struct Drip(std::collections::VecDeque<u8>);

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer[0] = self.0.pop_front().ok_or(io::ErrorKind::TimedOut)?;
            Ok(1)
        }
    }

    fn framed(message: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &message).unwrap();
        bytes
    }

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let mut reader = FrameReader::new(Drip([framed("one"), framed("two")].concat().into()));
        assert_eq!(reader.read::<String>().unwrap(), "one");
        assert_eq!(reader.read::<String>().unwrap(), "two");
    }

    #[test]
    fn a_read_that_met_its_deadline_resumes() {
        let bytes = framed("slow");
        let mut reader = FrameReader::new(Drip(bytes[..6].to_vec().into()));
        assert!(matches!(reader.read::<String>(), Err(FrameError::Io(_))));
        reader.stream.0.extend(&bytes[6..]);
        assert_eq!(reader.read::<String>().unwrap(), "slow");
    }

    #[test]
    fn stray_bytes_before_the_magic_are_dropped() {
        let stray = b"SeaBIOS \x7fmoat\r".to_vec();
        let bytes = [stray, MAGIC.to_vec(), framed("hello")].concat();
        let mut reader = FrameReader::new(Drip(bytes.into()));
        reader.skip_to_magic().unwrap();
        assert_eq!(reader.read::<String>().unwrap(), "hello");
    }

    #[test]
    fn a_second_hello_is_a_restart_and_can_be_picked_up() {
        let bytes = [MAGIC.to_vec(), framed("again")].concat();
        let mut reader = FrameReader::new(bytes.as_slice());
        assert!(matches!(reader.read::<String>(), Err(FrameError::Restarted)));
        reader.skip_to_magic().unwrap();
        assert_eq!(reader.read::<String>().unwrap(), "again");
    }

    #[test]
    fn hostile_lengths_and_bodies_are_errors() {
        let mut reader = FrameReader::new([0xff; 8].as_slice());
        assert!(matches!(reader.read::<String>(), Err(FrameError::TooLong(_))));
        let mut reader = FrameReader::new([1, 0, 0, 0, 9].as_slice());
        assert!(matches!(reader.read::<String>(), Err(FrameError::Malformed(_))));
        let mut reader = FrameReader::new([5, 0, 0, 0, 1].as_slice());
        assert!(matches!(reader.read::<String>(), Err(FrameError::Closed)));
    }

    #[test]
    fn a_message_above_the_limit_is_not_sent() {
        let mut sent = Vec::new();
        let error = write_frame(&mut sent, &vec![0u8; MAX_FRAME]).unwrap_err();
        assert!(matches!(error, FrameError::TooLong(_)));
        assert!(sent.is_empty());
    }
}
