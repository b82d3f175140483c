//! Process 1: passes requests to workers and their answers back, and reaps what has ended.
//!
//! It never waits for a worker. One that is stuck in the kernel just does not answer; for one that dies
//! process 1 answers.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use agent_protocol::{
    Action, Answer, Command, End, Failure, FrameReader, Power, ProcessId, Request, Value,
    write_frame,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitOptions, kill_process, wait},
    system::{RebootCommand, reboot},
};

use crate::{
    fault::AccessReport,
    serial::SerialPort,
    sys::{self, Fork},
    worker,
};

/// Process 1's state.
pub struct Supervisor {
    serial: SerialPort,
    child_signals: OwnedFd,
    workers: BTreeMap<ProcessId, WorkerHandle>,
    ended: BTreeMap<ProcessId, End>,
}

/// A worker, from process 1's side.
struct WorkerHandle {
    pid: Pid,
    socket: FrameReader<UnixStream>,
    faults: File,
    asked: Asked,
    /// The request to kill it.
    killed_by: Option<u32>,
}

/// What a worker has been asked.
#[derive(Clone, Copy, PartialEq)]
enum Asked {
    Nothing,
    /// This request, which it will answer.
    Request(u32),
    /// This request, but it has closed its socket: it is about to end.
    Closed(u32),
}

impl Supervisor {
    /// Serves this port.
    pub fn new(serial: SerialPort) -> anyhow::Result<Self> {
        let child_signals = sys::child_signals()?;
        Ok(Self { serial, child_signals, workers: BTreeMap::new(), ended: BTreeMap::new() })
    }

    /// Serves until the guest ends.
    pub fn run(mut self) -> anyhow::Result<Infallible> {
        loop {
            for id in self.wait_for_events()? {
                self.pass_answer(id)?;
            }
            self.reap()?;
            while let Some(Request { id, command }) = self.serial.request()? {
                self.execute(id, command)?;
            }
        }
    }

    /// Sleeps until there is something to do; returns the workers that have answered.
    fn wait_for_events(&self) -> io::Result<Vec<ProcessId>> {
        let asked: Vec<_> = self.workers.iter().filter(|(_, worker)| worker.is_asked()).collect();
        let mut fds = vec![self.serial.poll_fd(), PollFd::new(&self.child_signals, PollFlags::IN)];
        let sources = fds.len();
        fds.extend(asked.iter().map(|(_, worker)| worker.poll_fd()));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        drain(&self.child_signals)?;
        let answered = asked.iter().zip(&fds[sources..]).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(answered.map(|((id, _), _)| **id).collect())
    }

