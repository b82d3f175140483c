//! Why a request to a guest failed.

use std::time::Duration;

use agent_protocol::{End, Fault, FrameError};

use super::Denial;

/// Why a request to a guest failed. Each error names the request.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest's kernel denied it. [`Observe`](super::Observe) turns this into a value.
    #[error("{asked}: {denial}")]
    Denied {
        /// What was asked.
        asked: String,
        /// How it was denied.
        denial: Denial,
    },
    /// The process ended, for another reason than a fault of the access that was asked for.
    #[error("{asked}: the process {end}; the guest's console may show why")]
    Ended {
        /// What was asked.
        asked: String,
        /// How it ended.
        end: End,
    },
    /// The agent did not try: what was asked makes no sense.
    #[error("{asked}: {why}")]
    Refused {
        /// What was asked.
        asked: String,
        /// Why not.
        why: String,
    },
    /// The guest did not answer in time.
    #[error(
        "{asked}: no answer within {deadline:?}; the guest hangs, or is too slow for this deadline"
    )]
    NoAnswer {
        /// What was asked.
        asked: String,
        /// How long it had.
        deadline: Duration,
    },
    /// The connection failed.
    #[error("{asked}")]
    Channel {
        /// What was asked.
        asked: String,
        /// Why.
        source: FrameError,
    },
    /// An answer to another request.
    #[error("{asked}: the agent sent an answer of another kind: it is not the agent of this build")]
    OtherAnswer {
        /// What was asked.
        asked: String,
    },
    /// An agent of another version.
    #[error("the agent has version {0} of the protocol: build testvm and agent together")]
    OtherVersion(u16),
    /// A fault elsewhere than where an access was asked for.
    #[error("{asked}: {fault}, which is not the address of the access")]
    Faulted {
        /// What was asked.
        asked: String,
        /// What the kernel reports about the fault.
        fault: Fault,
    },
    /// A file of the guest is not of its documented form.
    #[error("{path} of the guest has a line that cannot be parsed: {line:?}")]
    Unparsed {
        /// Which file.
        path: &'static str,
        /// Which line.
        line: String,
    },
}
