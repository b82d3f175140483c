//! Runs a program in a machine.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_protocol::{
    Credentials, FrameReader, Report, WORKLOAD_PATH, WindowSize, Workload, port, write_frame,
};
use shared_dir::{Descriptors, Mode, OpenError, SharedDirectory};
use testvm::initramfs::Initramfs;
use testvm::kernel::{GuestKernel, KernelError};
use testvm::vm::Console;
use thiserror::Error;
use vmm::threads::{self, Role};
use vmm::{
    ConsolePorts, Ending, Machine, MachineControl, MachineError, MachineIo, MachineSpec,
    PortReader, SharedFiles,
};

use crate::files::FuseServer;
use crate::needs::{self, NeedsError};
use crate::outcome::{Failure, Outcome};
use crate::root::{self, FileError, Root};
use crate::streams::Streams;

/// The tag of the file system that the guest's root is made of.
const ROOT_TAG: &str = "root";

/// A program to run, and where.
pub struct Launch {
    /// The kernel.
    pub kernel: GuestKernel,
    /// The machine, but for its kernel, its initramfs and, unless it has one, its command line.
    pub spec: MachineSpec,
    /// The guest's root directory.
    pub root: Root,
    /// Further directories of the host.
    pub shares: Vec<Share>,
    /// The program and its arguments.
    pub command: Vec<Vec<u8>>,
    /// All of its environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory in the guest.
    pub directory: Vec<u8>,
    /// Who runs it.
    pub credentials: Credentials,
    /// Its terminal, if it has one.
    pub terminal: Option<Terminal>,
    /// The guest's host name.
    pub host_name: String,
    /// How long the guest may take to start the program.
    pub boot_timeout: Duration,
    /// How long the program may run.
    pub timeout: Option<Duration>,
}

/// A directory of the host in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// On the host.
    pub directory: PathBuf,
    /// In the guest.
    pub path: Vec<u8>,
    /// What the guest may do to it.
    pub mode: Mode,
}

/// A terminal of the program.
pub struct Terminal {
    /// Its size at first.
    pub size: WindowSize,
    /// Its size when it changes.
    pub resizes: mpsc::Receiver<WindowSize>,
}

