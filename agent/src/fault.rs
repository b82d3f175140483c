//! Signals that memory accesses raise, reported before they end the process.
//!
//! The handler writes what the kernel reports about the fault to a pipe and returns. It is installed
//! for one signal only, so the same instruction then faults again and the process really dies of
//! it: the process at the other end of the pipe compares the report with how this one ended.

use std::{
    io::{self, Read},
    mem,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicI32, Ordering},
};

use agent_protocol::{End, Fault, Signal};

/// Where the handler writes. Fixed before a thread or a child that could fault exists.
static PIPE: AtomicI32 = AtomicI32::new(-1);

const REPORT_SIZE: usize = 16;

/// Reports the faults of this process to a pipe from now on. The pipe stays open with it.
pub fn report_to(pipe: OwnedFd) -> io::Result<()> {
    redirect(&pipe);
    mem::forget(pipe);
    for signal in [libc::SIGBUS, libc::SIGSEGV] {
        // SAFETY: sigaction is plain data, for which zeros are a valid value.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
        // SAFETY: the action is a live local, its handler has the signature that SA_SIGINFO
        // promises and only does what a signal handler may.
        if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// In a forked child: reports to this pipe instead of the parent's.
pub fn redirect(pipe: &OwnedFd) {
    PIPE.store(pipe.as_raw_fd(), Ordering::Relaxed);
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: both signals of this handler fill in si_addr.
    let address = unsafe { info.si_addr() } as u64;
    let fault = Fault { signal: Signal(signal), code: info.si_code, address };
    AccessReport::Fault(fault).write(PIPE.load(Ordering::Relaxed));
}

/// The result of a memory access that another process made.
#[derive(Debug, PartialEq, Eq)]
pub enum AccessReport {
    /// The value loaded.
    Value(u64),
    /// It faulted.
    Fault(Fault),
}

impl AccessReport {
    /// Sends it; allowed in a signal handler.
    pub fn write(&self, pipe: RawFd) {
        let bytes = self.encode();
        // SAFETY: the buffer is REPORT_SIZE bytes long. A pipe that is closed by now makes the write
        // fail, and the access unreported.
        unsafe { libc::write(pipe, bytes.as_ptr().cast(), REPORT_SIZE) };
    }

    /// Reads it from the pipe, which takes and gives it as a whole. None if there is none, or if it
    /// does not fit how the process ended.
    pub fn read(mut pipe: impl Read, end: End) -> Option<Self> {
        let mut bytes = [0; REPORT_SIZE];
        if pipe.read(&mut bytes).ok()? != REPORT_SIZE {
            return None;
        }
        let report = Self::decode(&bytes);
        let expected = match &report {
            Self::Value(_) => End::Exited(0),
            Self::Fault(fault) => End::Killed(fault.signal),
        };
        (end == expected).then_some(report)
    }

    /// Signal 0 stands for no fault; the value is then where the address would be.
    fn encode(&self) -> [u8; REPORT_SIZE] {
        let (signal, code, word) = match *self {
            Self::Value(value) => (0, 0, value),
            Self::Fault(Fault { signal, code, address }) => (signal.0, code, address),
        };
        let low = u64::from(signal as u32) | u64::from(code as u32) << 32;
        let bytes = u128::from(low) | u128::from(word) << 64;
        bytes.to_le_bytes()
    }

    fn decode(bytes: &[u8; REPORT_SIZE]) -> Self {
        let bytes = u128::from_le_bytes(*bytes);
        let word = (bytes >> 64) as u64;
        match bytes as i32 {
            0 => Self::Value(word),
            signal => Self::Fault(Fault {
                signal: Signal(signal),
                code: (bytes >> 32) as i32,
                address: word,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_decoded_as_it_was_encoded() {
        let fault = Fault { signal: Signal::SIGBUS, code: -6, address: u64::MAX };
        for report in
            [AccessReport::Value(u64::MAX), AccessReport::Value(0), AccessReport::Fault(fault)]
        {
            assert_eq!(AccessReport::decode(&report.encode()), report);
        }
    }

    #[test]
    fn a_report_counts_only_if_it_fits_how_the_process_ended() {
        let fault = AccessReport::Fault(Fault { signal: Signal::SIGBUS, code: 2, address: 0x1000 });
        let bytes = fault.encode();
        assert_eq!(AccessReport::read(&bytes[..], End::Killed(Signal::SIGBUS)), Some(fault));
        assert_eq!(AccessReport::read(&bytes[..], End::Killed(Signal::SIGKILL)), None);
        assert_eq!(AccessReport::read(&bytes[..], End::Exited(0)), None);
        assert_eq!(AccessReport::read(&[][..], End::Killed(Signal::SIGBUS)), None);
    }
}
