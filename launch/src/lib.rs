//! Runs a program in a virtual machine: on the host's files, with three streams, and returns its exit
//! status.
//!
//! The guest's root is a directory of the host, by virtio-fs and read-only, with a layer in the guest's
//! memory over it, or nothing but some files in an initramfs. The streams are ports of a virtio console.
//! [`Launch`] describes what to run and where, [`Launch::run`] runs it, and [`Outcome`] is the result.

mod files;
mod needs;
mod outcome;
mod root;
mod run;
mod streams;

pub use needs::NeedsError;
pub use outcome::{Failure, NOT_LAUNCHED, Outcome};
pub use root::{FileError, GuestFile, Root};
pub use run::{Launch, LaunchError, Share, Terminal};
pub use shared_dir::Mode;
pub use streams::Streams;
