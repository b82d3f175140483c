//! `/proc/meminfo`: how much memory the guest has and how it uses it.

use std::collections::BTreeMap;

use super::GuestError;

const PATH: &str = "/proc/meminfo";

/// The kernel's memory statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemInfo(BTreeMap<String, u64>);

impl MemInfo {
    /// Reads the kernel's text.
    pub fn parse(text: &str) -> Result<Self, GuestError> {
        let entry = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let (number, scale) = match value.trim().split_once(' ') {
                Some((number, "kB")) => (number, 1024),
                Some(_) => return None,
                None => (value.trim(), 1),
            };
            Some((name.to_owned(), number.parse::<u64>().ok()?.checked_mul(scale)?))
        };
        let entry = |line: &str| {
            entry(line).ok_or_else(|| GuestError::Unparsed { path: PATH, line: line.to_owned() })
        };
        text.lines().map(entry).collect::<Result<_, _>>().map(Self)
    }

    /// A statistic by the kernel's name for it: bytes, or a number where it counts something else.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Bytes of memory that the kernel manages.
    pub fn total(&self) -> u64 {
        self.get("MemTotal").unwrap_or_default()
    }

    /// Bytes that a program could get without swapping.
    pub fn available(&self) -> u64 {
        self.get("MemAvailable").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_and_counts_are_counts() {
        let text =
            "MemTotal:         488812 kB\nMemAvailable:     400000 kB\nHugePages_Total:       3\n";
        let info = MemInfo::parse(text).unwrap();
        assert_eq!(info.total(), 488_812 * 1024);
        assert_eq!(info.available(), 400_000 * 1024);
        assert_eq!(info.get("HugePages_Total"), Some(3));
        assert_eq!(info.get("Absent"), None);
    }

    #[test]
    fn a_line_of_another_form_is_an_error() {
        for text in ["MemTotal 1 kB\n", "MemTotal: many kB\n", "MemTotal: 1 MB\n"] {
            assert!(MemInfo::parse(text).is_err(), "{text}");
        }
    }
}
