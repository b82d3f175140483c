//! This process's standard streams, which others may have made non-blocking.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use agent_protocol::{FrameError, write_frame};
use rustix::event::{PollFd, PollFlags, poll};

use crate::message::{CHUNK, Stream, ToGuest};

/// Sends a message, then standard input to its end.
pub fn send_input(first: &ToGuest, channel: &UnixStream) -> Result<(), FrameError> {
    write_frame(channel, first)?;
    // Not through Stdin, whose buffer would be one copy more.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match input.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(input.as_fd(), PollFlags::IN)?;
                continue;
            }
            // A terminal in whose background this process is, for instance.
            Err(_) => 0,
        };
        write_frame(channel, &ToGuest::Input(chunk[..count].to_vec()))?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Writes all of it at once, whatever a line is.
pub fn write(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Output => write_all(io::stdout().as_fd(), bytes),
        Stream::Error => write_all(io::stderr().as_fd(), bytes),
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    let mut file = File::from(fd.try_clone_to_owned()?);
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(fd, PollFlags::OUT)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    #[test]
    fn a_non_blocking_stream_is_waited_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        let sent: Vec<u8> = (0..1_000_000).map(|at| at as u8).collect();
        let received = thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        write_all(writer.as_fd(), &sent).unwrap();
        drop(writer);
        assert!(received.join().unwrap() == sent);
    }
}
