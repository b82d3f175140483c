//! The program's streams on the host's side.

use std::io::{self, ErrorKind, Read, Write};

/// Where a program's input comes from and its output goes. Reads and writes may wait.
pub struct Streams {
    /// What the program reads.
    pub input: Box<dyn Read + Send>,
    /// What it writes.
    pub output: Box<dyn Write + Send>,
    /// What it writes to its standard error, unless it has a terminal.
    pub errors: Box<dyn Write + Send>,
}

/// Copies `from` to its end. An error is one of `to`.
pub fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // What cannot be read has ended.
            Err(_) => return Ok(()),
        }
    }
}