/// Why a program cannot be run.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The kernel lacks something.
    #[error(transparent)]
    Needs(#[from] NeedsError),
    /// The kernel's modules cannot be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A file cannot be copied.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory cannot be shared.
    #[error(transparent)]
    Share(#[from] OpenError),
    /// The machine cannot be started.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host lacks something.
    #[error("cannot start the program's streams: {0}")]
    Host(#[from] io::Error),
}

impl Launch {
    /// Runs the program until it ends or fails. `control` ends it from outside.
    pub fn run(
        self,
        streams: Streams,
        mut machine_io: MachineIo,
        console: &Console,
        control: MachineControl,
    ) -> Result<Outcome, LaunchError> {
        let names = [port::CONTROL, port::STDIN, port::STDOUT, port::STDERR];
        let (ports, [agent, stdin, stdout, stderr]) = ConsolePorts::new(names)?;
        machine_io.console_ports = Some(ports);
        machine_io.file_systems = self.file_systems()?;
        machine_io.initrd = Some(self.initramfs()?);
        let spec = MachineSpec {
            kernel: self.kernel.image().to_owned(),
            cmdline: Some(command_line(&self.spec)),
            ..self.spec
        };
        let machine = match Machine::start_with(spec, machine_io, control.clone()) {
            Ok(machine) => machine,
            Err(MachineError::Stopped) => return Ok(Outcome::Stopped),
            Err(error) => return Err(error.into()),
        };

        let progress = Progress::new(control.clone());
        let Streams { input, output, errors } = streams;
        let mut to_program = stdin.1;
        // This thread waits for input until the process ends.
        threads::spawn(Role::ProgramInput, move || copy(input, &mut to_program))?;
        let outputs =
            [progress.clone().relay(stdout.0, output)?, progress.clone().relay(stderr.0, errors)?];
        let (reports, mut sizes) = agent;
        if let Some(Terminal { resizes, .. }) = self.terminal {
            threads::spawn(Role::ProgramTerminal, move || {
                for size in resizes {
                    // Fails only if the guest has ended.
                    let _ = write_frame(&mut sizes, &size);
                }
            })?;
        }
        let (boot_timeout, timeout) = (self.boot_timeout, self.timeout);
        let watching = progress.clone();
        threads::spawn(Role::ProgramTimer, move || watching.watch(boot_timeout, timeout))?;
        let receiving = progress.clone();
        let program = String::from_utf8_lossy(&self.command[0]).into_owned();
        let receiver = threads::spawn(Role::ProgramReports, move || {
            receiving.receive_reports(reports, outputs, program)
        })?;

        let ending = machine.wait();
        // It waits for threads that end with the machine's ports.
        let _ = receiver.join();
        Ok(progress.outcome(ending, console))
    }

    fn file_systems(&self) -> Result<Vec<SharedFiles>, LaunchError> {
        let descriptors = Descriptors::of_process();
        let mut systems = Vec::new();
        if let Root::Directory(root) = &self.root {
            let root = SharedDirectory::open(root, Mode::ReadOnly, descriptors.clone())?;
            systems.push(shared_files(ROOT_TAG.to_owned(), root));
        }
        for (index, share) in self.shares.iter().enumerate() {
            let directory =
                SharedDirectory::open(&share.directory, share.mode, descriptors.clone())?;
            systems.push(shared_files(share_tag(index), directory));
        }
        Ok(systems)
    }

    /// The agent, what it is to run, the modules that it needs for that, and the files if there are no others.
    fn initramfs(&self) -> Result<Vec<u8>, LaunchError> {
        let has_shares = !self.shares.is_empty();
        let modules = needs::modules(&self.kernel, &self.spec, &self.root, has_shares)?;
        let mut initramfs = Initramfs::new().with_modules(self.kernel.modules(&modules)?);
        if let Root::Files(files) = &self.root {
            for (path, file) in root::read(files, &self.command[0])? {
                initramfs = initramfs.with_owned_file(&path, file);
            }
        }
        let workload = Workload {
            modules: modules.into_iter().map(str::to_owned).collect(),
            root_tag: matches!(self.root, Root::Directory(_)).then(|| ROOT_TAG.to_owned()),
            shares: self.shares.iter().enumerate().map(share_of).collect(),
            command: self.command.clone(),
            environment: self.environment.clone(),
            directory: self.directory.clone(),
            credentials: self.credentials.clone(),
            terminal: self.terminal.as_ref().map(|terminal| terminal.size),
            host_name: self.host_name.clone(),
        };
        let workload = postcard::to_allocvec(&workload).expect("it has nothing but plain data");
        Ok(initramfs.with_file(WORKLOAD_PATH, workload).build())
    }
}

/// The kernel's command line: it ends the machine after a panic, and prints little on the console, because
/// each byte costs an exit of the guest.
fn command_line(spec: &MachineSpec) -> String {
    match &spec.cmdline {
        Some(cmdline) => cmdline.clone(),
        None => format!("{} quiet", spec.command_line()),
    }
}

fn shared_files(tag: String, directory: SharedDirectory) -> SharedFiles {
    SharedFiles { tag, server: Arc::new(FuseServer(directory)) }
}

fn share_tag(index: usize) -> String {
    format!("share{index}")
}

fn share_of((index, share): (usize, &Share)) -> agent_protocol::Share {
    agent_protocol::Share {
        tag: share_tag(index),
        path: share.path.clone(),
        read_only: share.mode == Mode::ReadOnly,
    }
}

/// Copies to the end of `from`, in larger pieces than the standard library's own.
fn copy(from: impl Read, to: &mut impl Write) -> io::Result<u64> {
    io::copy(&mut BufReader::with_capacity(64 << 10, from), to)
}

/// How far the program is. Clones share it.
#[derive(Clone)]
struct Progress {
    state: Arc<(Mutex<State>, Condvar)>,
    control: MachineControl,
}

#[derive(Default)]
struct State {
    is_started: bool,
    /// The first one counts.
    outcome: Option<Outcome>,
}

impl Progress {
    fn new(control: MachineControl) -> Self {
        Self { state: Arc::default(), control }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the program's result, unless it has one already.
    fn decide(&self, outcome: Outcome) {
        self.lock().outcome.get_or_insert(outcome);
        self.state.1.notify_all();
    }

    /// Likewise, and ends the machine.
    fn end(&self, outcome: Outcome) {
        self.decide(outcome);
        self.control.stop();
    }

    /// Starts a thread that copies output. The program ends if the reader is gone.
    fn relay(self, from: PortReader, mut to: Box<dyn Write + Send>) -> io::Result<JoinHandle<()>> {
        threads::spawn(Role::ProgramOutput, move || match copy(from, &mut to) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.end(Outcome::OutputClosed),
            Err(error) => {
                log::error!("cannot write the program's output: {error}");
                self.end(Outcome::OutputClosed);
            }
        })
    }

    /// Handles the agent's reports. The machine ends once the program has, and its output is written.
    fn receive_reports(&self, reports: PortReader, outputs: [JoinHandle<()>; 2], program: String) {
        let wait_for_output = || outputs.into_iter().for_each(|output| drop(output.join()));
        match self.last_report(reports, program) {
            // The program has closed its output.
            Some(outcome @ Outcome::Ended(_)) => {
                self.decide(outcome);
                wait_for_output();
                self.control.stop();
            }
            // It has none, which only the end of the machine closes.
            Some(outcome) => {
                self.end(outcome);
                wait_for_output();
            }
            // The guest goes down by itself, and the machine's ending says how.
            None => wait_for_output(),
        }
    }

    /// What the last report says of the program. None if the guest closes the port without one.
    fn last_report(&self, reports: PortReader, program: String) -> Option<Outcome> {
        let mut reports = FrameReader::new(reports);
        loop {
            return Some(match reports.read::<Report>().ok()? {
                Report::Started => {
                    self.lock().is_started = true;
                    self.state.1.notify_all();
                    continue;
                }
                Report::Ended(end) => Outcome::Ended(end),
                Report::NotReady(reason) => Outcome::Failed(Failure::NotReady(reason)),
                Report::NotStarted { not_found: true, .. } => {
                    Outcome::Failed(Failure::NotFound(program))
                }
                Report::NotStarted { reason, .. } => Outcome::Failed(Failure::NotStarted(reason)),
            });
        }
    }

    /// Ends a program that takes too long.
    fn watch(&self, boot_timeout: Duration, timeout: Option<Duration>) {
        let started = self.wait(Instant::now() + boot_timeout, |state| state.is_started);
        if !started {
            return self.end(Outcome::Failed(Failure::BootTimeout(boot_timeout)));
        }
        if let Some(timeout) = timeout
            && !self.wait(Instant::now() + timeout, |_| false)
        {
            self.end(Outcome::Failed(Failure::Timeout(timeout)));
        }
    }

    /// Waits until `is_so`, or the program has ended. False at the deadline.
    fn wait(&self, deadline: Instant, is_so: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        while !is_so(&state) && state.outcome.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let wait = self.state.1.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The program's result when its machine has ended.
    fn outcome(&self, ending: Ending, console: &Console) -> Outcome {
        match (self.lock().outcome.clone(), ending) {
            (Some(outcome), _) => outcome,
            (None, Ending::Stopped) => Outcome::Stopped,
            (None, Ending::Panic) => Outcome::Failed(Failure::Panicked),
            (None, _) if console.text().has_panic() => Outcome::Failed(Failure::Panicked),
            (None, ending) => Outcome::Failed(Failure::MachineEnded(ending)),
        }
    }
}
