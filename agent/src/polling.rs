//! A child that loads from a mapping until it is stopped or a fault ends it: a program that uses a
//! device's registers while a driver claims the device.

use std::{fs::File, io, os::fd::AsRawFd};

use agent_protocol::{Failure, PollReport, Protection, Sharing, Width};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::pipe,
    process::{Pid, Signal, set_parent_process_death_signal},
};

use crate::{
    fault::{self, AccessReport},
    mapping::{Cell, Mapping},
    sys::{self, Fork},
};

/// The running child.
pub struct Polling {
    child: Pid,
    reports: File,
    shared: Shared,
}

/// Memory that both processes see.
struct Shared {
    memory: Mapping,
    /// How many loads have succeeded.
    accesses: Cell,
    /// Not zero: the next load is the last.
    stop: Cell,
}

impl Shared {
    fn new() -> Result<Self, Failure> {
        let memory = Mapping::new(None, 0, 4096, Protection::ReadWrite, Sharing::Shared)?;
        let (accesses, stop) = (memory.cell(0, Width::Quad)?, memory.cell(8, Width::Quad)?);
        Ok(Self { memory, accesses, stop })
    }

    /// Once stopped, the child makes one more load, which shows the state at that time.
    fn poll(&self, cell: Cell) {
        loop {
            let is_last = self.stop.load() != 0;
            cell.load();
            self.accesses.store(self.accesses.load() + 1);
            if is_last {
                return;
            }
        }
    }
}

impl Polling {
    /// Forks the child, which inherits all mappings, and waits for its first load.
    pub fn start(cell: Cell) -> Result<Self, Failure> {
        let shared = Shared::new()?;
        let (reports, pipe) = pipe().map_err(io::Error::from)?;
        match sys::fork()? {
            Fork::Child => {
                // It must not outlive the process that would stop it.
                if set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
                    sys::exit(1);
                }
                fault::redirect(&pipe);
                shared.poll(cell);
                AccessReport::Value(0).write(pipe.as_raw_fd());
                sys::exit(0)
            }
            Fork::Parent(child) => {
                drop(pipe);
                let polling = Self { child, reports: reports.into(), shared };
                polling.wait_for_work()?;
                Ok(polling)
            }
        }
    }

    /// Waits until the first load has succeeded, or has killed the child.
    fn wait_for_work(&self) -> io::Result<()> {
        let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        while self.shared.accesses.load() == 0 {
            match poll(&mut [PollFd::new(&self.reports, PollFlags::IN)], Some(&moment)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Stops the child, if it still runs, after at least one more load.
    pub fn stop(self) -> Result<PollReport, Failure> {
        self.shared.stop.store(1);
        let end = sys::wait(self.child)?;
        let accesses = self.shared.accesses.load();
        self.shared.memory.unmap()?;
        match AccessReport::read(self.reports, end) {
            Some(AccessReport::Value(_)) => Ok(PollReport { accesses, fault: None }),
            Some(AccessReport::Fault(fault)) => Ok(PollReport { accesses, fault: Some(fault) }),
            None => Err(Failure::Ended(end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_on_working_memory_polls_until_it_is_stopped() {
        let memory = Mapping::new(None, 0, 4096, Protection::Read, Sharing::Private).unwrap();
        let polling = Polling::start(memory.cell(0, Width::Long).unwrap()).unwrap();
        let report = polling.stop().unwrap();
        assert!(report.accesses > 0 && report.fault.is_none(), "{report:?}");
        memory.unmap().unwrap();
    }
}
