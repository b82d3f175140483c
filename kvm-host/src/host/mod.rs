//! On this machine: starts the emulated host and a command in it, and ends as the command does.

mod arch;
mod cpu;
mod emulator;
mod image;
mod naming;
mod streams;

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use agent_protocol::{FrameError, FrameReader};
use anyhow::{Context, bail};
use rustix::process::Pid;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM},
    iterator::Signals,
};

use self::{
    arch::X86_64,
    emulator::{Emulator, Ending},
};
use crate::message::{FromGuest, Start, Stream, ToGuest};

/// How long the emulated host may send nothing, not counting the time it waited for a CPU.
const SILENCE: Duration = Duration::from_secs(60);

/// How often that is checked while nothing comes.
const LOOK: Duration = Duration::from_secs(1);

/// Names of variables that hold directories of this machine which are not there in the emulated host.
const NOT_PASSED: [&str; 2] = ["TMPDIR", "XDG_RUNTIME_DIR"];

/// The command line: a kernel's directory, the repository, and the command.
struct Arguments {
    kernel: PathBuf,
    repository: PathBuf,
    command: Vec<OsString>,
}

impl Arguments {
    fn parse(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut words = words.into_iter().skip(1);
        let (Some(kernel), Some(repository)) = (words.next(), words.next()) else {
            bail!("usage: kvm-host KERNEL_DIRECTORY REPOSITORY COMMAND [ARGUMENT]...");
        };
        Ok(Self { kernel: kernel.into(), repository: repository.into(), command: words.collect() })
    }
}

/// Runs the command that is on the command line. Returns only if it could not be started.
pub fn run() -> anyhow::Result<Infallible> {
    let arguments = Arguments::parse(env::args_os())?;
    let limit = time_limit()?;
    let cache = arguments.repository.join(".cache");
    let signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal)))?;
    // Held until this process has ended.
    let _lock = cpu::pin_to_one(&cache.join("locks"))?;
    let vmlinux = image::vmlinux(&arguments.kernel, &cache.join("kvm-host"))?;
    let initramfs = image::initramfs(&arguments.kernel, X86_64.modules)?;
    let start = start(&arguments)?;
    let (emulator, channel) = Emulator::start(&X86_64, &vmlinux, &initramfs)?;
    let emulator = Arc::new(emulator);
    end_on_signal(signals, emulator.clone());
    end_at_limit(limit, emulator.clone());
    send(ToGuest::Start(start), channel.try_clone()?, emulator.clone());
    receive(channel, &emulator)
}

fn time_limit() -> anyhow::Result<Duration> {
    const NAME: &str = "MOAT_KVM_HOST_TIMEOUT_SECONDS";
    let text = env::var(NAME).unwrap_or_else(|_| "3600".to_owned());
    match text.parse() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => bail!("{NAME} is '{text}'; it must be a whole number of seconds, at least 1"),
    }
}

/// What the emulated host is asked to run, as this process would run it here.
fn start(arguments: &Arguments) -> anyhow::Result<Start> {
    let directory = env::current_dir().context("cannot find the working directory")?;
    let named = naming::named_where_hidden(&directory, &arguments.command);
    let repository = fs::canonicalize(&arguments.repository)?;
    let environment = env::vars_os()
        .filter(|(name, _)| NOT_PASSED.iter().all(|hidden| name != hidden))
        .chain([("MOAT_KVM_HOST".into(), "emulated".into())])
        .collect();
    Ok(Start {
        command: arguments.command.clone(),
        shared: naming::in_order_of_mounting(&[repository, directory.clone()], &named.shared),
        copied_out: named.made.into_iter().map(PathBuf::into_os_string).collect(),
        directory: directory.into(),
        environment,
    })
}

/// Whether this process was started with a signal ignored, as by nohup.
fn is_ignored(signal: i32) -> bool {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?.trim();
            u64::from_str_radix(mask, 16).ok()
        })
        .is_some_and(|ignored| ignored >> (signal - 1) & 1 == 1)
}

