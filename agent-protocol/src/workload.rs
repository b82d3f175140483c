//! A program to run in a guest, and the messages about it between host and agent.
//!
//! A [`Workload`] is in the guest's initramfs, at [`WORKLOAD_PATH`]. Where the agent finds one it runs it,
//! with a virtio console's ports for streams; see [`port`].

use serde::{Deserialize, Serialize};

use crate::End;

/// Where the agent looks for a [`Workload`], as postcard encodes it.
pub const WORKLOAD_PATH: &str = "/workload";

/// The names of the ports of a workload.
pub mod port {
    /// [`Report`](super::Report)s from the agent, and to it the [`WindowSize`](super::WindowSize) of the
    /// program's terminal whenever that changes.
    pub const CONTROL: &str = "moat.control";
    /// What the program reads.
    pub const STDIN: &str = "moat.stdin";
    /// What the program writes; of a program with a terminal, what it writes to that.
    pub const STDOUT: &str = "moat.stdout";
    /// What the program writes to its standard error, unless it has a terminal.
    pub const STDERR: &str = "moat.stderr";
}

/// A program to run, and where. Names and arguments are bytes, as the kernel has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Modules to load first, in this order.
    pub modules: Vec<String>,
    /// The tag of the virtio-fs that is the root directory, under a layer in memory which has what the guest
    /// changes. Without, the root directory is the initramfs.
    pub root_tag: Option<String>,
    /// Further directories, in the order in which to mount them.
    pub shares: Vec<Share>,
    /// The program and its arguments.
    pub command: Vec<Vec<u8>>,
    /// All of its environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory.
    pub directory: Vec<u8>,
    /// Who runs it.
    pub credentials: Credentials,
    /// The size of its terminal, if it has one.
    pub terminal: Option<WindowSize>,
    /// The guest's host name.
    pub host_name: String,
}

/// A directory of the host in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The tag of its virtio-fs.
    pub tag: String,
    /// Where to mount it.
    pub path: Vec<u8>,
    /// Whether the guest may not change it. The host enforces that too.
    pub read_only: bool,
}

/// Whose rights a process has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// What the agent reports about a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The program runs.
    Started,
    /// The program has ended, and all it wrote is in its ports.
    Ended(End),
    /// The guest cannot run programs.
    NotReady(String),
    /// The guest could run programs, but not this one.
    NotStarted {
        /// Whether the program does not exist.
        not_found: bool,
        /// The kernel's error.
        reason: String,
    },
}
