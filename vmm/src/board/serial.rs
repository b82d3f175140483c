//! What a serial port is connected to: a writer for its output and a reader for its input, each served by
//! a thread of its own so that neither holds up a vCPU.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::Signal;
use devices::serial::SerialPort;
use log::warn;

use crate::quiesce::DeviceGate;
use crate::sync::lock;
use crate::threads::{self, Role};

/// What a serial port is connected to.
pub struct SerialEndpoint {
    /// Its name in warnings.
    pub name: &'static str,
    /// Where the guest's input comes from; none if it gets none.
    pub input: Option<Box<dyn Read + Send>>,
    /// Where the guest's output goes.
    pub output: Box<dyn Write + Send>,
}

impl SerialEndpoint {
    /// Discards output, and has no input.
    pub fn null() -> Self {
        Self { name: "nothing", input: None, output: Box::new(io::sink()) }
    }
}

/// Output that is queued for the endpoint.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// The port has flushed them.
    flushed: bool,
    /// The port will write no more.
    closed: bool,
    /// Bytes that the endpoint has taken, or failed to take, so far.
    finished: u64,
    /// Bytes that the endpoint never got.
    lost: u64,
    /// Bytes taken from the queue that the endpoint has not taken yet.
    in_flight: u64,
    /// The queue is closed and empty.
    done: bool,
}

struct Queue {
    name: &'static str,
    /// Closed while the machine is paused.
    devices: Arc<DeviceGate>,
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl Queue {
    /// How much output is kept for an endpoint that is slow; the rest is lost.
    const CAPACITY_BYTES: usize = 4 << 20;
    /// How long [`Self::finish`] waits for an endpoint that takes nothing.
    const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
    /// How long output waits to be flushed. A guest writes single bytes: to wake a thread for each would take
    /// it longer than to write them.
    const FLUSH_TIMEOUT: Duration = Duration::from_millis(5);

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for output. None once the queue is closed and empty.
    fn take(&self) -> Option<Vec<u8>> {
        let mut pending = self.lock();
        while pending.bytes.is_empty() && !pending.closed {
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        let is_unfinished = |pending: &mut Pending| !pending.flushed && !pending.closed;
        let wait = self.changed.wait_timeout_while(pending, Self::FLUSH_TIMEOUT, is_unfinished);
        (pending, _) = wait.unwrap_or_else(PoisonError::into_inner);
        pending.flushed = false;
        let bytes = std::mem::take(&mut pending.bytes);
        pending.in_flight = bytes.len() as u64;
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Writes output to `endpoint` until the queue is closed and empty.
    fn carry(&self, endpoint: &mut dyn Write) {
        while let Some(bytes) = self.take() {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                // A write that is under way when the machine is paused goes on, and the pause does not
                // wait for it: it may block for any time.
                drop(self.devices.enter());
                match endpoint.write(rest) {
                    Ok(written @ 1..) => {
                        rest = &rest[written..];
                        self.count_finished(written, false);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(0) => rest = self.lose(rest, &ErrorKind::WriteZero.into()),
                    Err(error) => rest = self.lose(rest, &error),
                }
            }
            if let Err(error) = endpoint.flush() {
                self.lose(&[], &error);
            }
        }
        self.lock().done = true;
        self.changed.notify_all();
    }

    fn count_finished(&self, bytes: usize, is_lost: bool) {
        let mut pending = self.lock();
        pending.finished += bytes as u64;
        pending.in_flight -= bytes as u64;
        pending.lost += if is_lost { bytes as u64 } else { 0 };
        self.changed.notify_all();
    }

    /// Counts `rest` as lost because of `error`. The first loss is logged, and the total by [`Self::finish`].
    fn lose<'a>(&self, rest: &'a [u8], error: &io::Error) -> &'a [u8] {
        let is_first = self.lock().lost == 0;
        self.count_finished(rest.len(), true);
        if is_first {
            warn!("output of the guest is lost: {}: {error}", self.name);
        }
        &[]
    }

    /// Waits until the endpoint has taken all output, or takes no more.
    fn finish(&self) {
        let mut pending = self.lock();
        pending.closed = true;
        self.changed.notify_all();
        while !pending.done {
            let finished = pending.finished;
            let timeout;
            (pending, timeout) = self
                .changed
                .wait_timeout(pending, Self::DRAIN_TIMEOUT)
                .unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && pending.finished == finished {
                pending.lost += pending.in_flight + pending.bytes.len() as u64;
                break;
            }
        }
        if pending.lost > 0 {
            warn!("{} bytes of the guest's output to {} were lost", pending.lost, self.name);
        }
    }
}

/// The port's side of the queue.
struct QueueWriter(Arc<Queue>);

impl Write for QueueWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pending = self.0.lock();
        if pending.bytes.len() + bytes.len() > Queue::CAPACITY_BYTES {
            let is_first = pending.lost == 0;
            pending.lost += bytes.len() as u64;
            drop(pending);
            if is_first {
                warn!("output of the guest is lost: {} does not take it", self.0.name);
            }
            return Err(ErrorKind::WouldBlock.into());
        }
        pending.bytes.extend_from_slice(bytes);
        if pending.bytes.len() == bytes.len() {
            self.0.changed.notify_all();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut pending = self.0.lock();
        if !pending.bytes.is_empty() {
            pending.flushed = true;
            self.0.changed.notify_all();
        }
        Ok(())
    }
}

