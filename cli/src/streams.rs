//! Reading and writing files that may be non-blocking: somebody else who has one open may have made it so.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Writes everything.
pub fn write_all(file: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = write(file, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Writes at least a byte.
pub fn write(file: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => return Ok(written),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(file, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads at least a byte; nothing at the end.
pub fn read(file: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(file, &mut *buffer) {
            Ok(length) => return Ok(length),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(file, PollFlags::IN)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads some bytes into `contents`; none at the end, and nothing if `is_stopped` says so before there are
/// any.
pub fn read_until_stopped(
    file: &impl AsFd,
    contents: &mut Vec<u8>,
    is_stopped: impl Fn() -> bool,
) -> io::Result<Option<usize>> {
    const LONGEST: usize = 1 << 20;
    /// Nobody wakes a thread that waits for a file.
    const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        if is_stopped() {
            return Ok(None);
        }
        // A pipe that nobody has opened to write is not at its end, though a read would say so.
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&INTERVAL)) {
            Ok(0) | Err(Errno::INTR) => continue,
            result => result?,
        };
        contents.reserve(LONGEST);
        match rustix::io::read(file, rustix::buffer::spare_capacity(contents)) {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait_for(file: &impl AsFd, events: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, events)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    #[test]
    fn what_is_not_there_yet_is_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let text = vec![b'x'; 4 << 20];
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut received = vec![0; text.len()];
                theirs.read_exact(&mut received).unwrap();
                theirs.write_all(&received).unwrap();
            });
            write_all(&ours, &text).unwrap();
            let (mut received, mut buffer) = (0, [0; 4096]);
            while received < text.len() {
                received += read(&ours, &mut buffer).unwrap();
            }
        });
        drop(theirs);
        assert_eq!(read(&ours, &mut [0]).unwrap(), 0);
        assert!(write(&ours, b"x").is_err());
    }
}
