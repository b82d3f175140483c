//! The host's ends of a console's ports: bounded buffers between the devices' thread, which never blocks,
//! and other threads, which may.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use devices::Signal;
use devices::virtio::console::{HostEnd, Input, Port};

use crate::board::worker::EventSignal;
use crate::sync::lock;

/// Bytes buffered in each direction. Output may exceed it by one chain.
const CAPACITY: usize = 256 << 10;

/// The ports of a console, for its device.
#[derive(Clone)]
pub struct ConsolePorts {
    /// The ports.
    pub ports: Vec<Port>,
    /// The console's doorbell.
    pub doorbell: Arc<EventSignal>,
}

impl ConsolePorts {
    /// Creates ports with these names, and for each the streams that lead to it.
    pub fn new<const N: usize>(
        names: [&str; N],
    ) -> io::Result<(Self, [(PortReader, PortWriter); N])> {
        let doorbell = Arc::new(EventSignal::new()?);
        let created = names.map(|name| port(name, doorbell.clone()));
        let mut ports = Vec::new();
        let streams = created.map(|(port, reader, writer)| {
            ports.push(port);
            (reader, writer)
        });
        Ok((Self { ports, doorbell }, streams))
    }
}

fn port(name: &str, doorbell: Arc<EventSignal>) -> (Port, PortReader, PortWriter) {
    let shared = Arc::new(Shared { buffers: Mutex::default(), changed: Condvar::new(), doorbell });
    let host = Arc::new(BufferedEnd(Arc::clone(&shared)));
    let port = Port { name: name.to_owned(), host };
    (port, PortReader(Arc::clone(&shared)), PortWriter(shared))
}

struct Shared {
    buffers: Mutex<Buffers>,
    changed: Condvar,
    doorbell: Arc<EventSignal>,
}

#[derive(Default)]
struct Buffers {
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    /// The writer is gone: there will be no more input.
    input_ended: bool,
    /// The reader is gone: output is discarded.
    output_discarded: bool,
    guest_open: bool,
    /// The guest has closed its end and not reopened it.
    guest_closed: bool,
    /// The device is gone.
    device_gone: bool,
}

impl Shared {
    /// Waits until `ready`.
    fn wait(&self, ready: impl Fn(&Buffers) -> bool) -> MutexGuard<'_, Buffers> {
        let guard = lock(&self.buffers);
        let wait = self.changed.wait_while(guard, |buffers| !ready(buffers));
        wait.unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The device's view of a port.
struct BufferedEnd(Arc<Shared>);

impl HostEnd for BufferedEnd {
    fn input(&self) -> Input {
        let buffers = lock(&self.0.buffers);
        match (buffers.input.is_empty(), buffers.input_ended) {
            (false, _) => Input::Bytes,
            (true, true) => Input::End,
            (true, false) => Input::Nothing,
        }
    }

    fn take_input(&self, data: &mut [u8]) -> usize {
        let mut buffers = lock(&self.0.buffers);
        let taken = buffers.input.read(data).expect("a deque can always be read");
        self.0.changed.notify_all();
        taken
    }

    fn has_room(&self) -> bool {
        lock(&self.0.buffers).output.len() < CAPACITY
    }

    fn put_output(&self, data: &[u8]) {
        let mut buffers = lock(&self.0.buffers);
        if !buffers.output_discarded {
            buffers.output.extend(data);
            self.0.changed.notify_all();
        }
    }