/// The connection of a serial port to its endpoint. It outlives the port: a machine that restarts gets a
/// new port.
pub struct SerialWires {
    output: Arc<Queue>,
    input: Arc<InputRoom>,
}

impl SerialWires {
    /// Starts to move input and output of `endpoint`, while `devices` is open.
    pub fn start(endpoint: SerialEndpoint, devices: Arc<DeviceGate>) -> io::Result<Self> {
        let SerialEndpoint { name, input, mut output } = endpoint;
        let room = Arc::new(InputRoom { devices: Arc::clone(&devices), ..InputRoom::default() });
        let (pending, changed) = (Mutex::default(), Condvar::new());
        let queue = Arc::new(Queue { name, devices, pending, changed });
        let source = Arc::clone(&queue);
        threads::spawn(Role::SerialOutput, move || source.carry(&mut *output))?;
        if let Some(input) = input {
            start_input(input, Arc::clone(&room))?;
        }
        Ok(Self { output: queue, input: room })
    }

    /// Creates a port, which replaces the one before.
    pub fn port(&self, interrupt: Arc<dyn Signal>) -> Arc<Mutex<SerialPort>> {
        let output = Box::new(QueueWriter(Arc::clone(&self.output)));
        let port = SerialPort::new(interrupt, self.input.clone(), output);
        let port = Arc::new(Mutex::new(port));
        self.input.connect(Some(Arc::clone(&port)));
        port
    }

    /// Removes the port; input waits for the next one.
    pub fn disconnect(&self) {
        self.input.connect(None);
    }

    /// Ends input, and waits until the endpoint has taken all output, or takes no more. In that case its
    /// thread goes on until the blocked write returns.
    pub fn finish(self) {
        self.input.end();
        self.output.finish();
    }
}

/// Gives the input thread the port, and wakes it when the guest has read its input, or input has to end.
#[derive(Default)]
struct InputRoom {
    /// Closed while the machine is paused.
    devices: Arc<DeviceGate>,
    state: Mutex<RoomState>,
    changed: Condvar,
}

#[derive(Default)]
struct RoomState {
    port: Option<Arc<Mutex<SerialPort>>>,
    drained: u64,
    ended: bool,
}

impl InputRoom {
    fn connect(&self, port: Option<Arc<Mutex<SerialPort>>>) {
        let mut state = self.lock();
        state.port = port;
        state.drained += 1;
        self.changed.notify_all();
    }

