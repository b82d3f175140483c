//! A device's registers on virtio-mmio (virtio 1.3, section 4.2.2) and on virtio-pci (section 4.1).

use crate::{Bus, Rings};

/// A register by the name of its field in `struct virtio_pci_common_cfg` (section 4.1.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    /// Reads as the largest size; a write sets the size.
    QueueSize,
    QueueEnable,
    QueueDesc,
    QueueDriver,
    QueueDevice,
    QueueReset,
}

impl Register {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::DeviceFeatureSelect,
        Self::DeviceFeature,
        Self::DriverFeatureSelect,
        Self::DriverFeature,
        Self::DeviceStatus,
        Self::ConfigGeneration,
        Self::QueueSelect,
        Self::QueueSize,
        Self::QueueEnable,
        Self::QueueDesc,
        Self::QueueDriver,
        Self::QueueDevice,
        Self::QueueReset,
    ];
}

/// Bits of the device status (section 2.1).
#[allow(missing_docs)]
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// Offsets of virtio-mmio's registers.
#[allow(missing_docs)]
pub mod mmio {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const QUEUE_RESET: u64 = 0x0c0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Where a register is, from some base, and how many bytes it has.
pub type Field = (u64, usize);

/// Fields of `struct virtio_pci_common_cfg` that virtio-mmio has no register for.
#[allow(missing_docs)]
pub mod field {
    use super::Field;

    pub const CONFIG_MSIX_VECTOR: Field = (16, 2);
    pub const NUM_QUEUES: Field = (18, 2);
    pub const QUEUE_MSIX_VECTOR: Field = (26, 2);
    pub const QUEUE_NOTIFY_OFF: Field = (30, 2);
    pub const QUEUE_NOTIFY_DATA: Field = (56, 2);
}

/// The field of `struct virtio_pci_common_cfg` that is a register.
pub fn field_of(register: Register) -> Field {
    fields_of(register).1
}

/// Offset on virtio-mmio, where a register has 4 bytes or two halves of them, and field on virtio-pci.
fn fields_of(register: Register) -> (u64, Field) {
    match register {
        Register::DeviceFeatureSelect => (mmio::DEVICE_FEATURES_SEL, (0, 4)),
        Register::DeviceFeature => (mmio::DEVICE_FEATURES, (4, 4)),
        Register::DriverFeatureSelect => (mmio::DRIVER_FEATURES_SEL, (8, 4)),
        Register::DriverFeature => (mmio::DRIVER_FEATURES, (12, 4)),
        Register::DeviceStatus => (mmio::STATUS, (20, 1)),
        Register::ConfigGeneration => (mmio::CONFIG_GENERATION, (21, 1)),
        Register::QueueSelect => (mmio::QUEUE_SEL, (22, 2)),
        Register::QueueSize => (mmio::QUEUE_SIZE, (24, 2)),
        Register::QueueEnable => (mmio::QUEUE_READY, (28, 2)),
        Register::QueueDesc => (mmio::QUEUE_DESC_LOW, (32, 8)),
        Register::QueueDriver => (mmio::QUEUE_DRIVER_LOW, (40, 8)),
        Register::QueueDevice => (mmio::QUEUE_DEVICE_LOW, (48, 8)),
        Register::QueueReset => (mmio::QUEUE_RESET, (58, 2)),
    }
}

/// `cfg_type` of `struct virtio_pci_cap` (section 4.1.4).
#[allow(missing_docs)]
pub mod cfg_type {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}

/// The location of a structure, from its capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Structure {
    /// What is in it.
    pub cfg_type: u8,
    /// Where its capability is in configuration space.
    pub capability: usize,
    /// The BAR's number,
    pub bar: u8,
    /// offset there,
    pub offset: u32,
    /// and length in bytes.
    pub length: u32,
}

/// IDs and places of a function's capabilities. `config` reads 4 bytes of its configuration space.
pub fn capabilities(mut config: impl FnMut(usize) -> u32) -> Vec<(u8, usize)> {
    const CAPABILITIES_POINTER: usize = 0x34;
    let mut capabilities = vec![];
    let mut at = config(CAPABILITIES_POINTER) as u8;
    while at != 0 {
        let [id, next, ..] = config(at.into()).to_le_bytes();
        capabilities.push((id, at.into()));
        at = next;
    }
    capabilities
}

/// A virtio function's structures.
pub fn structures(mut config: impl FnMut(usize) -> u32) -> Vec<Structure> {
    const VENDOR_SPECIFIC: u8 = 0x09;
    let found = capabilities(&mut config).into_iter().filter(|&(id, _)| id == VENDOR_SPECIFIC);
    found
        .map(|(_, capability)| Structure {
            cfg_type: config(capability).to_le_bytes()[3],
            capability,
            bar: config(capability + 4) as u8,
            offset: config(capability + 8),
            length: config(capability + 12),
        })
        .collect()
}

/// Where the registers of a device are: on virtio-mmio the address of the first, on virtio-pci that of
/// each structure.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Registers {
    Mmio { base: u64 },
    Pci { common: u64, notify: u64, notify_off_multiplier: u32, isr: u64, device: u64 },
}

impl Registers {
    /// The registers of a PCI function. `config` reads 4 bytes of its configuration space, `bar` says
    /// where a BAR is.
    pub fn of_pci(mut config: impl FnMut(usize) -> u32, mut bar: impl FnMut(u8) -> u64) -> Self {
        let structures = structures(&mut config);
        let find = |cfg_type| {
            let mut structures = structures.iter();
            *structures.find(|structure| structure.cfg_type == cfg_type).expect("a structure")
        };
        let mut address = |cfg_type| {
            let Structure { bar: number, offset, .. } = find(cfg_type);
            bar(number) + u64::from(offset)
        };
        Self::Pci {
            common: address(cfg_type::COMMON),
            notify: address(cfg_type::NOTIFY),
            notify_off_multiplier: config(find(cfg_type::NOTIFY).capability + 16),
            isr: address(cfg_type::ISR),
            device: address(cfg_type::DEVICE),
        }
    }

