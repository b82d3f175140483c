//! Messages on standard error. A thread of its own writes them, so that the sender never waits for the
//! reader: vCPU threads log while they hold locks.

use std::collections::VecDeque;
use std::fmt::{Display, Write as _};
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vmm::threads::{self, Role};

use crate::streams::write_all;
use crate::terminal;

static MESSAGES: OnceLock<Messages> = OnceLock::new();

/// Messages on their way to standard error.
#[derive(Default)]
struct Messages {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<String>,
    /// Lines dropped since the last that was kept, because the queue was full or they came too fast.
    lost: u64,
    /// Start of the current interval, and the number of lines in it.
    interval: Option<(Instant, usize)>,
    /// Whether a line is being written.
    writing: bool,
}

impl Queue {
    /// The most lines that wait.
    const CAPACITY: usize = 1024;
    /// The most lines in an interval: a guest must not fill the host's disk with messages.
    const LINES_PER_INTERVAL: usize = 1000;
    const INTERVAL: Duration = Duration::from_secs(1);

    fn push(&mut self, line: String) {
        let count = match &mut self.interval {
            Some((start, count)) if start.elapsed() < Self::INTERVAL => count,
            interval => &mut interval.insert((Instant::now(), 0)).1,
        };
        *count += 1;
        if *count > Self::LINES_PER_INTERVAL || self.lines.len() >= Self::CAPACITY {
            self.lost += 1;
            return;
        }
        if self.lost > 0 {
            self.lines.push_back(format!("moat: {} messages were lost here\n", self.lost));
            self.lost = 0;
        }
        self.lines.push_back(line);
    }
}

impl Messages {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        self.lock().push(line);
        self.changed.notify_all();
    }

    fn write_for_ever(&self) {
        loop {
            let mut queue = self.lock();
            let line = loop {
                match queue.lines.pop_front() {
                    Some(line) => break line,
                    None => {
                        queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            queue.writing = true;
            drop(queue);
            let line = match terminal::needs_carriage_returns() {
                true => line.replace('\n', "\r\n"),
                false => line,
            };
            // Without a reader there is no place to report the error to.
            let _ = write_all(&io::stderr(), line.as_bytes());
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }
}

/// Starts the thread that writes messages.
pub fn start() -> io::Result<()> {
    let messages = MESSAGES.get_or_init(Messages::default);
    threads::spawn(Role::Messages, || messages.write_for_ever())?;
    Ok(())
}

/// Waits until all messages are written, or until the reader has taken nothing for a second.
pub fn flush() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let Some(messages) = MESSAGES.get() else {
        return;
    };
    let mut queue = messages.lock();
    if queue.lost > 0 {
        let lost = format!("moat: {} messages were lost here\n", queue.lost);
        queue.lines.push_back(lost);
    }
    while queue.writing || !queue.lines.is_empty() {
        let timeout;
        (queue, timeout) =
            messages.changed.wait_timeout(queue, TIMEOUT).unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return;
        }
    }
}

/// Prints a message with the prefix `moat: `.
pub fn print_message(message: impl Display) {
    send(format!("moat: {message}\n"));
}

fn send(line: String) {
    match MESSAGES.get() {
        Some(messages) => messages.push(line),
        None => drop(write_all(&io::stderr(), line.as_bytes())),
    }
}

/// Where the log goes: a record is a message.
pub struct LogTarget;

impl Write for LogTarget {
    /// `record` is a whole record. A guest or a file may have put control characters into it, which must not
    /// reach a terminal.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        send(printable(&String::from_utf8_lossy(record)));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `text` with its control characters written out, but for ends of lines and tabs.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => line.push(character),
            _ if character.is_control() => {
                let _ = write!(line, "{}", character.escape_default());
            }
            _ => line.push(character),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_lines_are_counted_where_they_are_missing() {
        let mut queue = Queue::default();
        for line in 0..Queue::CAPACITY + 5 {
            // As if an hour was between them.
            queue.interval = None;
            queue.push(line.to_string());
        }
        assert_eq!((queue.lines.len(), queue.lost), (Queue::CAPACITY, 5));
        queue.lines.clear();
        queue.push("next".into());
        let lines: Vec<_> = queue.lines.into_iter().collect();
        assert_eq!(lines, ["moat: 5 messages were lost here\n", "next"]);
    }

    #[test]
    fn lines_that_come_too_fast_are_dropped() {
        let mut queue = Queue::default();
        let start = Instant::now();
        for _ in 0..3 * Queue::LINES_PER_INTERVAL {
            queue.push("flood".into());
            queue.lines.clear();
        }
        let intervals = start.elapsed().as_secs() + 1;
        let kept = 3 * Queue::LINES_PER_INTERVAL as u64 - queue.lost;
        assert!(kept <= intervals * Queue::LINES_PER_INTERVAL as u64, "{kept}");
    }

    #[test]
    fn control_characters_in_a_record_are_escaped() {
        assert_eq!(printable("a\tb\x1b[2J\u{9b}c\n"), "a\tb\\u{1b}[2J\\u{9b}c\n");
    }
}
