//! The program's streams on the host's side.

use std::io::{Read, Write};

/// Where a program's input comes from and its output goes. Reads and writes may wait.
pub struct Streams {
    /// What the program reads.
    pub input: Box<dyn Read + Send>,
    /// What it writes.
    pub output: Box<dyn Write + Send>,
    /// What it writes to its standard error, unless it has a terminal.
    pub errors: Box<dyn Write + Send>,
}