    fn end(&self) {
        let mut state = self.lock();
        state.port = None;
        state.ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, RoomState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `input` to the port, piece by piece as the guest reads. False once input has to end.
    fn deliver(&self, mut input: &[u8]) -> bool {
        while !input.is_empty() {
            let (seen, port) = {
                let state = self.lock();
                (state.drained, state.port.clone())
            };
            // The port's lock must not be taken while ours is held: the port calls `signal` under its lock.
            let taken = port.map_or(0, |port| {
                let _working = self.devices.enter();
                lock(&port).receive(input)
            });
            input = &input[taken..];
            let mut state = self.lock();
            while !input.is_empty() && state.drained == seen && !state.ended {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.ended {
                return false;
            }
        }
        true
    }
}

impl Signal for InputRoom {
    fn signal(&self) {
        self.lock().drained += 1;
        self.changed.notify_all();
    }
}

/// Starts a thread that moves `input` to the port. It ends with the input, or when it reads input after the
/// machine's end.
fn start_input(mut input: Box<dyn Read + Send>, room: Arc<InputRoom>) -> io::Result<()> {
    threads::spawn(Role::SerialInput, move || {
        let mut buffer = [0; 4096];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) if room.deliver(&buffer[..length]) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    struct NullSignal;

    impl Signal for NullSignal {
        fn signal(&self) {}
    }

    fn wires(output: impl Write + Send + 'static) -> SerialWires {
        let endpoint = SerialEndpoint { name: "a test", input: None, output: Box::new(output) };
        SerialWires::start(endpoint, Arc::default()).unwrap()
    }

    fn print(wires: &SerialWires, text: &str) {
        const DATA: u64 = 0;
        let port = wires.port(Arc::new(NullSignal));
        devices::bus::BusDevice::write(&mut *lock(&port), DATA, text.as_bytes());
    }

    /// Takes one byte at a time, and sends it to the test.
    struct Slow(mpsc::Sender<u8>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes[0]).map_err(io::Error::other)?;
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn finish_waits_for_all_output() {
        let (sender, receiver) = mpsc::channel();
        let wires = wires(Slow(sender));
        print(&wires, "to the last byte");
        wires.finish();
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), b"to the last byte");
    }

    #[test]
    fn finish_does_not_wait_forever_for_a_blocked_endpoint() {
        /// Blocks until the test ends.
        struct Stuck(mpsc::Receiver<()>);

        impl Write for Stuck {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                self.0.recv().map_err(io::Error::other)?;
                Ok(0)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let (sender, receiver) = mpsc::channel();
        let wires = wires(Stuck(receiver));
        print(&wires, "lost");
        let output = Arc::clone(&wires.output);
        wires.finish();
        assert_eq!(output.lock().lost, 4);
        drop(sender);
    }

    #[test]
    fn a_failed_write_is_counted_as_lost_and_later_output_still_arrives() {
        struct Failing(mpsc::Sender<Vec<u8>>);

        impl Write for Failing {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if bytes.starts_with(b"!") {
                    return Err(ErrorKind::StorageFull.into());
                }
                self.0.send(bytes.into()).map_err(io::Error::other)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let (sender, receiver) = mpsc::channel();
        let wires = wires(Failing(sender));
        for text in ["!", "a"] {
            print(&wires, text);
            while wires.output.lock().finished == 0 {
                thread::yield_now();
            }
        }
        let output = Arc::clone(&wires.output);
        wires.finish();
        assert_eq!(receiver.recv().unwrap(), b"a");
        assert_eq!(output.lock().lost, 1);
    }

    #[test]
    fn a_paused_port_moves_nothing_and_loses_nothing() {
        const DATA: u64 = 0;
        const MODEM_CONTROL: u64 = 4;
        const LINE_STATUS: u64 = 5;
        const DATA_TERMINAL_READY: u8 = 1 << 0;
        const DATA_READY: u8 = 1 << 0;
        let read = |port: &Arc<Mutex<SerialPort>>, register| {
            let mut data = [0];
            devices::bus::BusDevice::read(&mut *lock(port), register, &mut data);
            data[0]
        };
        let devices = Arc::new(DeviceGate::default());
        let (sender, receiver) = mpsc::channel();
        let (input, mut keys) = io::pipe().unwrap();
        let endpoint = SerialEndpoint {
            name: "a test",
            input: Some(Box::new(input)),
            output: Box::new(Slow(sender)),
        };
        let wires = SerialWires::start(endpoint, Arc::clone(&devices)).unwrap();
        let port = wires.port(Arc::new(NullSignal));
        let write = |register, data: &[u8]| {
            devices::bus::BusDevice::write(&mut *lock(&port), register, data);
        };
        write(MODEM_CONTROL, &[DATA_TERMINAL_READY]);
        devices.close();
        keys.write_all(b"in").unwrap();
        write(DATA, b"out");
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
        assert_eq!(wires.output.lock().finished, 0);
        assert_eq!(read(&port, LINE_STATUS) & DATA_READY, 0);
        devices.open();
        for expected in *b"in" {
            while read(&port, LINE_STATUS) & DATA_READY == 0 {
                thread::yield_now();
            }
            assert_eq!(read(&port, DATA), expected);
        }
        wires.finish();
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), b"out");
    }
}
