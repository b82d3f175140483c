//! What the host asks of the agent.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Action;

/// The protocol's version, raised whenever a message changes.
pub const VERSION: u16 = 4;

/// The agent's first message, after [`MAGIC`](crate::MAGIC).
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's [`VERSION`].
    pub version: u16,
    /// The running kernel, as `uname -r` names it.
    pub kernel_release: String,
}

/// One thing to do.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u32,
    /// What to do.
    pub command: Command,
}

/// What the agent can do as process 1. Everything else is done by processes that it forks: they
/// may die or get stuck, process 1 must not.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Fork a process; its id is the answer.
    Spawn,
    /// End a process, and with it its files and mappings.
    Kill(ProcessId),
    /// Have a process do something.
    Perform(ProcessId, Action),
    /// End this run of the guest. Answered before it happens.
    Power(Power),
}

/// A process forked by the agent: its id in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)
    }
}

/// A file that a process has open: its descriptor's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u32);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}", self.0)
    }
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// Power off.
    Off,
    /// Restart the machine.
    Reboot,
    /// Stop without powering off.
    Halt,
    /// Crash the kernel, as sysrq c does.
    Crash,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn => write!(f, "spawn a process"),
            Self::Kill(process) => write!(f, "kill {process}"),
            Self::Perform(process, action) => write!(f, "{process}: {action}"),
            Self::Power(Power::Off) => write!(f, "power off"),
            Self::Power(Power::Reboot) => write!(f, "reboot"),
            Self::Power(Power::Halt) => write!(f, "halt"),
            Self::Power(Power::Crash) => write!(f, "crash the kernel"),
        }
    }
}
