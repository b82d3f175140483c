//! A port: a stream of bytes in each direction.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::wire::{ControlEvent, ControlMessage};

/// What there is for the guest to read from a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing now.
    Nothing,
    /// At least one byte.
    Bytes,
    /// Nothing, now and later.
    End,
}

/// The host's end of a port. No method waits.
///
/// When there is new input, or room again after there was none, the host's end has the machine call
/// [`Transport::process_queues`](crate::virtio::transport::Transport::process_queues).
pub trait HostEnd: Send + Sync {
    /// What there is for the guest.
    fn input(&self) -> Input;

    /// Copies input into `data`, and returns the number of bytes.
    fn take_input(&self, data: &mut [u8]) -> usize;

    /// Whether there is room for output. As long as there is none the guest has to wait.
    fn has_room(&self) -> bool;

    /// Takes output, all of it: what one chain holds may be more than there is room for.
    fn put_output(&self, data: &[u8]);

    /// The guest has opened its end; or it has closed it, and all its output has been passed on.
    fn set_guest_open(&self, open: bool);
}

/// A port of a console.
#[derive(Clone)]
pub struct Port {
    /// The name by which the guest finds it: with Linux's usual rules `/dev/virtio-ports/NAME`.
    pub name: String,
    /// The host's end.
    pub host: Arc<dyn HostEnd>,
}

/// The state of a port's control messages between the driver and the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// DEVICE_ADD is still to be sent.
    pub to_be_added: bool,
    /// PORT_NAME is still to be sent.
    pub to_be_named: bool,
    /// The driver has accepted the port (PORT_READY).
    pub ready: bool,
    /// Whether the last PORT_OPEN to the driver reported the host's end as open.
    pub told_open: bool,
    /// The guest's end is open.
    pub guest_open: bool,
    /// The guest has closed its end, and some of its output may be in the queue still.
    pub closing: bool,
}

impl PortState {
    /// The next message to send about a port that the host has open or not, if there is one.
    pub fn message(&self, port: usize, host_open: bool) -> Option<ControlMessage> {
        let message = |event, value| Some(ControlMessage::new(port, event, value));
        match self {
            Self { to_be_added: true, .. } => message(ControlEvent::DeviceAdd, true),
            Self { ready: true, told_open, .. } if *told_open != host_open => {
                message(ControlEvent::PortOpen, host_open)
            }
            // The name comes last, so that a program that finds the port by name finds it connected.
            Self { to_be_named: true, .. } => message(ControlEvent::PortName, true),
            _ => None,
        }
    }

    /// A message has been sent.
    pub fn sent(&mut self, message: &ControlMessage) {
        match ControlEvent::try_from(message.event.get()) {
            Ok(ControlEvent::DeviceAdd) => self.to_be_added = false,
            Ok(ControlEvent::PortName) => self.to_be_named = false,
            Ok(ControlEvent::PortOpen) => self.told_open = message.value.get() != 0,
            Ok(ControlEvent::DeviceReady | ControlEvent::PortReady) | Err(_) => {}
        }
    }
}