    /// Address and width of a register.
    pub fn locate(&self, register: Register) -> Field {
        let (mmio, (offset, width)) = fields_of(register);
        match *self {
            Self::Mmio { base } => (base + mmio, width.max(4)),
            Self::Pci { common, .. } => (common + offset, width),
        }
    }

    /// Address of the device's own configuration.
    pub fn config(&self) -> u64 {
        match *self {
            Self::Mmio { base } => base + mmio::CONFIG,
            Self::Pci { device, .. } => device,
        }
    }

    /// Reads a register at its width, one of 64 bits in halves.
    pub fn read(&self, bus: &mut impl Bus, register: Register) -> u64 {
        match (*self, register) {
            (Self::Mmio { base }, Register::QueueSize) => {
                read(bus, (base + mmio::QUEUE_SIZE_MAX, 4))
            }
            _ => read(bus, self.locate(register)),
        }
    }

    /// Writes a register at its width, one of 64 bits in halves.
    pub fn write(&self, bus: &mut impl Bus, register: Register, value: u64) {
        write(bus, self.locate(register), value);
    }

    /// Reads a field that only virtio-pci has.
    pub fn read_field(&self, bus: &mut impl Bus, field: Field) -> u64 {
        read(bus, self.locate_field(field))
    }

    /// Writes a field that only virtio-pci has.
    pub fn write_field(&self, bus: &mut impl Bus, field: Field, value: u64) {
        write(bus, self.locate_field(field), value);
    }

    fn locate_field(&self, (offset, width): Field) -> Field {
        let Self::Pci { common, .. } = *self else { panic!("the device is not on PCI") };
        (common + offset, width)
    }

    /// Adds `bits` to the device status.
    pub fn add_status(&self, bus: &mut impl Bus, bits: u8) {
        let status = self.read(bus, Register::DeviceStatus);
        self.write(bus, Register::DeviceStatus, status | u64::from(bits));
    }

    /// Resets the device by its status.
    pub fn reset(&self, bus: &mut impl Bus) {
        self.write(bus, Register::DeviceStatus, 0);
    }

    /// The features that the device offers.
    pub fn offered_features(&self, bus: &mut impl Bus) -> u64 {
        let mut half = |select| {
            self.write(bus, Register::DeviceFeatureSelect, select);
            self.read(bus, Register::DeviceFeature)
        };
        half(0) | half(1) << 32
    }

    /// Accepts `features`, after a reset. True if the device accepts them.
    pub fn accept(&self, bus: &mut impl Bus, features: u64) -> bool {
        self.add_status(bus, status::ACKNOWLEDGE);
        self.add_status(bus, status::DRIVER);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(bus, Register::DriverFeatureSelect, select);
            self.write(bus, Register::DriverFeature, half);
        }
        self.add_status(bus, status::FEATURES_OK);
        self.read(bus, Register::DeviceStatus) & u64::from(status::FEATURES_OK) != 0
    }

    /// Writes the addresses of queue `index` to the device, without making the queue ready.
    pub fn place_queue(&self, bus: &mut impl Bus, index: u16, rings: Rings) {
        self.write(bus, Register::QueueSelect, index.into());
        self.write(bus, Register::QueueSize, rings.size.into());
        self.write(bus, Register::QueueDesc, rings.descriptors);
        self.write(bus, Register::QueueDriver, rings.available);
        self.write(bus, Register::QueueDevice, rings.used);
    }

    /// Address and width of the register by which the device is notified of buffers in `queue`.
    pub fn notify_field(&self, bus: &mut impl Bus, queue: u16) -> Field {
        match *self {
            Self::Mmio { base } => (base + mmio::QUEUE_NOTIFY, 4),
            Self::Pci { notify, notify_off_multiplier, .. } => {
                self.write(bus, Register::QueueSelect, queue.into());
                let off = self.read_field(bus, field::QUEUE_NOTIFY_OFF);
                (notify + off * u64::from(notify_off_multiplier), 2)
            }
        }
    }

    /// Notifies the device of buffers in `queue`.
    pub fn notify(&self, bus: &mut impl Bus, queue: u16) {
        let notify = self.notify_field(bus, queue);
        write(bus, notify, queue.into());
    }

    /// Reads and acknowledges the interrupt status, without MSI-X.
    pub fn take_interrupt_status(&self, bus: &mut impl Bus) -> u32 {
        match *self {
            Self::Mmio { base } => {
                let status = read(bus, (base + mmio::INTERRUPT_STATUS, 4));
                write(bus, (base + mmio::INTERRUPT_ACK, 4), status);
                status as u32
            }
            // Reading it acknowledges it.
            Self::Pci { isr, .. } => read(bus, (isr, 1)) as u32,
        }
    }
}

fn read(bus: &mut impl Bus, (address, width): Field) -> u64 {
    // Bytes that the device leaves unwritten read as 0xa5, which no register holds.
    let mut data = [0xa5; 8];
    for (half, address) in data[..width].chunks_mut(4).zip((address..).step_by(4)) {
        bus.read(address, half);
    }
    data[width..].fill(0);
    u64::from_le_bytes(data)
}

fn write(bus: &mut impl Bus, (address, width): Field, value: u64) {
    for (half, address) in value.to_le_bytes()[..width].chunks(4).zip((address..).step_by(4)) {
        bus.write(address, half);
    }
}