fn end_on_signal(mut signals: Signals, emulator: Arc<Emulator>) {
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            emulator.end(Ending::Signal(signal));
        }
    });
}

fn end_at_limit(limit: Duration, emulator: Arc<Emulator>) {
    thread::spawn(move || {
        thread::sleep(limit);
        let seconds = limit.as_secs();
        emulator.fail(format!("hung: the command was still running after {seconds} seconds"));
    });
}

/// Sends the command, then standard input.
fn send(start: ToGuest, channel: UnixStream, emulator: Arc<Emulator>) {
    thread::spawn(move || {
        if let Err(error @ FrameError::TooLong(_)) = streams::send_input(&start, &channel) {
            emulator.fail(format!(
                "cannot be given the command line and the environment, which are too long: {error}"
            ));
        }
        // Any other failure is one of the channel, which the receiving thread reports.
    });
}

/// Passes on what comes until the command or the emulated host has ended.
fn receive(channel: UnixStream, emulator: &Emulator) -> ! {
    if let Err(error) = channel.set_read_timeout(Some(LOOK)) {
        emulator.fail(format!("has a channel that cannot be read: {error}"));
    }
    let mut frames = FrameReader::new(channel);
    let mut alive = SignOfLife::now(emulator.pid());
    loop {
        match frames.read() {
            Ok(message) => {
                match message {
                    FromGuest::Alive => {}
                    FromGuest::Output(stream, bytes) => pass_on(stream, &bytes, emulator),
                    FromGuest::Ended(end) => emulator.end(Ending::Command(end)),
                }
                // Only now: writing our output may have taken long.
                alive = SignOfLife::now(emulator.pid());
            }
            // Nothing came for a while, or a signal did, which another thread handles.
            Err(FrameError::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(FrameError::Closed | FrameError::Io(_)) => emulator.fail("stopped".to_owned()),
            Err(error) => emulator.fail(format!("sent an invalid message: {error}")),
        }
        alive.check(emulator);
    }
}

fn pass_on(stream: Stream, bytes: &[u8], emulator: &Emulator) {
    if let Err(error) = streams::write(stream, bytes) {
        match error.kind() {
            ErrorKind::BrokenPipe => emulator.end(Ending::Signal(SIGPIPE)),
            _ => emulator.fail(format!("has output that cannot be written: {error}")),
        }
    }
}

/// When the emulated host gave a sign of life, and how long QEMU had waited for a CPU by then.
struct SignOfLife {
    at: Instant,
    waited: Duration,
}

impl SignOfLife {
    fn now(qemu: Pid) -> Self {
        Self { at: Instant::now(), waited: waited_for_cpu(qemu) }
    }

    fn check(&self, emulator: &Emulator) {
        let silent = self.at.elapsed();
        if silent < SILENCE {
            return;
        }
        let waited = waited_for_cpu(emulator.pid()).saturating_sub(self.waited);
        if silent.saturating_sub(waited) >= SILENCE {
            emulator.fail(format!(
                "hung: no sign of life for {} seconds, in {} of which it waited for a CPU",
                silent.as_secs(),
                waited.as_secs()
            ));
        }
    }
}

/// For how long that thread of a process which waited longest could have run and had no CPU: the second
/// figure of /proc/PID/task/TID/schedstat, nanoseconds (Linux's Documentation/scheduler/sched-stats.rst).
fn waited_for_cpu(process: Pid) -> Duration {
    let waited = |task: &Path| -> Option<u64> {
        let figures = fs::read_to_string(task.join("schedstat")).ok()?;
        figures.split_whitespace().nth(1)?.parse().ok()
    };
    let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_pid())).into_iter().flatten();
    let longest = tasks.filter_map(|task| waited(&task.ok()?.path())).max();
    Duration::from_nanos(longest.unwrap_or_default())
}
