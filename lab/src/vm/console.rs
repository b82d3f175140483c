//! What a guest has said on its console.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const TAIL_LINES: usize = 25;

/// A console that is kept in memory.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn text(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its last lines.
    pub fn tail(&self) -> String {
        tail(&self.text())
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The last lines of what was written to a terminal.
pub fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_console_is_its_last_lines() {
        let mut console = Console::default();
        for line in 0..100 {
            write!(console, "line {line}\r\n").unwrap();
        }
        let tail = console.tail();
        assert!(tail.starts_with("line 75\nline 76\n") && tail.ends_with("line 99"), "{tail}");
    }
}
