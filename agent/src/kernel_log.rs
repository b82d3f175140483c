//! The kernel's log, from /dev/kmsg: one record a read, oldest first.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
};

use agent_protocol::MAX_DATA;

/// The kernel's limit on one record.
const RECORD_MAX: usize = 8192;

/// Records from a sequence number on, a line each and without their dictionaries. Fewer than all
/// where a message could not carry more.
pub fn read(from: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for record in Records::open()? {
        let record = record?;
        if text.len() + record.line.len() > MAX_DATA {
            break;
        }
        if record.sequence >= from {
            text.extend_from_slice(&record.line);
        }
    }
    Ok(text)
}

/// The sequence number of the record that comes next.
pub fn end() -> io::Result<u64> {
    Records::open()?.try_fold(0, |_, record| Ok(record?.sequence + 1))
}

struct Record {
    sequence: u64,
    line: Vec<u8>,
}

struct Records(File);

impl Records {
    fn open() -> io::Result<Self> {
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").map(Self)
    }
}

impl Iterator for Records {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = [0; RECORD_MAX];
        loop {
            match self.0.read(&mut bytes) {
                Ok(length) => return Some(parse(&bytes[..length])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                // The record was overwritten meanwhile; the next read gives the oldest left.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// `priority,sequence,timestamp,flags;text\n`, then lines of the dictionary, each with a space
/// before it.
fn parse(record: &[u8]) -> io::Result<Record> {
    let line = record.split_inclusive(|&byte| byte == b'\n').next().unwrap_or_default();
    let sequence = line.split(|&byte| byte == b',').nth(1);
    sequence
        .and_then(|digits| str::from_utf8(digits).ok()?.parse().ok())
        .map(|sequence| Record { sequence, line: line.to_vec() })
        .ok_or_else(|| io::Error::other("/dev/kmsg gave a record without a sequence number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_its_first_line() {
        let record =
            parse(b"6,339,5140900,-;virtio_mem virtio0: probed\n SUBSYSTEM=virtio\n").unwrap();
        assert_eq!(record.sequence, 339);
        assert_eq!(record.line, b"6,339,5140900,-;virtio_mem virtio0: probed\n");
        assert!(parse(b"garbage").is_err());
    }
}
