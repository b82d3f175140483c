//! Copies a stream to its end.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
};

/// Copies until one of both ends, and closes both.
pub fn copy(mut from: File, mut to: File) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            // A terminal that no process has open any more reads as EIO.
            Ok(0) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
