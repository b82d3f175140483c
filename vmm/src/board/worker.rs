//! The thread that does the devices' work: what a driver made available, and a look once a second
//! at whether the guest has halted for good.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::Signal;
use devices::pci::RootComplex;
use devices::probe::Probe;
use devices::virtio::transport::Transport;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use log::error;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::exit::{Ending, EndingCell};
use crate::quiesce::VcpuGate;

/// A worker that cannot be started.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The event loop.
    #[error("cannot start the devices' event loop: {0}")]
    EventLoop(#[from] event_manager::Error),
    /// A descriptor or the thread.
    #[error("cannot start the devices' thread: {0}")]
    Io(#[from] io::Error),
}

/// An eventfd that signals: an interrupt line through irqfd, or a doorbell.
pub struct EventSignal(pub EventFd);

impl EventSignal {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK).map(Self)
    }
}

impl Signal for EventSignal {
    fn signal(&self) {
        // It can only fail when the counter is full, and then the signal is pending anyway.
        let _ = self.0.write(1);
    }
}

/// What the worker does for a device when its doorbell rings.
pub struct DeviceWork {
    /// Rung by the driver.
    pub doorbell: Arc<EventSignal>,
    /// The work. True if there may be more of it, to be done after other work.
    pub process: Box<dyn FnMut() -> bool + Send>,
}

impl DeviceWork {
    /// Processes the queues of a virtio device.
    pub fn queues(doorbell: Arc<EventSignal>, transport: Arc<dyn Transport>) -> Self {
        let process = move || transport.process_queues();
        Self { doorbell, process: Box::new(process) }
    }

    /// Does a probe's DMA, which may be to the registers of functions of `peers`.
    pub fn dma(
        doorbell: Arc<EventSignal>,
        probe: Arc<Mutex<Probe>>,
        peers: Arc<RootComplex>,
    ) -> Self {
        let process = move || {
            Probe::process(&probe, &peers);
            false
        };
        Self { doorbell, process: Box::new(process) }
    }
}

impl MutEventSubscriber for DeviceWork {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // An empty doorbell has been answered already.
        let _ = self.doorbell.0.read();
        if (self.process)() {
            self.doorbell.signal();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        register(ops, &self.doorbell.0);
    }
}

/// Looks for a guest that has halted for good. KVM keeps HLT to itself, so somebody has to look.
struct HaltWatch {
    timer: TimerFd,
    gate: Arc<VcpuGate>,
    halted: Vec<Arc<AtomicBool>>,
    ending: Arc<EndingCell>,
}

impl HaltWatch {
    const INTERVAL: Duration = Duration::from_secs(1);
}

impl MutEventSubscriber for HaltWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // The timer has expired, so this does not wait.
        let _ = self.timer.wait();
        // A vCPU that is kicked out of KVM_RUN says whether it is halted; one that was outside
        // is not.
        self.halted.iter().for_each(|halted| halted.store(false, Ordering::Relaxed));
        drop(self.gate.close());
        if self.halted.iter().all(|halted| halted.load(Ordering::Relaxed)) {
            self.ending.set(Ending::Halt);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        register(ops, &self.timer);
    }
}

/// Ends the loop.
struct Stop {
    event: EventFd,
    stopped: Arc<AtomicBool>,
}

impl MutEventSubscriber for Stop {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        register(ops, &self.event);
    }
}

fn register(ops: &mut EventOps<'_>, source: &impl AsRawFd) {
    if let Err(error) = ops.add(Events::new(source, EventSet::IN)) {
        error!("an event will not be seen: {error}");
    }
}

/// The running worker.
pub struct Worker {
    stop: EventFd,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread. `halted` has a flag for each vCPU of `gate`.
    pub fn start(
        work: Vec<DeviceWork>,
        gate: Arc<VcpuGate>,
        halted: Vec<Arc<AtomicBool>>,
        ending: Arc<EndingCell>,
    ) -> Result<Self, WorkerError> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let mut events = EventManager::<Box<dyn MutEventSubscriber + Send>>::new()?;
        for work in work {
            events.add_subscriber(Box::new(work));
        }
        let mut timer = TimerFd::new().map_err(io::Error::from)?;
        timer.reset(HaltWatch::INTERVAL, Some(HaltWatch::INTERVAL)).map_err(io::Error::from)?;
        let watch = HaltWatch { timer, gate, halted, ending: Arc::clone(&ending) };
        events.add_subscriber(Box::new(watch));
        let end = Stop { event: stop.try_clone()?, stopped: Arc::clone(&stopped) };
        events.add_subscriber(Box::new(end));
        let thread = std::thread::Builder::new().name("devices".into()).spawn(move || {
            // A bug of ours shall end the machine, and not leave its guest waiting.
            let run = AssertUnwindSafe(|| {
                while !stopped.load(Ordering::Relaxed) {
                    events.run()?;
                }
                Ok::<_, event_manager::Error>(())
            });
            match catch_unwind(run) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    ending.set(Ending::MachineError(format!("devices' event loop: {error}")));
                }
                Err(_) => ending.set(Ending::MachineError("the devices' thread panicked".into())),
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread.
    pub fn stop(self) {
        // It cannot fail: the counter is far from full.
        let _ = self.stop.write(1);
        // A panic there has been reported already, and there is nothing left to do.
        let _ = self.thread.join();
    }
}
