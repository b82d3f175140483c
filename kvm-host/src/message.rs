//! The messages between the two sides, in the frames of `agent_protocol`.
//!
//! These are not the requests of `agent_protocol`: the agent does one small thing a request, while here
//! three streams flow at the same time for as long as a command runs.

use std::ffi::OsString;

use agent_protocol::End;
use serde::{Deserialize, Serialize};

/// The most bytes of a stream in one message: what a pipe holds.
pub const CHUNK: usize = 1 << 16;

/// From this machine to the emulated host.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// The first message: what to run.
    Start(Start),
    /// Standard input. Empty: its end.
    Input(Vec<u8>),
}

/// A command, and what it finds.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// The working directory.
    pub directory: OsString,
    /// All of the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Paths of this machine to mount where the emulated host has file systems of its own, in this order.
    pub shared: Vec<OsString>,
    /// Paths to copy to this machine at the end, if the command has made them.
    pub copied_out: Vec<OsString>,
}

/// From the emulated host to this machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest {
    /// Sent once a second: the emulated host does not hang.
    Alive,
    /// What the command wrote.
    Output(Stream, Vec<u8>),
    /// How the command ended. Nothing follows.
    Ended(End),
}

/// Where a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use agent_protocol::{FrameReader, write_frame};

    use super::*;

    #[test]
    fn any_bytes_arrive_as_they_were_sent() {
        let not_utf8 = OsString::from_vec((1..=255).collect());
        let messages = [
            ToGuest::Start(Start {
                command: vec!["printf".into(), not_utf8.clone()],
                directory: "/".into(),
                environment: vec![("NAME".into(), not_utf8)],
                ..Start::default()
            }),
            ToGuest::Input((0..CHUNK).map(|at| at as u8).collect()),
            ToGuest::Input(vec![]),
        ];
        let mut stream = Vec::new();
        for message in &messages {
            write_frame(&mut stream, message).unwrap();
        }
        let mut frames = FrameReader::new(stream.as_slice());
        for message in messages {
            assert_eq!(frames.read::<ToGuest>().unwrap(), message);
        }
    }
}
