//! eventfd(2): a file that counts events. VFIO signals interrupts by them.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A new one, which has counted nothing.
pub fn create() -> io::Result<File> {
    // Never waits in read(2): that has no bound.
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?.into())
}

/// Counts one more event.
pub fn signal(mut file: &File) -> io::Result<()> {
    file.write_all(&1_u64.to_ne_bytes())
}

/// How many events it has counted since the last call. Waits for one if there are none.
pub fn take(mut file: &File, milliseconds: u16) -> io::Result<u64> {
    let milliseconds = i64::from(milliseconds);
    let timeout =
        Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
    if poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&timeout))? == 0 {
        return Ok(0);
    }
    let mut count = [0; 8];
    file.read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_until_they_are_taken() {
        let file = create().unwrap();
        assert_eq!(take(&file, 0).unwrap(), 0);
        signal(&file).unwrap();
        signal(&file).unwrap();
        assert_eq!(take(&file, 1000).unwrap(), 2);
        assert_eq!(take(&file, 0).unwrap(), 0);
    }
}
