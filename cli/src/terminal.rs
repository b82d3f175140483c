//! The terminal that moat runs in: its modes, which are the guest's while moat is in the foreground.
//!
//! Another process of the same terminal may be in the foreground when moat starts, or later. Then the
//! terminal is that one's, and moat neither reads it nor changes its modes.

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
/// Whether the modes are the guest's.
static RAW: AtomicBool = AtomicBool::new(false);
/// Held while the modes change.
static CHANGE: Mutex<()> = Mutex::new(());

/// Whether standard input is a terminal. If it is, and moat in its foreground, every key is the guest's from
/// here on, until [`restore`].
pub fn attach() -> io::Result<bool> {
    let stdin = stdio::stdin();
    if !isatty(stdin) {
        return Ok(false);
    }
    // Set once: there is one standard input.
    let _ = BEFORE.set(tcgetattr(stdin)?);
    // A read in the background fails then, and does not stop this process.
    // SAFETY: no handler of ours runs.
    unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
    restore_when_killed();
    enter_raw_mode();
    Ok(true)
}

/// Whether keys are for this process.
pub fn is_foreground() -> bool {
    // A terminal that has no foreground, or is not ours to control, is nobody else's.
    tcgetpgrp(stdio::stdin()).map_or(true, |foreground| foreground == getpgrp())
}

/// Makes every key the guest's, if this process is in the foreground.
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
    // Lines of our own still end where they should.
    raw.output_modes |= OutputModes::OPOST;
    if tcsetattr(stdio::stdin(), OptionalActions::Now, &raw).is_ok() {
        RAW.store(true, Ordering::Release);
    }
}

/// Gives the terminal the modes that it had before.
pub fn restore() {
    let _change = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    restore_now();
}

/// The same, for signal handlers: it makes system calls and nothing else.
fn restore_now() {
    // What another process has made of a terminal in the meantime is its own affair.
    if RAW.swap(false, Ordering::AcqRel)
        && is_foreground()
        && let Some(before) = BEFORE.get()
    {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, before);
    }
}

/// Stops this process, as whoever controls the terminal wants.
pub fn suspend() {
    restore();
    let _ = kill_process(getpid(), Signal::STOP);
}

/// Goes on after a stop.
pub fn resume() {
    enter_raw_mode();
}

/// Restores the modes also when this process is ended for a mistake of its own, or for memory that its
/// host does not have.
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

/// What the process would have done for a signal.
struct Handler(libc::sigaction);

// SAFETY: it is plain data: the address of a function, and flags.
unsafe impl Send for Handler {}
// SAFETY: likewise; nobody changes it.
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
            guest memory full, or was the file cut?\n";
        // SAFETY: the bytes are there.
        unsafe { libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len()) };
    }
    // What would have happened without us happens when this returns: the mistake is made again, or the
    // signal, which waits until then, comes.
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
