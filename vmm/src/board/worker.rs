//! The thread that does the devices' work: it processes their queues, and checks once a second whether the
//! guest has halted for good.

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
use crate::quiesce::{DeviceGate, VcpuGate};
use crate::threads::{self, Role};

/// Why a worker cannot be started.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The event loop cannot be created.
    #[error("cannot start the devices' event loop: {0}")]
    EventLoop(#[from] event_manager::Error),
    /// The host cannot provide a descriptor or the thread.
    #[error("cannot start the devices' thread: {0}")]
    Io(#[from] io::Error),
}

/// An eventfd that signals: an interrupt line through irqfd, or a doorbell.
pub struct EventSignal(pub EventFd);

impl EventSignal {
    /// Creates an eventfd.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK).map(Self)
    }
}

impl Signal for EventSignal {
    fn signal(&self) {
        // It fails only when the counter is full, and then a signal is pending anyway.
        let _ = self.0.write(1);
    }
}

/// What the worker does for a device when its doorbell rings.
pub struct DeviceWork {
    /// Rung by the driver.
    pub doorbell: Arc<EventSignal>,
    /// The work. Returns true if there may be more, to be done after the work of other devices.
    pub process: Box<dyn FnMut() -> bool + Send>,
}

impl DeviceWork {
    /// Processes the queues of a virtio device.
    pub fn queues(doorbell: Arc<EventSignal>, transport: Arc<dyn Transport>) -> Self {
        let process = move || transport.process_queues();
        Self { doorbell, process: Box::new(process) }
    }

    /// Does a probe's DMA, which may go to registers of functions of `peers`.
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
        // It fails only if the doorbell has been read already, which does no harm.
        let _ = self.doorbell.0.read();
        if (self.process)() {
            self.doorbell.signal();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        register(ops, &self.doorbell.0);
    }
}

/// A subscriber that runs only while the machine is not paused. Until then its events stay pending.
struct Gated<S> {
    subscriber: S,
    devices: Arc<DeviceGate>,
}

impl<S> Gated<S> {
    fn new(subscriber: S, devices: &Arc<DeviceGate>) -> Self {
        Self { subscriber, devices: Arc::clone(devices) }
    }
}

impl<S: MutEventSubscriber> MutEventSubscriber for Gated<S> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let _working = self.devices.enter();
        self.subscriber.process(events, ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.subscriber.init(ops);
    }
}

/// Detects a guest that has halted for good. KVM handles HLT without an exit, so this polls.
pub struct HaltWatch {
    timer: TimerFd,
    gate: Arc<VcpuGate>,
    halted: Vec<Arc<AtomicBool>>,
    ending: Arc<EndingCell>,
}

impl HaltWatch {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Watches the vCPUs of `gate`, for each of which `halted` has a flag.
    pub fn new(
        gate: Arc<VcpuGate>,
        halted: Vec<Arc<AtomicBool>>,
        ending: Arc<EndingCell>,
    ) -> io::Result<Self> {
        let mut timer = TimerFd::new().map_err(io::Error::from)?;
        timer.reset(Self::INTERVAL, Some(Self::INTERVAL)).map_err(io::Error::from)?;
        Ok(Self { timer, gate, halted, ending })
    }
}

impl MutEventSubscriber for HaltWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // The timer has expired, so this does not wait.
        let _ = self.timer.wait();
        // A vCPU that is kicked out of KVM_RUN sets its flag if it is halted; one that was outside is not.
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
        error!("cannot wait for an event: {error}");
    }
}

/// The running worker.
pub struct Worker {
    stop: EventFd,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a thread with this role, which works while `devices` is open.
    pub fn start(
        role: Role,
        work: Vec<DeviceWork>,
        watch: Option<HaltWatch>,
        devices: &Arc<DeviceGate>,
        ending: Arc<EndingCell>,
    ) -> Result<Self, WorkerError> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let mut events = EventManager::<Box<dyn MutEventSubscriber + Send>>::new()?;
        for work in work {
            events.add_subscriber(Box::new(Gated::new(work, devices)));
        }
        if let Some(watch) = watch {
            events.add_subscriber(Box::new(Gated::new(watch, devices)));
        }
        let end = Stop { event: stop.try_clone()?, stopped: Arc::clone(&stopped) };
        events.add_subscriber(Box::new(end));
        let thread = threads::spawn(role, move || {
            // A bug in moat must end the machine, not leave its guest waiting.
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
        // A panic of the thread has been reported already.
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_doorbell_that_rings_while_devices_are_stopped_is_processed_when_they_resume() {
        let devices = Arc::new(DeviceGate::default());
        let ending = Arc::new(EndingCell::default());
        let (done, is_done) = mpsc::channel();
        let doorbell = Arc::new(EventSignal::new().unwrap());
        let process = move || {
            done.send(()).unwrap();
            false
        };
        let work = DeviceWork { doorbell: Arc::clone(&doorbell), process: Box::new(process) };
        let gate = Arc::new(VcpuGate::new(1));
        let watch = HaltWatch::new(gate, vec![Arc::default()], Arc::clone(&ending)).unwrap();
        let worker =
            Worker::start(Role::Worker, vec![work], Some(watch), &devices, ending).unwrap();
        doorbell.signal();
        is_done.recv().unwrap();
        for _ in 0..100 {
            devices.close();
            doorbell.signal();
            assert!(is_done.try_recv().is_err());
            devices.open();
            is_done.recv().unwrap();
        }
        worker.stop();
    }
}
