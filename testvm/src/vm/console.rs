//! What a guest has printed on its console.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const TAIL_LINES: usize = 25;
/// Bytes that are kept, because a guest may print without end.
const MAX_BYTES: usize = 4 << 20;

/// A console that is kept in memory. Clones share it.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was printed.
    pub fn text(&self) -> ConsoleText {
        ConsoleText::from(&*self.lock().make_contiguous())
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.lock();
        text.extend(bytes);
        // The end is what explains a failure.
        let excess = text.len().saturating_sub(MAX_BYTES);
        text.drain(..excess);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a guest has printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleText(String);

impl From<&[u8]> for ConsoleText {
    fn from(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).replace('\r', ""))
    }
}

impl ConsoleText {
    /// All of it that was kept.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let lines: Vec<&str> = self.0.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Whether a Linux kernel has printed that it panicked.
    pub fn has_panic(&self) -> bool {
        self.0.contains("Kernel panic - not syncing")
    }

    /// Why a Linux kernel has crashed, by its own messages: its first oops and where that was, or else the
    /// reason of its panic.
    pub fn cause_of_death(&self) -> Option<String> {
        let mut lines = self.0.lines().map(without_time);
        let oops = lines.clone().position(is_oops);
        if let Some(oops) = oops {
            let what = lines.nth(oops)?;
            let what = what.strip_prefix("Oops: ").unwrap_or(what);
            // An error code and a number follow.
            let what = what.split(" [#").next().unwrap_or(what).trim_end_matches(": 0000");
            let function = lines.find_map(|line| {
                let (_, place) = line.split_once("RIP: ")?.1.split_once(':')?;
                Some(place.split(['+', ' ']).next().unwrap_or(place).to_owned())
            });
            return Some(match function {
                Some(function) => format!("{what} in {function}"),
                None => what.to_owned(),
            });
        }
        lines
            .find_map(|line| Some(line.split_once("Kernel panic - not syncing: ")?.1.to_owned()))
            .or_else(|| self.unpacking_error())
    }

    /// What is wrong with the image, if the code that unpacks the kernel has printed that: `error` of
    /// arch/x86/boot/compressed/error.c prints it between blank lines and halts.
    fn unpacking_error(&self) -> Option<String> {
        let (before, _) = self.0.split_once(" -- System halted")?;
        Some(before.lines().rfind(|line| !line.trim().is_empty())?.trim().to_owned())
    }

    /// Whether there is nothing but blanks.
    pub fn is_blank(&self) -> bool {
        self.0.trim().is_empty()
    }
}

/// A line of a kernel's log without the time at its start.
fn without_time(line: &str) -> &str {
    match line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        Some((time, rest)) if time.trim().parse::<f64>().is_ok() => rest,
        _ => line,
    }
}

fn is_oops(line: &str) -> bool {
    ["Oops: ", "BUG: ", "kernel BUG at ", "general protection fault", "invalid opcode: "]
        .iter()
        .any(|start| line.starts_with(start))
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
        let tail = console.text().tail();
        assert!(tail.starts_with("line 75\nline 76\n") && tail.ends_with("line 99"), "{tail}");
    }

    #[test]
    fn a_guest_that_prints_without_end_is_kept_from_its_end() {
        let mut console = Console::default();
        console.write_all(&vec![b'x'; MAX_BYTES]).unwrap();
        console.write_all(b"\nlast").unwrap();
        assert_eq!(console.lock().len(), MAX_BYTES);
        assert!(console.text().tail().ends_with("\nlast"));
    }

    #[test]
    fn a_panic_is_found_in_the_console() {
        let mut console = Console::default();
        console.write_all(b"[ 0.9] Run /init as init process\r\n").unwrap();
        assert!(!console.text().has_panic());
        console.write_all(b"[ 1.0] Kernel panic - not syncing: VFS\r\n").unwrap();
        assert!(console.text().has_panic());
    }

    #[test]
    fn the_cause_of_a_crash_is_found_in_the_console() {
        let cause = |text: &str| ConsoleText::from(text.as_bytes()).cause_of_death();
        assert_eq!(cause("[    0.000000] Linux version 6.12\r\n"), None);
        // Linux 7.2 on a processor with AVX and without XSAVE.
        let opcode = "\
[    2.114253] Oops: invalid opcode: 0000 [#1] SMP NOPTI\r
[    2.117113] CPU: 0 UID: 0 PID: 1 Comm: swapper/0 Not tainted 7.2.13+deb14-amd64 #1\r
[    2.119721] RIP: 0010:polyval_mul_pclmul_avx+0x4/0x10 [polyval]\r
[    2.120000] RIP: 0033:0x7f0000000000\r
[    2.200000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r
";
        assert_eq!(cause(opcode).unwrap(), "invalid opcode in polyval_mul_pclmul_avx");
        let null = "\
[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    1.0] #PF: supervisor read access in kernel mode
[    1.0] Oops: 0000 [#1] PREEMPT SMP
[    1.0] RIP: 0010:iommu_group_release+0x12/0x30
";
        let expected = "BUG: kernel NULL pointer dereference, address: 0000000000000008 in iommu_group_release";
        assert_eq!(cause(null).unwrap(), expected);
        let unpacking =
            "Decompressing Linux... \r\n\r\nXZ-compressed data is corrupt\r\n\r\n -- System halted";
        assert_eq!(cause(unpacking).unwrap(), "XZ-compressed data is corrupt");
        let root = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
        let expected = "VFS: Unable to mount root fs on unknown-block(0,0)";
        assert_eq!(cause(root).unwrap(), expected);
    }
}
