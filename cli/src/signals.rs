//! Signals that end a machine.
//!
//! A signal that would end this process shuts down its machine. If that takes too long, or if another
//! signal comes, this process ends at once. Signals that were ignored when this process started stay ignored
//! (nohup(1), a shell's background jobs).

use std::ffi::c_int;
use std::io;
use std::process::ExitCode;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGCONT, SIGTSTP};
use signal_hook::iterator::Signals;
use vmm::MachineControl;
use vmm::threads::{self, Role};

use crate::messages;
use crate::terminal;

/// Signals that end a process by default and can be caught (signal(7)), except those for faults of the process
/// itself, such as SIGSEGV.
const ENDING: [c_int; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGPOLL,
    libc::SIGPWR,
];

/// How long the machine may take to end.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The signal that has ended the machine, if one did.
#[derive(Clone, Default)]
pub struct Received(Arc<AtomicI32>);

impl Received {
    /// Prints which it was, and returns this process's exit code. None if there was none.
    pub fn report(&self) -> Option<ExitCode> {
        let number = Some(self.0.load(Ordering::Acquire)).filter(|number| *number != 0)?;
        messages::print_message(format_args!("ended by signal {number}"));
        Some(ExitCode::from(exit_code(number)))
    }
}

/// The exit code of a process that signal `number` has ended.
fn exit_code(number: c_int) -> u8 {
    128 + number as u8
}

/// Has signals end the machine of `control` from now on, even before it has started.
pub fn attend(control: MachineControl) -> io::Result<Received> {
    // With SIGXFSZ ignored, a write beyond the limit of a file's size returns EFBIG instead.
    // SAFETY: no handler of ours runs.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let ending = ENDING.into_iter().filter(|signal| !is_ignored(*signal));
    let job_control = [SIGTSTP, SIGCONT].into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new(ending.chain(job_control))?;
    let received = Received::default();
    let number = Arc::clone(&received.0);
    threads::spawn(Role::Signals, move || {
        for signal in signals.forever() {
            match signal {
                SIGTSTP => terminal::suspend(),
                SIGCONT => terminal::resume(),
                _ if number.load(Ordering::Acquire) == 0 => {
                    number.store(signal, Ordering::Release);
                    control.stop();
                    end_in_time(signal);
                }
                // A second signal does not wait for the machine.
                _ => end_now(signal),
            }
        }
    })?;
    Ok(received)
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all zeros is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and the result has room in `action`.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Ends the process after [`TIMEOUT`] if it has not ended before.
fn end_in_time(signal: c_int) {
    let watch = move || {
        thread::sleep(TIMEOUT);
        end_now(signal);
    };
    if threads::spawn(Role::EndTimer, watch).is_err() {
        end_now(signal);
    }
}

fn end_now(signal: c_int) {
    terminal::restore();
    messages::print_message(format_args!(
        "ended by signal {signal}, before the machine had shut down"
    ));
    messages::flush();
    std::process::exit(exit_code(signal).into());
}
