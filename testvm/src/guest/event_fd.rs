//! eventfd(2): how VFIO signals interrupts to a process in the guest.

use agent_protocol::{Action, FileId};

use super::{GuestError, Process, TIMEOUT_MILLISECONDS};

/// A counter of events.
#[derive(Clone, Debug)]
pub struct EventFd {
    process: Process,
    id: FileId,
}

impl Process {
    /// A new eventfd, which has counted nothing.
    pub fn create_event_fd(&self) -> Result<EventFd, GuestError> {
        let id: u64 = self.perform(Action::CreateEventFd)?;
        Ok(EventFd { process: self.clone(), id: FileId(id as u32) })
    }
}

impl EventFd {
    /// The number of its descriptor, for ioctls that want it.
    pub fn descriptor(&self) -> u32 {
        self.id.0
    }

    /// Counts one more event.
    pub fn signal(&self) -> Result<(), GuestError> {
        self.process.perform(Action::Signal(self.id))
    }

    /// How many events it has counted since the last call; waits until there is one, and returns
    /// zero if none comes.
    pub fn wait(&self) -> Result<u64, GuestError> {
        self.take(TIMEOUT_MILLISECONDS)
    }

    /// How many events it has counted since the last call.
    pub fn count(&self) -> Result<u64, GuestError> {
        self.take(0)
    }

    fn take(&self, milliseconds: u16) -> Result<u64, GuestError> {
        self.process.perform(Action::TakeEvents { file: self.id, milliseconds })
    }
}
