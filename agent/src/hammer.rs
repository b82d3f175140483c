//! Threads that write, read and compare memory until they are stopped.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use agent_protocol::{HammerReport, Protection, Sharing};

use crate::mapping::Mapping;

/// Threads at work.
pub struct Hammer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<HammerReport>>>,
}

impl Hammer {
    /// Starts threads, each on memory of its own.
    pub fn start(threads: u16, bytes: u64) -> io::Result<Self> {
        let mut hammer = Self { stop: Arc::default(), threads: Vec::new() };
        for number in 0..threads {
            match hammer.strike(number, bytes) {
                Ok(thread) => hammer.threads.push(thread),
                Err(error) => {
                    hammer.stop()?;
                    return Err(error);
                }
            }
        }
        Ok(hammer)
    }

    fn strike(&self, number: u16, bytes: u64) -> io::Result<JoinHandle<io::Result<HammerReport>>> {
        let memory = Mapping::new(None, 0, bytes, Protection::ReadWrite, Sharing::Private)?;
        let stop = Arc::clone(&self.stop);
        thread::Builder::new().name(format!("hammer-{number}")).spawn(move || {
            let mut report = HammerReport::default();
            while !stop.load(Ordering::Relaxed) {
                memory.fill(report.rounds);
                report.wrong_words += memory.verify(report.rounds).wrong_words;
                report.rounds += 1;
            }
            memory.unmap().map(|()| report)
        })
    }

    /// Ends the threads when each has finished its round.
    pub fn stop(self) -> io::Result<HammerReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = HammerReport::default();
        for thread in self.threads {
            let report =
                thread.join().map_err(|_| io::Error::other("a hammer's thread panicked"))??;
            total.rounds += report.rounds;
            total.wrong_words += report.wrong_words;
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hammer_on_working_memory_finds_nothing_wrong() {
        let report = Hammer::start(2, 1 << 16).unwrap().stop().unwrap();
        assert_eq!(report.wrong_words, 0);
    }

    #[test]
    fn memory_that_cannot_be_allocated_is_an_error() {
        let error = Hammer::start(1, u64::MAX).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    }
}
