//! Starting threads: each has a role, which determines its name and which signals it takes.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use vmm_sys_util::signal::create_sigset;

use crate::quiesce::KICK;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the vCPU of this number.
    Vcpu(u32),
    /// Processes the queues of devices.
    Worker,
    /// Serves a file system.
    FileSystem,
    /// Carries what a serial port sends to its endpoint.
    SerialOutput,
    /// Carries what an endpoint sends to its serial port.
    SerialInput,
    /// Serves the API.
    Api,
    /// Allocates memory from the host.
    Populate,
    /// Runs the program that tests KVM.
    Doctor,
    /// Serves the clients of a console's socket.
    ConsoleSocket,
    /// Reads keys from the terminal.
    Keys,
    /// Carries a program's input to the guest.
    ProgramInput,
    /// Carries a program's output from the guest.
    ProgramOutput,
    /// Receives the agent's reports about a program.
    ProgramReports,
    /// Sets the size of a program's terminal.
    ProgramTerminal,
    /// Ends a program that takes too long.
    ProgramTimer,
    /// Writes messages to standard error.
    Messages,
    /// Displays the progress of a machine's start.
    Progress,
    /// Acts on signals.
    Signals,
    /// Ends the process when the machine takes too long to end.
    EndTimer,
}

impl Role {
    /// The thread's name, of at most 15 bytes.
    pub fn name(self) -> String {
        match self {
            Self::Vcpu(index) => return format!("vcpu{index}"),
            Self::Worker => "devices",
            Self::FileSystem => "files",
            Self::SerialOutput => "serial-out",
            Self::SerialInput => "serial-in",
            Self::Api => "api",
            Self::Populate => "populate",
            Self::Doctor => "doctor",
            Self::ConsoleSocket => "console",
            Self::Keys => "keys",
            Self::ProgramInput => "input",
            Self::ProgramOutput => "output",
            Self::ProgramReports => "reports",
            Self::ProgramTerminal => "resize",
            Self::ProgramTimer => "timer",
            Self::Messages => "messages",
            Self::Progress => "progress",
            Self::Signals => "signals",
            Self::EndTimer => "end",
        }
        .into()
    }

    /// Blocks the signals that the calling thread's role does not need: only a kick takes a thread that runs
    /// a vCPU out of KVM_RUN. Signals to the process are left to its first thread; those that a thread causes
    /// itself, such as SIGSEGV, are not blocked.
    pub fn confine_signals(self) {
        // The thread that reads keys takes part in the terminal's job control.
        if self == Self::Keys {
            return;
        }
        let mut blocked = LEFT_TO_THE_PROCESS.to_vec();
        if !matches!(self, Self::Vcpu(_) | Self::Doctor) {
            blocked.push(KICK);
        }
        let blocked = create_sigset(&blocked).expect("signals that exist make a set");
        // SAFETY: the set is initialised, and null means that the old mask is not wanted.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, std::ptr::null_mut()) };
        assert_eq!(result, 0, "signals that exist can be blocked");
    }
}

/// Signals that other processes or the terminal send to the whole process.
const LEFT_TO_THE_PROCESS: [libc::c_int; 13] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGWINCH,
    libc::SIGVTALRM,
    libc::SIGPROF,
];

/// Starts a thread.
pub fn spawn<T: Send + 'static>(
    role: Role,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(role.name()).spawn(move || {
        role.confine_signals();
        run()
    })
}

/// Starts a thread that ends within `scope`.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    role: Role,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(role.name()).spawn_scoped(scope, move || {
        role.confine_signals();
        run()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signals that the calling thread blocks, as a set of bits.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_has_the_name_and_the_signals_of_its_role() {
        let bit = |signal: libc::c_int| 1_u64 << (signal - 1);
        for (role, name, kick) in
            [(Role::Vcpu(253), "vcpu253", false), (Role::SerialOutput, "serial-out", true)]
        {
            let thread = spawn(role, move || {
                assert_eq!(std::thread::current().name(), Some(name));
                blocked()
            });
            let blocked = thread.unwrap().join().unwrap();
            for signal in LEFT_TO_THE_PROCESS {
                assert_ne!(blocked & bit(signal), 0, "{name} takes signal {signal}");
            }
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
                assert_eq!(blocked & bit(signal), 0, "{name} blocks signal {signal}");
            }
            assert_eq!(blocked & bit(KICK) != 0, kick, "{name}");
        }
    }
}
