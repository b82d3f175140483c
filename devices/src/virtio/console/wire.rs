//! What a console's driver and the device exchange (virtio 1.3, section 5.3).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// Feature bits of a console.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u64 {
        /// VIRTIO_CONSOLE_F_MULTIPORT: there are several ports, and queues to control them.
        const MULTIPORT = 1 << 1;
    }
}

/// The configuration space, `virtio_console_config`.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct Config {
    /// Width of a terminal in characters: nothing without VIRTIO_CONSOLE_F_SIZE.
    pub columns: U16,
    /// Its height.
    pub rows: U16,
    /// The largest number of ports.
    pub max_ports: U32,
}

/// A control message, `virtio_console_control`. A name follows PORT_NAME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControlMessage {
    /// The port's number.
    pub port: U32,
    /// A [`ControlEvent`].
    pub event: U16,
    /// A value, which depends on the event.
    pub value: U16,
}

impl ControlMessage {
    /// A message about a port.
    pub fn new(port: usize, event: ControlEvent, value: bool) -> Self {
        Self {
            port: U32::new(port as u32),
            event: U16::new(event as u16),
            value: U16::new(value.into()),
        }
    }
}

/// Events of control messages (virtio 1.3, section 5.3.6.2), as far as either side uses them here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ControlEvent {
    /// The driver is ready for control messages, or is not.
    DeviceReady = 0,
    /// The port exists.
    DeviceAdd = 1,
    /// The driver has accepted the port, or has not.
    PortReady = 3,
    /// One side has opened or closed its end.
    PortOpen = 6,
    /// The port's name.
    PortName = 7,
}

impl TryFrom<u16> for ControlEvent {
    type Error = u16;

    fn try_from(event: u16) -> Result<Self, u16> {
        let known =
            [Self::DeviceReady, Self::DeviceAdd, Self::PortReady, Self::PortOpen, Self::PortName];
        known.into_iter().find(|known| *known as u16 == event).ok_or(event)
    }
}
