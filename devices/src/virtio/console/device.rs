//! The device: carries bytes between queues and the host's ends of ports.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use log::debug;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::port::{Input, Port, PortState};
use super::wire::{Config, ControlEvent, ControlMessage, Features};
use crate::virtio::{Chain, DeviceType, VirtioDevice, read_config_bytes};
use crate::{Signal, lock};

/// Bytes that are copied at once.
const PIECE: usize = 64 << 10;
/// At most this many bytes of one chain are output, and the rest of it is lost, so that a guest cannot
/// grow the host's end without bound. Linux writes 32 KiB at a time, and splices at most a pipe.
const MAX_OUTPUT_A_CHAIN: usize = 16 << 20;

/// Why a console cannot have these ports.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConsoleError {
    /// None, or too many.
    #[error("invalid number of console ports {count}: expected 1 to {max}", max = Console::MAX_PORTS)]
    PortCount {
        /// How many were asked for.
        count: usize,
    },
}

/// What a queue carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueRole {
    /// A port's input, to the guest.
    Input(usize),
    /// A port's output, from the guest.
    Output(usize),
    /// Control messages to the driver.
    ControlInput,
    /// Control messages from the driver.
    ControlOutput,
}

impl From<u16> for QueueRole {
    /// The queues of port 0 come first, those of control before the other ports' (section 5.3.2).
    fn from(queue: u16) -> Self {
        match queue {
            0 => Self::Input(0),
            1 => Self::Output(0),
            2 => Self::ControlInput,
            3 => Self::ControlOutput,
            _ if queue.is_multiple_of(2) => Self::Input(usize::from(queue / 2) - 1),
            _ => Self::Output(usize::from(queue / 2) - 1),
        }
    }
}

/// A console device.
pub struct Console {
    ports: Vec<Port>,
    /// Signalled when there is a control message for the driver.
    doorbell: Arc<dyn Signal>,
    state: Mutex<ConsoleState>,
}

/// The state of the control messages between the driver and the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Whether the driver has negotiated MULTIPORT and so uses more ports than the first.
    pub multiport: bool,
    /// The ports.
    pub ports: Vec<PortState>,
}

impl ConsoleState {
    fn new(port_count: usize) -> Self {
        Self { multiport: false, ports: vec![PortState::default(); port_count] }
    }

    /// Without MULTIPORT, the driver has the only port open from the start.
    fn guest_has_open(&self, port: usize) -> bool {
        self.ports[port].guest_open || (port == 0 && !self.multiport)
    }
}

impl Console {
    /// The largest number of ports.
    pub const MAX_PORTS: usize = 8;
    const QUEUE_MAX_SIZES: [u16; 2 * (Self::MAX_PORTS + 1)] = [128; 2 * (Self::MAX_PORTS + 1)];

    /// A console with these ports.
    ///
    /// `doorbell` is signalled when there is a control message for the driver. The machine then calls
    /// [`Transport::process_queues`](crate::virtio::transport::Transport::process_queues).
    pub fn new(ports: Vec<Port>, doorbell: Arc<dyn Signal>) -> Result<Self, ConsoleError> {
        let count = ports.len();
        if !(1..=Self::MAX_PORTS).contains(&count) {
            return Err(ConsoleError::PortCount { count });
        }
        Ok(Self { ports, doorbell, state: Mutex::new(ConsoleState::new(count)) })
    }

    /// The state of the control messages between the driver and the device.
    pub fn state(&self) -> ConsoleState {
        lock(&self.state).clone()
    }

    /// The next message for the driver.
    fn next_message(&self) -> Option<ControlMessage> {
        let state = lock(&self.state);
        let ports = self.ports.iter().zip(&state.ports).enumerate();
        let message = |(index, (port, state)): (usize, (&Port, &PortState))| {
            state.message(index, port.host.input() != Input::End)
        };
        ports.filter(|_| state.multiport).find_map(message)
    }

    /// Puts the next message into `chain`. If it does not fit, it is lost.
    fn send_control_message(&self, chain: &Chain<'_>) -> u32 {
        let Some(message) = self.next_message() else {
            return 0;
        };
        let port = message.port.get() as usize;
        let mut bytes = message.as_bytes().to_vec();
        if message.event.get() == ControlEvent::PortName as u16 {
            bytes.extend_from_slice(self.ports[port].name.as_bytes());
        }
        lock(&self.state).ports[port].sent(&message);
        chain.writer().map_or(0, |mut writer| {
            if writer.available() >= bytes.len() as u64 {
                // A write fails only if the driver's buffer may not be accessed.
                let _ = writer.write_all(&bytes);
            }
            writer.written()
        })
    }