    fn execute(&mut self, id: u32, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Spawn => {
                let result = self.spawn().map(|process| Value::Word(process.0.into()));
                self.answer(id, result.map_err(Failure::from))
            }
            Command::Kill(process) => match self.worker(process) {
                Ok(worker) => {
                    // Answered once it has ended, and with it its files and mappings.
                    worker.killed_by = Some(id);
                    Ok(kill_process(worker.pid, Signal::KILL)?)
                }
                Err(failure) => self.answer(id, Err(failure)),
            },
            Command::Perform(process, action) => match self.ask(process, id, &action) {
                Ok(()) => Ok(()),
                Err(failure) => self.answer(id, Err(failure)),
            },
            Command::Power(power) => {
                self.answer(id, Ok(Value::Done))?;
                self.serial.drain()?;
                Ok(end_guest(power)?)
            }
        }
    }

    fn spawn(&mut self) -> io::Result<ProcessId> {
        let (socket, worker_socket) = UnixStream::pair()?;
        let (faults, worker_faults) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        match sys::fork()? {
            Fork::Child => {
                // These are process 1's ends; held here, they would outlive their worker's.
                self.workers.clear();
                drop((socket, faults));
                worker::run(worker_socket, worker_faults)
            }
            Fork::Parent(pid) => {
                let process = process_id(pid);
                let socket = FrameReader::new(socket);
                let faults = File::from(faults);
                let handle =
                    WorkerHandle { pid, socket, faults, asked: Asked::Nothing, killed_by: None };
                self.workers.insert(process, handle);
                Ok(process)
            }
        }
    }

    fn ask(&mut self, process: ProcessId, id: u32, action: &Action) -> Result<(), Failure> {
        let worker = self.worker(process)?;
        if worker.asked != Asked::Nothing {
            return Err(Failure::Refused(format!("{process} has not answered yet")));
        }
        // Its socket is empty, so this does not wait unless it is about to die and then fails.
        worker.asked = match write_frame(worker.socket.stream(), action) {
            Ok(()) => Asked::Request(id),
            Err(_) => Asked::Closed(id),
        };
        Ok(())
    }

    fn worker(&mut self, process: ProcessId) -> Result<&mut WorkerHandle, Failure> {
        match self.workers.get_mut(&process) {
            Some(worker) => Ok(worker),
            None => Err(self.ended.get(&process).map_or_else(
                || Failure::Refused(format!("{process} does not exist")),
                |end| Failure::Ended(*end),
            )),
        }
    }

    fn pass_answer(&mut self, process: ProcessId) -> anyhow::Result<()> {
        match self.workers.get_mut(&process).and_then(WorkerHandle::take_answer) {
            Some((id, result)) => self.answer(id, result),
            None => Ok(()),
        }
    }

    /// Reaps every child that has ended: workers, and orphans that they left.
    fn reap(&mut self) -> anyhow::Result<()> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let (process, end) = (process_id(pid), sys::end(status));
                    if let Some(worker) = self.workers.remove(&process) {
                        self.ended.insert(process, end);
                        self.answer_for(worker, end)?;
                    }
                }
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn answer_for(&self, mut worker: WorkerHandle, end: End) -> anyhow::Result<()> {
        if worker.has_answered()
            && let Some((id, result)) = worker.take_answer()
        {
            self.answer(id, result)?;
        }
        if let Asked::Request(id) | Asked::Closed(id) = worker.asked {
            let failure = match AccessReport::read(&worker.faults, end) {
                Some(AccessReport::Fault(fault)) => Failure::Fault(fault),
                _ => Failure::Ended(end),
            };
            self.answer(id, Err(failure))?;
        }
        match worker.killed_by {
            Some(id) => self.answer(id, Ok(Value::Done)),
            None => Ok(()),
        }
    }

    fn answer(&self, id: u32, result: Result<Value, Failure>) -> anyhow::Result<()> {
        Ok(self.serial.answer(&Answer { id, result })?)
    }
}

impl WorkerHandle {
    fn is_asked(&self) -> bool {
        matches!(self.asked, Asked::Request(_))
    }

    fn poll_fd(&self) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.socket.stream().as_fd(), PollFlags::IN)
    }

    /// Whether an answer is waiting, or was cut short.
    fn has_answered(&self) -> bool {
        self.is_asked() && poll(&mut [self.poll_fd()], Some(&Timespec::default())) == Ok(1)
    }

    /// Its answer with the request's id; nothing if it closed its socket instead.
    fn take_answer(&mut self) -> Option<(u32, Result<Value, Failure>)> {
        let Asked::Request(id) = self.asked else { return None };
        let answer = self.socket.read().ok();
        self.asked = if answer.is_some() { Asked::Nothing } else { Asked::Closed(id) };
        Some((id, answer?))
    }
}

fn process_id(pid: Pid) -> ProcessId {
    ProcessId(pid.as_raw_pid() as u32)
}

/// Drops signals about children: wait(2) finds out which have ended.
fn drain(child_signals: &OwnedFd) -> io::Result<()> {
    let mut signals = [0; 1024];
    match rustix::io::read(child_signals, &mut signals) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn end_guest(power: Power) -> io::Result<()> {
    match power {
        Power::Off => Ok(reboot(RebootCommand::PowerOff)?),
        Power::Reboot => Ok(reboot(RebootCommand::Restart)?),
        Power::Halt => Ok(reboot(RebootCommand::Halt)?),
        Power::Crash => fs::write("/proc/sysrq-trigger", "c"),
    }
}
