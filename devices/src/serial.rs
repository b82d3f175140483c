//! A 16550A serial port: `vm-superio`'s model on our bus.

use std::convert::Infallible;
use std::io::{self, Write};
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

/// Signals the machine when the guest has read all input, so that more may follow.
struct Drained(Arc<dyn Signal>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.signal();
    }
}

/// Where output goes. The model flushes after each byte, which this ignores: [`SerialPort`] flushes when the
/// driver has no more.
struct Output(Box<dyn Write + Send>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Registers of a 16550A (PC16550D, National Semiconductor, table 2) that `vm-superio`'s model does not
/// implement or does not make accessible.
mod register {
    pub const DATA: u64 = 0;
    pub const INTERRUPT_ENABLE: u64 = 1;
    pub const FIFO_CONTROL: u64 = 2;
    pub const LINE_CONTROL: u64 = 3;
    pub const MODEM_CONTROL: u64 = 4;
    pub const LINE_STATUS: u64 = 5;

    /// Of the interrupt enable register.
    pub const RECEIVED_DATA: u8 = 1 << 0;
    /// Of the FIFO control register.
    pub const CLEAR_RECEIVER: u8 = 1 << 1;
    /// Of the line control register: the first two registers are the divisor's.
    pub const DIVISOR_LATCH: u8 = 1 << 7;
    /// Of the modem control register.
    pub const DATA_TERMINAL_READY: u8 = 1 << 0;
    pub const LOOPBACK: u8 = 1 << 4;
    /// Of the line status register.
    pub const DATA_READY: u8 = 1 << 0;
}

/// A serial port that sends the guest's output to a writer and takes input by [`Self::receive`].
///
/// Output that the writer refuses is lost, as on a port that is not connected: a guest must not be held
/// up by its console. Input is not lost: the port takes none before the guest's driver is ready for it,
/// which it shows by enabling the interrupt or by setting Data Terminal Ready. A driver clears the FIFO
/// before that.
///
/// The writer is flushed when the driver writes the interrupt enable register: Linux's does after each message
/// of the kernel, and when it has nothing left to send. Other drivers may never flush it.
pub struct SerialPort {
    uart: Serial<Interrupt, Drained, Output>,
    /// As last written.
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    input_wanted: Arc<dyn Signal>,
}

impl SerialPort {
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 8;

    /// A port that raises `interrupt`, writes to `output`, and signals `input_wanted` each time it can
    /// take input again: the guest has read the last byte, or its driver has become ready.
    pub fn new(
        interrupt: Arc<dyn Signal>,
        input_wanted: Arc<dyn Signal>,
        output: Box<dyn Write + Send>,
    ) -> Self {
        let events = Drained(Arc::clone(&input_wanted));
        Self {
            uart: Serial::with_events(Interrupt(interrupt), events, Output(output)),
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            input_wanted,
        }
    }

    /// Puts `input` where the guest will read it and returns how many bytes fitted.
    pub fn receive(&mut self, input: &[u8]) -> usize {
        if !self.wants_input() {
            return 0;
        }
        let fitting = &input[..input.len().min(self.uart.fifo_capacity())];
        if fitting.is_empty() {
            return 0;
        }
        // In loopback mode the port receives nothing; the bytes stay with the caller.
        self.uart.enqueue_raw_bytes(fitting).unwrap_or(0)
    }

    fn wants_input(&self) -> bool {
        let by_interrupt = self.interrupt_enable & register::RECEIVED_DATA != 0;
        let terminal_ready = self.modem_control & register::DATA_TERMINAL_READY != 0;
        (by_interrupt || terminal_ready) && self.modem_control & register::LOOPBACK == 0
    }

    fn write_byte(&mut self, offset: u64, byte: u8) {
        let wanted = self.wants_input();
        let divisor_latch = self.line_control & register::DIVISOR_LATCH != 0;
        match offset {
            register::INTERRUPT_ENABLE if !divisor_latch => {
                self.interrupt_enable = byte;
                // As below, output is lost on an error.
                let _ = self.uart.writer_mut().0.flush();
            }
            register::FIFO_CONTROL if byte & register::CLEAR_RECEIVER != 0 => self.clear_receiver(),
            register::LINE_CONTROL => self.line_control = byte,
            register::MODEM_CONTROL => self.modem_control = byte,
            _ => {}
        }
        // An error can only come from the writer: the byte is lost and the guest goes on.
        let _ = self.uart.write(offset as u8, byte);
        if !wanted && self.wants_input() {
            self.input_wanted.signal();
        }
    }

    /// Discards all input that the guest has not read. The model has no FIFO control register.
    fn clear_receiver(&mut self) {
        let line_control = self.line_control & !register::DIVISOR_LATCH;
        let _ = self.uart.write(register::LINE_CONTROL as u8, line_control);
        while self.uart.read(register::LINE_STATUS as u8) & register::DATA_READY != 0 {
            self.uart.read(register::DATA as u8);
        }
        let _ = self.uart.write(register::LINE_CONTROL as u8, self.line_control);
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
            self.write_byte(offset, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::lock;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Signal for Count {
        fn signal(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A port, and how often it wanted input.
    fn port() -> (SerialPort, Arc<Count>) {
        let wanted = Arc::new(Count::default());
        let interrupt = Arc::new(Count::default());
        let port = SerialPort::new(interrupt, wanted.clone(), Box::new(Vec::new()));
        (port, wanted)
    }

    fn read(port: &mut SerialPort, register: u64) -> u8 {
        let mut data = [0];
        port.read(register, &mut data);
        data[0]
    }

    fn data_is_ready(port: &mut SerialPort) -> bool {
        read(port, register::LINE_STATUS) & register::DATA_READY != 0
    }

    #[test]
    fn input_beyond_the_fifo_stays_with_the_caller_until_the_guest_has_read() {
        let (mut port, wanted) = port();
        port.write(register::MODEM_CONTROL, &[register::DATA_TERMINAL_READY]);
        assert_eq!(wanted.0.swap(0, Ordering::Relaxed), 1);
        let input = [b'x'; 200];
        let taken = port.receive(&input);
        assert_eq!(taken, 64);
        assert_eq!(port.receive(&input[taken..]), 0);
        for _ in 0..taken {
            assert_eq!(wanted.0.load(Ordering::Relaxed), 0);
            assert_eq!(read(&mut port, register::DATA), b'x');
        }
        assert_eq!(wanted.0.load(Ordering::Relaxed), 1);
        assert_eq!(port.receive(&input[taken..]), 64);
    }

    #[test]
    fn input_stays_with_the_caller_until_the_driver_is_ready() {
        for (register, ready) in [
            (register::INTERRUPT_ENABLE, register::RECEIVED_DATA),
            (register::MODEM_CONTROL, register::DATA_TERMINAL_READY),
        ] {
            let (mut port, wanted) = port();
            assert_eq!(port.receive(b"early"), 0);
            assert!(!data_is_ready(&mut port));
            // The divisor's registers are at the same offsets.
            port.write(register::LINE_CONTROL, &[register::DIVISOR_LATCH]);
            port.write(register::DATA, &[1, 0]);
            port.write(register::INTERRUPT_ENABLE, &[register::RECEIVED_DATA]);
            port.write(register::LINE_CONTROL, &[3]);
            assert_eq!((port.receive(b"early"), wanted.0.load(Ordering::Relaxed)), (0, 0));
            port.write(register, &[ready]);
            assert_eq!(wanted.0.load(Ordering::Relaxed), 1);
            assert_eq!(port.receive(b"now"), 3);
            port.write(register, &[0]);
            assert_eq!(port.receive(b"not now"), 0);
        }
        let (mut port, _) = port();
        port.write(register::MODEM_CONTROL, &[register::DATA_TERMINAL_READY | register::LOOPBACK]);
        assert_eq!(port.receive(b"deaf"), 0);
    }

    #[test]
    fn output_is_flushed_when_the_driver_has_no_more() {
        /// How many bytes it has got, and how many of them were flushed.
        #[derive(Clone, Default)]
        struct Flushed(Arc<Mutex<(usize, usize)>>);

        impl Write for Flushed {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                lock(&self.0).0 += bytes.len();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                let mut counts = lock(&self.0);
                counts.1 = counts.0;
                Ok(())
            }
        }

        let (signal, output) = (Arc::new(Count::default()), Flushed::default());
        let mut port = SerialPort::new(signal.clone(), signal, Box::new(output.clone()));
        port.write(register::DATA, b"message");
        assert_eq!(*lock(&output.0), (7, 0));
        port.write(register::INTERRUPT_ENABLE, &[0]);
        assert_eq!(*lock(&output.0), (7, 7));
    }

    #[test]
    fn clearing_the_receiver_leaves_no_data_ready() {
        for line_control in [3, 3 | register::DIVISOR_LATCH] {
            let (mut port, _) = port();
            port.write(register::MODEM_CONTROL, &[register::DATA_TERMINAL_READY]);
            assert_eq!(port.receive(b"stale"), 5);
            assert!(data_is_ready(&mut port));
            port.write(register::LINE_CONTROL, &[line_control]);
            // Without the bit nothing is cleared.
            port.write(register::FIFO_CONTROL, &[1]);
            assert!(data_is_ready(&mut port));
            port.write(register::FIFO_CONTROL, &[7]);
            assert!(!data_is_ready(&mut port));
            assert_eq!(read(&mut port, register::LINE_CONTROL), line_control);
            assert_eq!(port.receive(b"new"), 3);
        }
    }
}