    fn set_guest_open(&self, open: bool) {
        let mut buffers = lock(&self.0.buffers);
        // A driver's first reset of the device, before it opens a port, does not count as closing it.
        buffers.guest_closed = !open && (buffers.guest_open || buffers.guest_closed);
        buffers.guest_open = open;
        self.0.changed.notify_all();
    }
}

impl Drop for BufferedEnd {
    fn drop(&mut self) {
        lock(&self.0.buffers).device_gone = true;
        self.0.changed.notify_all();
    }
}

/// Reads what the guest writes to a port. It ends when the guest closes the port, or the machine ends.
pub struct PortReader(Arc<Shared>);

impl Read for PortReader {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let mut buffers = self.0.wait(|buffers| {
            !buffers.output.is_empty() || buffers.guest_closed || buffers.device_gone
        });
        let was_full = buffers.output.len() >= CAPACITY;
        let read = buffers.output.read(data)?;
        if was_full && buffers.output.len() < CAPACITY {
            self.0.doorbell.signal();
        }
        Ok(read)
    }
}

impl Drop for PortReader {
    /// Discards output from now on, so that the guest does not wait for a reader.
    fn drop(&mut self) {
        let mut buffers = lock(&self.0.buffers);
        buffers.output_discarded = true;
        buffers.output.clear();
        self.0.doorbell.signal();
    }
}

/// Writes what the guest reads from a port. When this is dropped, the guest sees the end of the stream.
pub struct PortWriter(Arc<Shared>);

impl Write for PortWriter {
    /// Waits while the guest does not read. Fails when the guest has closed the port, or the machine has
    /// ended.
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut buffers = self.0.wait(|buffers| {
            buffers.input.len() < CAPACITY || buffers.guest_closed || buffers.device_gone
        });
        if buffers.guest_closed || buffers.device_gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let length = data.len().min(CAPACITY - buffers.input.len());
        buffers.input.extend(&data[..length]);
        self.0.doorbell.signal();
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PortWriter {
    fn drop(&mut self) {
        lock(&self.0.buffers).input_ended = true;
        self.0.doorbell.signal();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn new_port() -> (Port, PortReader, PortWriter, Arc<EventSignal>) {
        let doorbell = Arc::new(EventSignal::new().unwrap());
        let (port, reader, writer) = port("test", doorbell.clone());
        (port, reader, writer, doorbell)
    }

    /// Whether the doorbell has rung since the last call.
    fn has_rung(doorbell: &EventSignal) -> bool {
        doorbell.0.read().is_ok()
    }

    #[test]
    fn input_waits_for_room_and_ends_when_its_writer_is_gone() {
        let (port, _reader, mut writer, doorbell) = new_port();
        assert_eq!(port.host.input(), Input::Nothing);
        let sent: Vec<u8> = (0..4 * CAPACITY).map(|byte| byte as u8).collect();
        let expected = sent.clone();
        let sender = thread::spawn(move || writer.write_all(&sent).unwrap());
        let (mut got, mut piece) = (Vec::new(), [0; 1000]);
        while port.host.input() != Input::End {
            let length = port.host.take_input(&mut piece);
            got.extend_from_slice(&piece[..length]);
        }
        sender.join().unwrap();
        assert_eq!(got, expected);
        assert!(has_rung(&doorbell));
    }

    #[test]
    fn reading_output_makes_room_for_more() {
        let (port, mut reader, _writer, doorbell) = new_port();
        port.host.set_guest_open(false);
        port.host.set_guest_open(true);
        port.host.put_output(&vec![7; CAPACITY]);
        assert!(!port.host.has_room());
        assert!(!has_rung(&doorbell));
        port.host.set_guest_open(false);
        let mut output = Vec::new();
        reader.read_to_end(&mut output).unwrap();
        assert_eq!(output, vec![7; CAPACITY]);
        assert!(port.host.has_room());
        assert!(has_rung(&doorbell));
    }

    #[test]
    fn output_without_a_reader_is_discarded() {
        let (port, reader, _writer, doorbell) = new_port();
        port.host.put_output(&vec![7; CAPACITY]);
        drop(reader);
        assert!(has_rung(&doorbell));
        port.host.put_output(&[7]);
        assert!(port.host.has_room());
    }

    #[test]
    fn both_streams_end_with_the_device() {
        let (port, mut reader, mut writer, _doorbell) = new_port();
        drop(port);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert_eq!(writer.write(&[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
