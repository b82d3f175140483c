//! write(2) of a process in the guest that may take long.

use agent_protocol::Action;

use super::{GuestError, Process, TIMEOUT_MILLISECONDS};

/// A write(2) that may be going on.
#[derive(Debug)]
pub struct Writing(Process);

impl Process {
    /// Starts to write a file that exists, with one write(2), and does not wait until that ends.
    pub fn start_write(&self, path: &str, data: impl AsRef<[u8]>) -> Result<Writing, GuestError> {
        let data = data.as_ref().to_vec();
        self.perform::<()>(Action::StartWrite { path: path.to_owned(), data })?;
        Ok(Writing(self.clone()))
    }
}

impl Writing {
    /// Whether it has ended. Not to be called again then.
    pub fn has_ended(&self) -> Result<bool, GuestError> {
        self.ends_within(0)
    }

    /// Waits for its end: false if it goes on. Not to be called again after it has ended.
    pub fn ends(&self) -> Result<bool, GuestError> {
        self.ends_within(TIMEOUT_MILLISECONDS)
    }

    fn ends_within(&self, milliseconds: u16) -> Result<bool, GuestError> {
        let written: u64 = self.0.perform(Action::FinishWrite { milliseconds })?;
        Ok(written != 0)
    }
}
