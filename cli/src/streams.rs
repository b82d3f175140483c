//! Reading and writing files that may be non-blocking: another process that has one open may have set
//! O_NONBLOCK.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Reads and writes a file without a buffer in between.
pub struct Unbuffered<F>(pub F);

impl<F: AsFd> Read for Unbuffered<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read(&self.0, buffer)
    }
}

impl<F: AsFd> Write for Unbuffered<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(&self.0, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

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

/// Reads at least a byte; 0 at the end of the file.
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

fn wait_for(file: &impl AsFd, events: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, events)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::net::UnixStream;
    use std::thread;

    #[test]
    fn non_blocking_files_are_waited_for() {
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
