//! What the agent answers.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::{Errno, Fault, Signal};

/// The answer to the request with the same id.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's id.
    pub id: u32,
    /// Its result.
    pub result: Result<Value, Failure>,
}

/// The result of a request that worked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Nothing but the fact that it worked.
    Done,
    /// A process id, a file, an address, a count, or the value of a register or of memory.
    Word(u64),
    /// The contents of a file or a device's registers.
    Bytes(Vec<u8>),
    /// The entries of a directory, sorted.
    Names(Vec<String>),
    /// What a verification found.
    Pattern(PatternReport),
    /// What a hammer did.
    Hammer(HammerReport),
    /// What an ioctl returned.
    Reply(IoctlReply),
    /// What a polling child did.
    Polling(PollReport),
}

macro_rules! value_kinds {
    ($($variant:ident => $kind:ty,)*) => {
        $(
            /// The error is the value, if it is of another kind.
            impl TryFrom<Value> for $kind {
                type Error = Value;

                fn try_from(value: Value) -> Result<Self, Value> {
                    match value {
                        Value::$variant(value) => Ok(value),
                        other => Err(other),
                    }
                }
            }
        )*
    };
}

value_kinds! {
    Word => u64,
    Bytes => Vec<u8>,
    Names => Vec<String>,
    Pattern => PatternReport,
    Hammer => HammerReport,
    Reply => IoctlReply,
    Polling => PollReport,
}

/// The error is the value, if it is not [`Value::Done`].
impl TryFrom<Value> for () {
    type Error = Value;

    fn try_from(value: Value) -> Result<Self, Value> {
        if value == Value::Done { Ok(()) } else { Err(value) }
    }
}

/// Why a request failed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The system call's error number.
    Errno(Errno),
    /// The access raised this signal, which ended the process that made it.
    Fault(Fault),
    /// The process that was asked, or the child that it forked for a memory access, has ended for
    /// another reason.
    Ended(End),
    /// The request makes no sense, for this reason: a mistake of the host's program, not of the guest's.
    Refused(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::Errno(Errno(number)),
            None => Self::Refused(error.to_string()),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It exited with this status.
    Exited(i32),
    /// It was ended by this signal.
    Killed(Signal),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "ended by {signal}"),
        }
    }
}

/// Whether a mapping still holds the pattern that it was filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatternReport {
    /// How many 8-byte words no longer hold the pattern.
    pub wrong_words: u64,
    /// The address of the first of them.
    pub first_wrong: Option<u64>,
}

/// What the threads of a hammer did, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HammerReport {
    /// How many times a whole buffer was written, then read and compared.
    pub rounds: u64,
    /// How many 8-byte words did not hold what had been written.
    pub wrong_words: u64,
}

/// The result of an ioctl whose argument points to bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoctlReply {
    /// What it returned.
    pub number: u64,
    /// What the bytes have become, as many as were given.
    pub data: Vec<u8>,
}

/// What a polling child did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollReport {
    /// How many of its loads succeeded.
    pub accesses: u64,
    /// The fault that ended it; none if it ran until it was stopped.
    pub fault: Option<Fault>,
}
