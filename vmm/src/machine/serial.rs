//! What a serial port is wired to: a writer for its output, a reader for its input, each served by
//! a thread of its own so that neither holds up a vCPU.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::Signal;
use devices::serial::SerialPort;
use log::debug;

use super::lock;

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

/// The thread that carries a port's output to its endpoint.
pub struct OutputPump {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl OutputPump {
    /// Starts carrying output to `endpoint`, and returns what the port writes to.
    pub fn start(mut endpoint: Box<dyn Write + Send>) -> io::Result<(Self, Box<dyn Write + Send>)> {
        let queue = Arc::new(Queue::default());
        let writer = Box::new(QueueWriter(Arc::clone(&queue)));
        let source = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("serial-out".into()).spawn(move || {
            while let Some(bytes) = take(&source) {
                if let Err(error) = endpoint.write_all(&bytes).and_then(|()| endpoint.flush()) {
                    debug!("serial output is lost: {error}");
                }
            }
        })?;
        Ok((Self { queue, thread }, writer))
    }

    /// Waits until all output has gone its way.
    pub fn finish(self) {
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

/// Tells the input thread that the guest has read its input, or that the machine has ended.
#[derive(Default)]
pub struct InputRoom {
    state: Mutex<RoomState>,
    changed: Condvar,
}

#[derive(Default)]
struct RoomState {
    drained: u64,
    ended: bool,
}

impl InputRoom {
    /// No more input is wanted.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, RoomState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `input` to `port`, piece by piece as the guest reads. False when the machine ended.
    fn deliver(&self, port: &Mutex<SerialPort>, mut input: &[u8]) -> bool {
        while !input.is_empty() {
            let seen = self.lock().drained;
            let taken = lock(port).receive(input);
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

/// Starts carrying what `input` gives to `port`. The thread ends with the input, or, once some
/// comes, with the machine.
pub fn start_input(
    mut input: Box<dyn Read + Send>,
    port: Arc<Mutex<SerialPort>>,
    room: Arc<InputRoom>,
) -> io::Result<()> {
    std::thread::Builder::new().name("serial-in".into()).spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) if room.deliver(&port, &buffer[..length]) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    })?;
    Ok(())
}
