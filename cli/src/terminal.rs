//! The terminal that moat runs in. It is in raw mode while moat is in the foreground.
//!
//! Another process of the same terminal may be in the foreground when moat starts, or later. Then moat
//! neither reads the terminal nor changes its modes.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::siginfo_t;
use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::stdio;
use rustix::termios::{
    OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr,
};

/// The modes before moat changed them. None until [`attach`].
static BEFORE: OnceLock<Termios> = OnceLock::new();
/// Whether the terminal is in raw mode.
static RAW: AtomicBool = AtomicBool::new(false);
/// Whether the terminal leaves all output as it is.
static RAW_OUTPUT: AtomicBool = AtomicBool::new(false);
/// Held while the modes change.
static CHANGE: Mutex<()> = Mutex::new(());

/// What becomes of newlines in raw mode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Newlines {
    /// The terminal also returns to the first column: for consoles that only send newlines.
    Translated,
    /// Nothing: a terminal in the guest has translated what is to be translated.
    Untouched,
}

/// Whether standard input is a terminal. If it is, and moat is in its foreground, it is in raw mode from
/// here on, until [`restore`].
pub fn attach(newlines: Newlines) -> io::Result<bool> {
    let stdin = stdio::stdin();
    if !isatty(stdin) {
        return Ok(false);
    }
    RAW_OUTPUT.store(newlines == Newlines::Untouched, Ordering::Release);
    // Set once: there is one standard input.
    let _ = BEFORE.set(tcgetattr(stdin)?);
    // So that a read in the background fails, and does not stop this process.
    // SAFETY: no handler of ours runs.
    unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
    restore_when_killed();
    enter_raw_mode();
    Ok(true)
}

/// Whether this process is in the foreground of its terminal.
pub fn is_foreground() -> bool {
    // No other process reads a terminal without a foreground, or one that does not control this process.
    tcgetpgrp(stdio::stdin()).map_or(true, |foreground| foreground == getpgrp())
}

/// Enters raw mode, if this process is in the foreground.
pub fn enter_raw_mode() {
    let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(before) = BEFORE.get() else {
        return;
    };
    if RAW.load(Ordering::Acquire) || !is_foreground() {
        return;
    }
    let mut raw = before.clone();
    raw.make_raw();
    if !RAW_OUTPUT.load(Ordering::Acquire) {
        raw.output_modes |= OutputModes::OPOST;
    }
    if tcsetattr(stdio::stdin(), OptionalActions::Now, &raw).is_ok() {
        RAW.store(true, Ordering::Release);
    }
}

/// Whether a newline on standard error needs a carriage return before it.
pub fn needs_carriage_returns() -> bool {
    RAW.load(Ordering::Acquire) && RAW_OUTPUT.load(Ordering::Acquire) && isatty(stdio::stderr())
}

/// Gives the terminal the modes that it had before.
pub fn restore() {
    let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    restore_now();
}

/// The same, for signal handlers: it makes system calls and nothing else.
fn restore_now() {
    // In the background the terminal's modes are those of the foreground process, and are left alone.
    if RAW.swap(false, Ordering::AcqRel)
        && is_foreground()
        && let Some(before) = BEFORE.get()
    {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, before);
    }
}

/// Stops this process, as Ctrl-Z or another SIGTSTP asks.
pub fn suspend() {
    restore();
    let _ = kill_process(getpid(), Signal::STOP);
}

/// Enters raw mode again after a stop.
pub fn resume() {
    enter_raw_mode();
}

/// Restores the modes also when a fault of its own ends this process, or when the host has no memory for
/// the guest (SIGBUS).
fn restore_when_killed() {
    for signal in KILLING {
        // SAFETY: all zeros is a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_killing as *const () as libc::sighandler_t;
        // The stack may be what is wrong.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: the handler makes system calls, reads statics that are set, and nothing else.
        if unsafe { libc::sigaction(signal, &action, &mut before) } == 0 {
            // Set once for each: this runs once.
            let _ = HANDLERS[signal as usize].set(Handler(before));
        }
    }
}

const KILLING: [c_int; 7] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTRAP,
];

/// The action for a signal before [`on_killing`] was installed.
struct Handler(libc::sigaction);

// SAFETY: it is plain data: the address of a function, and flags.
unsafe impl Send for Handler {}
// SAFETY: likewise, and it is never changed.
unsafe impl Sync for Handler {}

/// By the signal's number.
static HANDLERS: [OnceLock<Handler>; 32] = [const { OnceLock::new() }; 32];

extern "C" fn on_killing(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    restore_now();
    // SAFETY: with SA_SIGINFO there is one.
    let is_sent = unsafe { (*info).si_code } <= 0;
    if signal == libc::SIGBUS {
        let message =
            b"moat: the host has no memory for the guest (SIGBUS): is the disk of a file of \
            guest memory full, or was the file truncated?\n";
        // SAFETY: the bytes are there.
        unsafe { libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len()) };
    }
    // The former action is taken when this handler returns: the faulting instruction runs again, or the
    // signal, which is blocked until then, is delivered.
    match HANDLERS[signal as usize].get() {
        // SAFETY: it was the process's own handler before.
        Some(Handler(before)) if !is_sent => unsafe {
            libc::sigaction(signal, before, ptr::null_mut());
        },
        // SAFETY: no handler runs.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
    if is_sent {
        // SAFETY: a signal to this thread.
        unsafe { libc::raise(signal) };
    }
}
