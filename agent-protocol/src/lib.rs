//! The protocol between a program on the host and the agent in the guest.
//!
//! It runs over a byte stream: `/dev/ttyS1` in the guest, a Unix stream on the host. A serial
//! port needs no driver module, so the agent can be used before any virtio driver is loaded.
//!
//! The agent first sends [`MAGIC`] and a [`Hello`]. From then on the host sends [`Request`]s and the
//! agent sends one [`Answer`] to each, carrying the request's id. Answers may come out of order: a
//! process in the guest that is stuck in the kernel delays only its own answers.

mod action;
mod answer;
mod errno;
mod frame;
mod module_index;
mod request;
mod signal;
mod workload;

pub use action::{Accessor, Action, OpenFlags, Protection, Sharing, Width};
pub use answer::{
    Answer, End, Failure, HammerReport, IoctlReply, PatternReport, PollReport, Value,
};
pub use errno::Errno;
pub use frame::{FrameError, FrameReader, MAGIC, MAX_DATA, MAX_FRAME, write_frame};
pub use module_index::{ModuleEntry, ModuleIndex, ModuleIndexError, module_name};
pub use request::{Command, FileId, Hello, Power, ProcessId, Request, VERSION};
pub use signal::{Fault, Signal};
pub use workload::{Credentials, Report, Share, WORKLOAD_PATH, WindowSize, Workload, port};