    /// Handles a control message of the driver.
    fn handle_control_message(&self, chain: &Chain<'_>) {
        let mut message = ControlMessage::new_zeroed();
        let read = chain.reader().map(|mut reader| reader.read_exact(message.as_mut_bytes()));
        if !matches!(read, Some(Ok(()))) {
            return;
        }
        let (port, value) = (message.port.get() as usize, message.value.get() != 0);
        let mut state = lock(&self.state);
        if !state.multiport {
            return debug!("ignored a control message from a console's driver without MULTIPORT");
        }
        match (ControlEvent::try_from(message.event.get()), state.ports.get_mut(port)) {
            (Ok(ControlEvent::DeviceReady), _) => {
                state.ports.iter_mut().for_each(|port| port.to_be_added = value);
            }
            (Ok(ControlEvent::PortReady), Some(state)) => {
                *state = PortState { ready: value, to_be_named: value, ..PortState::default() };
                self.ports[port].host.set_guest_open(false);
            }
            (Ok(ControlEvent::PortOpen), Some(state)) if value => {
                (state.guest_open, state.closing) = (true, false);
                self.ports[port].host.set_guest_open(true);
            }
            (Ok(ControlEvent::PortOpen), Some(state)) => {
                (state.guest_open, state.closing) = (false, true);
            }
            _ => debug!("ignored invalid control message from a console's driver: {message:?}"),
        }
        // There may be an answer to send on another queue, and the guest may accept input now.
        self.doorbell.signal();
    }

    fn input(&self, port: usize, chain: &Chain<'_>) -> u32 {
        let Some(mut writer) = chain.writer() else {
            return 0;
        };
        let mut piece = vec![0; PIECE.min(usize::try_from(writer.available()).unwrap_or(PIECE))];
        let length = self.ports[port].host.take_input(&mut piece);
        // As above.
        let _ = writer.write_all(&piece[..length]);
        writer.written()
    }

    fn output(&self, port: usize, chain: &Chain<'_>) {
        let Some(reader) = chain.reader() else {
            return;
        };
        let mut reader = reader.take(MAX_OUTPUT_A_CHAIN as u64);
        let mut piece = vec![0; PIECE];
        // A buffer that may not be read ends the output, as the end of the chain does.
        while let Ok(length @ 1..) = reader.read(&mut piece) {
            self.ports[port].host.put_output(&piece[..length]);
        }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        Features::MULTIPORT.bits()
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &Self::QUEUE_MAX_SIZES[..2 * (self.ports.len() + 1)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let max_ports = U32::new(self.ports.len() as u32);
        let config = Config { columns: U16::ZERO, rows: U16::ZERO, max_ports };
        read_config_bytes(config.as_bytes(), offset, data);
    }

    fn accept_features(&self, features: u64) -> bool {
        let multiport = Features::from_bits_truncate(features).contains(Features::MULTIPORT);
        lock(&self.state).multiport = multiport;
        if !multiport {
            self.ports[0].host.set_guest_open(true);
        }
        true
    }

    fn wants_chain(&self, queue: u16) -> bool {
        match queue.into() {
            QueueRole::Input(port) => {
                let open = lock(&self.state).guest_has_open(port);
                open && self.ports[port].host.input() == Input::Bytes
            }
            QueueRole::Output(port) => self.ports[port].host.has_room(),
            QueueRole::ControlInput => self.next_message().is_some(),
            QueueRole::ControlOutput => true,
        }
    }

    fn process_chain(&self, queue: u16, chain: &Chain<'_>) -> u32 {
        match queue.into() {
            QueueRole::Input(port) => return self.input(port, chain),
            QueueRole::Output(port) => self.output(port, chain),
            QueueRole::ControlInput => return self.send_control_message(chain),
            QueueRole::ControlOutput => self.handle_control_message(chain),
        }
        0
    }

    fn ran_empty(&self, queue: u16) {
        if let QueueRole::Output(port) = queue.into() {
            let mut state = lock(&self.state);
            if std::mem::take(&mut state.ports[port].closing) {
                self.ports[port].host.set_guest_open(false);
            }
        }
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = ConsoleState::new(self.ports.len());
        self.ports.iter().for_each(|port| port.host.set_guest_open(false));
    }
}
