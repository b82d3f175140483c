//! What can go wrong with a virtual machine.

use std::{fmt, io, time::Duration};

use vmm::{
    Ending, MachineError,
    machine::{NotRunning, ResizeRefused},
};

use super::{QmpError, RunningMachine, TIMEOUT, Vmm};
use crate::{guest::GuestError, kernel::KernelError};

/// Why a virtual machine could not be made, used or waited for.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A kernel's modules are missing or cannot be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// moat cannot make the machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The monitor has no such machines.
    #[error("{vmm} cannot make a machine with {what}")]
    Unsupported {
        /// The monitor.
        vmm: Vmm,
        /// What the machine is to have.
        what: &'static str,
    },
    /// The monitor is not installed.
    #[error("{0} is not installed, or not in a directory that PATH names")]
    NotInstalled(&'static str),
    /// The monitor does not start, or has ended meanwhile.
    #[error("{program} has ended; its error output: {said}")]
    ProcessEnded {
        /// The monitor.
        program: &'static str,
        /// What it wrote to its standard error.
        said: String,
    },
    /// QEMU refused a command, or did not answer.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU answered with something else than a number.
    #[error("QEMU has no number for {0} of its virtio-mem device: is it older than 5.1?")]
    NoNumber(&'static str),
    /// A moat process refused a request.
    #[error("moat refuses {0}")]
    Api(String),
    /// The monitor cannot be given its files and sockets.
    #[error("cannot prepare the files and sockets of a machine")]
    Preparing(#[from] io::Error),
    /// A request to the guest's agent failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The machine has not started, or has ended.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// A size that the device cannot have.
    #[error(transparent)]
    Resize(#[from] ResizeRefused),
    /// The guest's kernel has ended itself, which its scenario has recorded.
    #[error("the guest's kernel has died")]
    Died,
    /// The guest lacks something that every guest of these machines should have.
    #[error("the guest has no {0}")]
    Absent(&'static str),
    /// A condition did not become true in time.
    #[error("timed out after {TIMEOUT:?} waiting until {0}")]
    TimedOut(String),
    /// The guest ended in another way than by powering off.
    #[error("{0}, where it should have powered off")]
    Ending(Ending),
    /// The guest went on.
    #[error("the guest did not power off within {TIMEOUT:?}")]
    NoEnding,
}

impl VmError {
    /// Whether the guest no longer answers.
    pub fn guest_is_lost(&self) -> bool {
        matches!(
            self,
            Self::Died
                | Self::Guest(GuestError::NoAnswer { .. } | GuestError::Channel { .. })
                | Self::ProcessEnded { .. }
                | Self::Qmp(_)
        )
    }
}

/// An error, with the state of the guest at that time.
#[derive(Debug)]
pub struct Trouble {
    /// What went wrong.
    pub error: VmError,
    /// How the machine had ended by then, if it had.
    pub ending: Option<Ending>,
    /// Why the guest's kernel crashed, if its console shows that.
    pub cause: Option<String>,
    /// The end of the guest's console.
    pub console: String,
    /// Whether the guest failed before its agent had started.
    pub at_boot: bool,
}

impl Trouble {
    pub(super) fn of(error: VmError, machine: &dyn RunningMachine) -> Self {
        // The channel closes shortly before the machine's ending is known.
        let timeout = match error {
            VmError::Guest(GuestError::Channel { .. }) => TIMEOUT,
            _ => Duration::ZERO,
        };
        let ending = machine.wait_for_end(timeout);
        let console = machine.console();
        Self {
            error,
            ending,
            cause: console.cause_of_death(),
            console: if console.is_blank() { "(nothing)".into() } else { console.tail() },
            at_boot: false,
        }
    }
}

impl From<VmError> for Box<Trouble> {
    fn from(error: VmError) -> Self {
        let console = String::new();
        Self::new(Trouble { error, ending: None, cause: None, console, at_boot: false })
    }
}

impl fmt::Display for Trouble {
    /// For a guest that was lost, why its kernel crashed, or else how the machine ended. Otherwise the error
    /// with its causes, and how the machine ended, if it has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.error.guest_is_lost() {
            match (&self.cause, &self.ending) {
                (Some(cause), _) => return write!(f, "the guest's kernel died: {cause}"),
                // It does not answer because the machine has ended.
                (None, Some(ending)) => return write!(f, "{ending}"),
                (None, None) => {}
            }
        }
        write!(f, "{}", self.error)?;
        let mut cause = std::error::Error::source(&self.error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        self.ending.as_ref().map_or(Ok(()), |ending| write!(f, "; {ending}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_names_causes_and_the_end() {
        let mut trouble = Box::<Trouble>::from(VmError::Preparing(io::Error::other("no room")));
        trouble.ending = Some(Ending::TripleFault);
        let text = trouble.to_string();
        assert!(text.contains("a machine: no room; the guest died of a triple fault"), "{text}");
        // A kernel's oops does not explain another error.
        trouble.cause = Some("invalid opcode in f".into());
        assert_eq!(trouble.to_string(), text);
        trouble.error = VmError::Died;
        assert_eq!(trouble.to_string(), "the guest's kernel died: invalid opcode in f");
    }
}
