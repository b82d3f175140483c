//! Starting threads: each has a role, which gives it its name and says which signals it takes.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use vmm_sys_util::signal::create_sigset;

use crate::quiesce::KICK;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the vCPU of this number.
    Vcpu(u32),
    /// Does the work that drivers give to devices.
    Worker,
    /// Serves a file system.
    FileSystem,
    /// Carries what a serial port sends to its endpoint.
    SerialOutput,
    /// Carries what an endpoint sends to its serial port.
    SerialInput,
    /// Serves the API.
    Api,
    /// Takes memory from the host.
    Populate,
    /// Runs the program by which KVM is tried.
    Doctor,
    /// Serves the clients of a console's socket.
    ConsoleSocket,
    /// Reads keys from the terminal.
    Keys,
    /// Carries a program's input to the guest.
    ProgramInput,
    /// Carries a program's output from the guest.
    ProgramOutput,
    /// Hears how far a program is.
    ProgramReports,
    /// Tells a program's terminal its size.
    ProgramTerminal,
    /// Ends a program that takes too long.
    ProgramTimer,
    /// Writes messages to standard error.
    Messages,
    /// Says how far the start of a machine is.
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

    /// Has the calling thread take only the signals that its role needs: a thread that runs a vCPU is
    /// taken out of KVM_RUN by a kick, and by nothing else. All others are left to the process's first
    /// thread, but for those by which the kernel answers a mistake of the thread itself.
    pub fn confine_signals(self) {
        // Of the terminal's job control the thread that reads keys sees as much as the process does.
        if self == Self::Keys {
            return;
        }
        let mut blocked = LEFT_TO_THE_PROCESS.to_vec();
        if !matches!(self, Self::Vcpu(_) | Self::Doctor) {
            blocked.push(KICK);
        }
        let blocked = create_sigset(&blocked).expect("signals that exist make a set");
        // SAFETY: the set is initialised, and the mask before is not asked for.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, std::ptr::null_mut()) };
        assert_eq!(result, 0, "signals that exist can be blocked");
    }
}

/// What others send to the process, or the terminal does.
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
