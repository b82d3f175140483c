//! The kernel's log, as /dev/kmsg gives it: Linux's Documentation/ABI/testing/dev-kmsg.

use std::time::Duration;

use super::GuestError;

const PATH: &str = "/dev/kmsg";

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Its log level.
    pub level: Level,
    /// Its place in the log.
    pub sequence: u64,
    /// When it was written, since boot.
    pub time: Duration,
    /// Its text.
    pub text: String,
}

/// A log level; the most severe is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The system is unusable.
    Emergency,
    /// Something must be done at once.
    Alert,
    /// A critical condition.
    Critical,
    /// An error.
    Error,
    /// A warning; every WARN and stack trace is at least this.
    Warning,
    /// Normal, but worth noting.
    Notice,
    /// Information.
    Info,
    /// For debugging.
    Debug,
}

impl LogRecord {
    /// Whether the kernel complains about itself: a BUG, a WARN, or what follows such a line.
    pub fn is_splat(&self) -> bool {
        const SIGNS: [&str; 6] =
            ["cut here", "BUG:", "kernel BUG", "WARNING:", "Oops", "Call Trace"];
        SIGNS.iter().any(|sign| self.text.contains(sign))
    }
}

/// Reads records, a line each.
pub(super) fn parse(text: &str) -> Result<Vec<LogRecord>, GuestError> {
    let record = |line: &str| {
        parse_line(line).ok_or_else(|| GuestError::Unparsed { path: PATH, line: line.to_owned() })
    };
    text.lines().map(record).collect()
}

/// `priority,sequence,microseconds,flags;text`; the level is the priority's low three bits.
fn parse_line(line: &str) -> Option<LogRecord> {
    const LEVELS: [Level; 8] = [
        Level::Emergency,
        Level::Alert,
        Level::Critical,
        Level::Error,
        Level::Warning,
        Level::Notice,
        Level::Info,
        Level::Debug,
    ];
    let (header, text) = line.split_once(';')?;
    let mut fields = header.split(',');
    let priority: usize = fields.next()?.parse().ok()?;
    Some(LogRecord {
        level: LEVELS[priority % LEVELS.len()],
        sequence: fields.next()?.parse().ok()?,
        time: Duration::from_micros(fields.next()?.parse().ok()?),
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_level_sequence_time_and_text() {
        let log =
            parse("4,870,9123456,-;virtio_mem virtio0: device still has memory; added\n").unwrap();
        assert_eq!(
            log,
            [LogRecord {
                level: Level::Warning,
                sequence: 870,
                time: Duration::from_micros(9_123_456),
                text: "virtio_mem virtio0: device still has memory; added".to_owned(),
            }]
        );
    }

    #[test]
    fn a_users_record_has_a_level_too() {
        assert_eq!(parse("12,1,0,-;from a program\n").unwrap()[0].level, Level::Warning);
        assert!(Level::Error < Level::Warning);
    }

    #[test]
    fn a_bug_or_a_warn_is_a_splat_and_a_warning_of_a_driver_is_not() {
        let is_splat = |text: &str| parse(&format!("4,1,0,-;{text}\n")).unwrap()[0].is_splat();
        assert!(is_splat("kernel BUG at drivers/vfio/vfio.c:812!"));
        assert!(is_splat("WARNING: CPU: 0 PID: 1 at drivers/iommu/iommu.c:3182"));
        assert!(!is_splat("uio_pci_generic 0000:00:10.1: No IRQ assigned to device"));
    }

    #[test]
    fn a_line_of_another_form_is_an_error() {
        for text in ["no semicolon\n", "x,1,0,-;text\n", "4,1;text\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
