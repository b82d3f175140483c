//! System calls that neither the standard library nor rustix offers safely.

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr,
};

use agent_protocol::{Credentials, End, Signal};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

/// In which process fork(2) has returned.
pub enum Fork {
    /// In the process that asked for it.
    Parent(Pid),
    /// In the new process.
    Child,
}

/// fork(2). The child of a process with threads must not allocate memory or take locks: another
/// thread may have been holding one.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: fork has no preconditions. Process 1 has no threads when it forks; the children
    // that workers fork only access memory, write to a pipe and exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Ends the process at once: no destructors, no exit handlers.
pub fn exit(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Waits for a child to end.
pub fn wait(pid: Pid) -> io::Result<End> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(end(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How a process ended, by its wait status.
pub fn end(status: WaitStatus) -> End {
    match status.terminating_signal() {
        Some(signal) => End::Killed(Signal(signal)),
        None => End::Exited(status.exit_status().unwrap_or_default()),
    }
}

/// A descriptor that is readable once a child has ended, instead of the signal.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data, for which zeros are a valid value.
    let mut signals: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the set is a live local, and SIGCHLD is a signal.
    check(unsafe { libc::sigaddset(&mut signals, libc::SIGCHLD) })?;
    // SAFETY: the set is a live local; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &signals, ptr::null_mut()) })?;
    // SAFETY: the set is a live local; -1 asks for a new descriptor.
    let fd =
        check(unsafe { libc::signalfd(-1, &signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// ioctl(2) whose argument is a small number.
pub fn ioctl(file: BorrowedFd<'_>, request: u32, argument: u16) -> io::Result<u64> {
    // SAFETY: the descriptor is open. A request that takes the argument for a pointer gets EFAULT:
    // nothing is ever mapped below mmap_min_addr, which is 64 KiB.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), request.into(), libc::c_ulong::from(argument)) };
    check(result).map(|value| value as u64)
}

/// ioctl(2) whose argument points to bytes. It may make more of them than there were, up to a page.
pub fn exchange(file: BorrowedFd<'_>, request: u32, data: &mut Vec<u8>) -> io::Result<u64> {
    const PAGE: usize = 4096;
    let length = data.len();
    data.resize(length.max(PAGE), 0);
    // SAFETY: the descriptor is open. The kernel writes where the argument points, and no request
    // that the host's programs make writes more than a page.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request.into(), data.as_mut_ptr()) };
    data.truncate(length);
    check(result).map(|value| value as u64)
}

/// Takes over a descriptor that an ioctl has opened.
pub fn adopt(descriptor: u32) -> io::Result<OwnedFd> {
    let descriptor = descriptor as libc::c_int;
    // SAFETY: fcntl finds out whether the descriptor is open; the flag is a plain number.
    check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and nothing else owns it: an ioctl of this process returned it, and a worker
    // adopts each only once.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Has the kernel start this kernel when it crashes.
pub fn load_crash_kernel(
    kernel: BorrowedFd<'_>,
    initramfs: BorrowedFd<'_>,
    command_line: &CStr,
) -> io::Result<()> {
    const KEXEC_FILE_ON_CRASH: libc::c_ulong = 2;
    // SAFETY: both descriptors are open, and the length covers the string and its final zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            command_line.to_bytes_with_nul().len(),
            command_line.as_ptr(),
            KEXEC_FILE_ON_CRASH,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Has a command become the leader of a session, with the terminal that is its standard input for its
/// controlling one if it has one, take these credentials, and start in this directory.
pub fn start_session_as(
    command: &mut Command,
    credentials: &Credentials,
    directory: &[u8],
    has_terminal: bool,
) {
    let Credentials { user, group, groups } = credentials.clone();
    let directory = CString::new(directory);
    let prepare = move || {
        let directory = directory.as_deref().map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: setsid has no preconditions.
        check(unsafe { libc::setsid() })?;
        if has_terminal {
            // SAFETY: standard input is open; the argument is a plain number.
            check(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) })?;
        }
        // SAFETY: the length is that of the array.
        check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
        // SAFETY: setgid has no preconditions.
        check(unsafe { libc::setgid(group) })?;
        // SAFETY: setuid has no preconditions.
        check(unsafe { libc::setuid(user) })?;
        // With the rights of its user.
        // SAFETY: the path is a string that lives as long as the closure.
        check(unsafe { libc::chdir(directory.as_ptr()) }).map(drop)
    };
    // SAFETY: between fork and exec it makes system calls only: it neither allocates nor takes locks.
    unsafe { command.pre_exec(prepare) };
}

/// kill(2) of all processes but this one, which is process 1.
pub fn kill_all() -> io::Result<()> {
    // SAFETY: kill has no preconditions.
    check(unsafe { libc::kill(-1, libc::SIGKILL) }).map(drop)
}
