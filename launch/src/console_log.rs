//! The end of the guest's console output.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps the end of what is written to it. Clones share it.
#[derive(Clone, Default)]
pub struct ConsoleLog(Arc<Mutex<VecDeque<u8>>>);

impl ConsoleLog {
    /// Bytes that are kept.
    const CAPACITY: usize = 64 << 10;

    /// The last lines, at most `count`.
    pub fn tail(&self, count: usize) -> String {
        let bytes: Vec<u8> = self.bytes().iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// Whether the kernel has printed that it panicked.
    pub fn has_panic(&self) -> bool {
        self.tail(usize::MAX).contains("Kernel panic - not syncing")
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for ConsoleLog {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut bytes = self.bytes();
        bytes.extend(data);
        let excess = bytes.len().saturating_sub(Self::CAPACITY);
        bytes.drain(..excess);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let mut log = ConsoleLog::default();
        for line in 0..10_000 {
            write!(log, "line {line}\r\n").unwrap();
        }
        assert_eq!(log.tail(2), "line 9998\nline 9999");
        assert!(log.bytes().len() <= ConsoleLog::CAPACITY);
        assert!(!log.has_panic());
        log.write_all(b"[ 1.0] Kernel panic - not syncing: VFS\r\n").unwrap();
        assert!(log.has_panic());
    }
}
