//! A 16550A serial port: `vm-superio`'s model on our bus.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};

use crate::Signal;
use crate::bus::BusDevice;

struct Interrupt(Arc<dyn Signal>);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.signal();
        Ok(())
    }
}

/// Tells the machine when the guest has read all input, so that more may follow.
struct Drained(Arc<dyn Signal>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.signal();
    }
}

/// A serial port that sends the guest's output to a writer and takes input by [`Self::receive`].
///
/// Output that the writer refuses is lost, as on a port with nobody at the other end: a guest
/// must not be held up by its console.
pub struct SerialPort {
    uart: Serial<Interrupt, Drained, Box<dyn Write + Send>>,
}

impl SerialPort {
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 8;

    /// A port that raises `interrupt`, writes to `output`, and signals `drained` each time the
    /// guest has read the last byte of input.
    pub fn new(
        interrupt: Arc<dyn Signal>,
        drained: Arc<dyn Signal>,
        output: Box<dyn Write + Send>,
    ) -> Self {
        Self { uart: Serial::with_events(Interrupt(interrupt), Drained(drained), output) }
    }

    /// How many bytes [`Self::receive`] would take now; none in loopback mode.
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Puts `input` where the guest will read it and returns how many bytes fitted.
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let fitting = &input[..input.len().min(self.room())];
        if fitting.is_empty() {
            return 0;
        }
        // In loopback mode the port is deaf and says so; the bytes stay with the caller.
        self.uart.enqueue_raw_bytes(fitting).unwrap_or(0)
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = self.uart.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for &byte in data {
            // An error is the output's: the byte is lost and the guest goes on.
            let _ = self.uart.write(offset as u8, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Signal for Count {
        fn signal(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn input_beyond_the_fifo_stays_with_the_caller_until_the_guest_has_read() {
        let drained = Arc::new(Count::default());
        let mut port =
            SerialPort::new(Arc::new(Count::default()), drained.clone(), Box::new(Vec::new()));
        let input = [b'x'; 200];
        let taken = port.receive(&input);
        assert_eq!(taken, 64);
        assert_eq!(port.receive(&input[taken..]), 0);
        let mut data = [0];
        for _ in 0..taken {
            assert_eq!(drained.0.load(Ordering::Relaxed), 0);
            port.read(0, &mut data);
            assert_eq!(data, [b'x']);
        }
        assert_eq!(drained.0.load(Ordering::Relaxed), 1);
        assert_eq!(port.receive(&input[taken..]), 64);
    }
}
