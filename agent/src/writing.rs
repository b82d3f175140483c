//! A write(2) that may take long, as the kernel waits for other processes first.

use std::{
    fs::File,
    io::{self, Write},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

/// With one write(2).
pub fn write_file(path: &str, data: &[u8]) -> io::Result<u64> {
    let mut file = File::options().write(true).truncate(true).open(path)?;
    Ok(file.write(data)? as u64)
}

/// A thread that writes.
pub struct Writing(Receiver<io::Result<u64>>);

impl Writing {
    /// Starts a thread that writes. It ends with the process at the latest.
    pub fn start(path: String, data: Vec<u8>) -> io::Result<Self> {
        let (sender, written) = mpsc::channel();
        thread::Builder::new().name("writing".to_owned()).spawn(move || {
            // The result may not be wanted any more.
            let _ = sender.send(write_file(&path, &data));
        })?;
        Ok(Self(written))
    }

    /// Its result, if it ends within this time.
    pub fn wait(&self, timeout: Duration) -> Option<io::Result<u64>> {
        match self.0.recv_timeout(timeout) {
            Ok(written) => Some(written),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(io::Error::other("the thread that wrote panicked")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_reports_the_error() {
        let writing = Writing::start("/proc/none".to_owned(), vec![0]).unwrap();
        let error = writing.wait(Duration::from_secs(60)).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_write_that_has_to_wait_ends_when_it_can() {
        let (reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let data = vec![0; 1 << 20];
        let length = data.len() as u64;
        let writing = Writing::start(path, data).unwrap();
        assert!(writing.wait(Duration::ZERO).is_none());
        let mut rest = io::Read::take(reader, length);
        io::copy(&mut rest, &mut io::sink()).unwrap();
        assert_eq!(writing.wait(Duration::from_secs(60)).unwrap().unwrap(), length);
    }
}
