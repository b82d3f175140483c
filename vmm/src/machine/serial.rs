//! What a serial port is wired to: a writer for its output, a reader for its input, each served by
//! a thread of its own so that neither holds up a vCPU.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::Signal;
use devices::serial::SerialPort;
use log::debug;

use crate::sync::lock;

/// The far end of a serial port.
pub struct SerialEndpoint {
    /// Where the guest's input comes from; none if it gets none.
    pub input: Option<Box<dyn Read + Send>>,
    /// Where the guest's output goes.
    pub output: Box<dyn Write + Send>,
}

impl SerialEndpoint {
    /// A port with nobody at the far end.
    pub fn null() -> Self {
        Self { input: None, output: Box::new(io::sink()) }
    }
}

/// Output on its way from the guest to the endpoint.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl Queue {
    /// As much output is kept for an endpoint that does not take it; the rest is lost.
    const CAPACITY_BYTES: usize = 4 << 20;

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The port's side of the queue.
struct QueueWriter(Arc<Queue>);

impl Write for QueueWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pending = self.0.lock();
        if pending.bytes.len() + bytes.len() > Queue::CAPACITY_BYTES {
            return Err(ErrorKind::WouldBlock.into());
        }
        pending.bytes.extend_from_slice(bytes);
        if pending.bytes.len() == bytes.len() {
            self.0.changed.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The wires from a serial port to its endpoint. They outlast the port: a machine that restarts gets
/// another.
pub struct SerialWires {
    output: OutputPump,
    input: Arc<InputRoom>,
}

impl SerialWires {
    /// Starts carrying what `endpoint` gives and takes.
    pub fn start(endpoint: SerialEndpoint) -> io::Result<Self> {
        let output = OutputPump::start(endpoint.output)?;
        let room = Arc::new(InputRoom::default());
        if let Some(input) = endpoint.input {
            start_input(input, Arc::clone(&room))?;
        }
        Ok(Self { output, input: room })
    }

    /// A port at this end of the wires, instead of the one before.
    pub fn port(&self, interrupt: Arc<dyn Signal>) -> Arc<Mutex<SerialPort>> {
        let output = Box::new(QueueWriter(Arc::clone(&self.output.queue)));
        let port = SerialPort::new(interrupt, self.input.clone(), output);
        let port = Arc::new(Mutex::new(port));
        self.input.connect(Some(Arc::clone(&port)));
        port
    }

    /// Takes the port away; input waits for the next one.
    pub fn disconnect(&self) {
        self.input.connect(None);
    }

    /// Ends input, and waits until all output has gone its way.
    pub fn finish(self) {
        self.input.end();
        self.output.finish();
    }
}

/// The thread that carries a port's output to its endpoint.
struct OutputPump {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl OutputPump {
    fn start(mut endpoint: Box<dyn Write + Send>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let source = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("serial-out".into()).spawn(move || {
            while let Some(bytes) = take(&source) {
                if let Err(error) = endpoint.write_all(&bytes).and_then(|()| endpoint.flush()) {
                    debug!("serial output is lost: {error}");
                }
            }
        })?;
        Ok(Self { queue, thread })
    }

    fn finish(self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_one();
        // A panic there has been reported already, and there is nothing left to do.
        let _ = self.thread.join();
    }
}

/// Waits for output; none when there will be no more.
fn take(queue: &Queue) -> Option<Vec<u8>> {
    let mut pending = queue.lock();
    while pending.bytes.is_empty() && !pending.closed {
        pending = queue.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
    }
    let bytes = std::mem::take(&mut pending.bytes);
    (!bytes.is_empty()).then_some(bytes)
}

/// Where the input thread finds the port, and is told that the guest has read its input, or that no
/// more is wanted.
#[derive(Default)]
struct InputRoom {
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

    /// Hands `input` to the port, piece by piece as the guest reads. False when no more is wanted.
    fn deliver(&self, mut input: &[u8]) -> bool {
        while !input.is_empty() {
            let (seen, port) = {
                let state = self.lock();
                (state.drained, state.port.clone())
            };
            // The port's lock is never taken under ours: its guest tells us what it has read.
            let taken = port.map_or(0, |port| lock(&port).receive(input));
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

/// Starts carrying what `input` gives to the port. The thread ends with the input, or, once some
/// comes, with the machine.
fn start_input(mut input: Box<dyn Read + Send>, room: Arc<InputRoom>) -> io::Result<()> {
    std::thread::Builder::new().name("serial-in".into()).spawn(move || {
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
