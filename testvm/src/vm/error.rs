//! What can go wrong with a virtual machine.

use std::{fmt, io, time::Duration};

use vmm::{
    Ending, MachineError,
    machine::{NotRunning, ResizeRefused},
};

use super::{Machine, PATIENCE, QmpError, Vmm};
use crate::{guest::GuestError, kernel::KernelError};

/// Why a virtual machine could not be had, or not be waited for.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A kernel's modules cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The machine cannot be.
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
    /// The monitor is not there.
    #[error("{0} is not installed, or not in a directory that PATH names")]
    NotInstalled(&'static str),
    /// The monitor does not start, or has ended meanwhile.
    #[error("{program} has ended; it said: {said}")]
    ProcessEnded {
        /// The monitor.
        program: &'static str,
        /// What it wrote to its standard error.
        said: String,
    },
    /// QEMU does not do what it is asked to.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU answers with something else than a number.
    #[error("QEMU has no number for {0} of its virtio-mem device: is it older than 5.1?")]
    NoNumber(&'static str),
    /// A process of moat's does not do what it is asked to.
    #[error("moat refuses {0}")]
    Api(String),
    /// The monitor cannot be given its files and sockets.
    #[error("cannot prepare the files and sockets of a machine")]
    Preparing(#[from] io::Error),
    /// The guest's agent said no, or nothing.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The machine has not started, or has ended.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// A size that the device cannot have.
    #[error(transparent)]
    Resize(#[from] ResizeRefused),
    /// The guest's kernel has ended itself, which its scenario has taken down.
    #[error("the guest's kernel has died")]
    Died,
    /// Something that every guest of these machines should have.
    #[error("the guest has no {0}")]
    Absent(&'static str),
    /// Something did not become true.
    #[error("timed out after {PATIENCE:?} waiting until {0}")]
    Patience(String),
    /// The guest ended in another way than by powering off.
    #[error("{0}, where it should have powered off")]
    Ending(Ending),
    /// The guest went on.
    #[error("the guest did not power off within {PATIENCE:?}")]
    NoEnding,
}

impl VmError {
    /// Whether the guest cannot be asked anything any more.
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

/// What went wrong, and the guest's last words.
#[derive(Debug)]
pub struct Trouble {
    /// What went wrong.
    pub error: VmError,
    /// How the machine had ended by then, if it had.
    pub ending: Option<Ending>,
    /// What the guest's kernel says that it has died of, if it does.
    pub cause: Option<String>,
    /// The end of the guest's console.
    pub console: String,
    /// Whether the guest never got as far as being asked anything.
    pub at_boot: bool,
}

impl Trouble {
    pub(super) fn of(error: VmError, machine: &dyn Machine) -> Self {
        // The channel ends with the machine, a moment before it can say how.
        let patience = match error {
            VmError::Guest(GuestError::Channel { .. }) => PATIENCE,
            _ => Duration::ZERO,
        };
        let ending = machine.wait_for_end(patience);
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
    /// Of a guest that was lost what its kernel died of, or else how the machine ended. Of others the error
    /// with its causes, and how the machine ended, if it has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.error.guest_is_lost() {
            match (&self.cause, &self.ending) {
                (Some(cause), _) => return write!(f, "the guest's kernel died: {cause}"),
                // That it does not answer any more follows.
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
        // What a kernel complains about is no reason for anything else.
        trouble.cause = Some("invalid opcode in f".into());
        assert_eq!(trouble.to_string(), text);
        trouble.error = VmError::Died;
        assert_eq!(trouble.to_string(), "the guest's kernel died: invalid opcode in f");
    }
}
