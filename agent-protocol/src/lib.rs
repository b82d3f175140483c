//! What lab (on the host) and agent (in the guest) say to each other.
//!
//! They talk over a byte stream: `/dev/ttyS1` in the guest, a Unix stream on the host. A serial
//! port needs no driver module, so the conversation starts before any virtio driver is loaded.
//!
//! The agent opens it with [`MAGIC`] and a [`Hello`]. From then on lab sends [`Request`]s and the
//! agent sends one [`Answer`] to each, carrying the request's id. Answers may come out of order: a
//! process in the guest that is stuck in the kernel delays its own answers and nobody else's.

mod action;
mod answer;
mod errno;
mod frame;
mod module_index;
mod request;
mod signal;
mod workload;

pub use action::{Action, OpenFlags, Protection, Sharing, Victim, Width};
pub use answer::{Answer, End, Failure, HammerReport, IoctlReply, PollReport, Value, Verdict};
pub use errno::Errno;
pub use frame::{FrameError, FrameReader, MAGIC, MAX_DATA, MAX_FRAME, write_frame};
pub use module_index::{ModuleEntry, ModuleIndex, ModuleIndexError, module_name};
pub use request::{Command, FileId, Hello, Power, ProcessId, Request, VERSION};
pub use signal::{Fault, Signal};
pub use workload::{
    Credentials, Instruction, Report, Root, Share, WORKLOAD_PATH, WindowSize, Workload, port,
};
