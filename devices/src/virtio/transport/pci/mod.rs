//! virtio over PCI, without the legacy interface (virtio 1.3, section 4.1).

mod capability;
mod interrupts;

use std::sync::{Arc, Mutex};

use capability::{ConfigAccess, Structure};
use interrupts::Interrupts;

use super::{CommonConfig, Notification, TransportRegisters, set_high, set_low};
use crate::Signal;
use crate::dma::DmaPath;
use crate::pci::{
    BarIndex, BarKind, ClassCode, Doorbell, Function, FunctionBuilder, FunctionError, Identity,
    InterruptPin, MessageSink, MsixLayout, PciDevice, ResetKind,
};
use crate::virtio::{DeviceType, VirtioDevice};

/// A field of the common configuration structure: its offset and its width. Any other access has no
/// effect (section 4.1.3.1).
type Field = (u64, usize);

/// `struct virtio_pci_common_cfg` (section 4.1.4.3), as far as its fields exist with the features
/// on offer. 64-bit fields are two of 32 bits.
mod field {
    use super::Field;

    pub const DEVICE_FEATURE_SELECT: Field = (0x00, 4);
    pub const DEVICE_FEATURE: Field = (0x04, 4);
    pub const DRIVER_FEATURE_SELECT: Field = (0x08, 4);
    pub const DRIVER_FEATURE: Field = (0x0c, 4);
    pub const CONFIG_MSIX_VECTOR: Field = (0x10, 2);
    pub const NUM_QUEUES: Field = (0x12, 2);
    pub const DEVICE_STATUS: Field = (0x14, 1);
    pub const CONFIG_GENERATION: Field = (0x15, 1);
    pub const QUEUE_SELECT: Field = (0x16, 2);
    pub const QUEUE_SIZE: Field = (0x18, 2);
    pub const QUEUE_MSIX_VECTOR: Field = (0x1a, 2);
    pub const QUEUE_ENABLE: Field = (0x1c, 2);
    pub const QUEUE_NOTIFY_OFF: Field = (0x1e, 2);
    pub const QUEUE_DESC_LOW: Field = (0x20, 4);
    pub const QUEUE_DESC_HIGH: Field = (0x24, 4);
    pub const QUEUE_DRIVER_LOW: Field = (0x28, 4);
    pub const QUEUE_DRIVER_HIGH: Field = (0x2c, 4);
    pub const QUEUE_DEVICE_LOW: Field = (0x30, 4);
    pub const QUEUE_DEVICE_HIGH: Field = (0x34, 4);
    pub const QUEUE_RESET: Field = (0x3a, 2);
}

const VENDOR: u16 = 0x1af4;
/// Device IDs are the device type and this.
const FIRST_DEVICE: u16 = 0x1040;
/// The revision ID, by which legacy drivers do not bind to the device.
const REVISION: u8 = 1;

/// The BAR of the MSI-X table and, behind the room for the largest table, the Pending Bit Array.
const MSIX_BAR: BarIndex = BarIndex::Bar2;
const MSIX_BAR_SIZE: u64 = 0x1_0000;
const MSIX_PENDING: u32 = 0x8000;

/// The registers of one device.
pub struct PciTransport {
    common: CommonConfig,
    interrupts: Interrupts,
    doorbell: Arc<dyn Signal>,
    pci_cfg_data: [u8; 4],
}

impl PciTransport {
    /// A transport for `device`, which reaches guest memory through `memory`, and the function to
    /// put into the machine's topology. Its message-signalled interrupts go to `messages`.
    ///
    /// `doorbell` is signalled when the driver notifies a queue, unless the machine does that by
    /// itself, and when the function becomes a bus master. The machine then calls
    /// [`Transport::process_queues`](super::Transport::process_queues) from a thread that does not run
    /// a vCPU.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: &DmaPath,
        messages: Arc<dyn MessageSink>,
        doorbell: Arc<dyn Doorbell>,
    ) -> Result<(Arc<Mutex<Self>>, Function), FunctionError> {
        let device_type = device.device_type();
        let mut builder = FunctionBuilder::new(identity(device_type));
        let function = builder.state();
        let common = CommonConfig::new(device, memory.view(builder.state()));
        // Not prefetchable: a read of the ISR status clears it.
        builder.bar(Structure::BAR, BarKind::Memory32, Structure::BAR_SIZE)?;
        builder.doorbell(Structure::BAR, Structure::Notify.offset(), Arc::clone(&doorbell))?;
        builder.bar(MSIX_BAR, BarKind::Memory32, MSIX_BAR_SIZE)?;
        for capability in capability::capabilities() {
            builder.vendor_capability(&capability)?;
        }
        let queues = common.queues.len();
        let layout = MsixLayout {
            bar: MSIX_BAR,
            // One for each queue, and one for the configuration. Too many are an error.
            vectors: u16::try_from(queues + 1).unwrap_or(u16::MAX),
            table: 0,
            pending: MSIX_PENDING,
        };
        let msix = builder.msix(layout, messages)?;
        let intx = builder.intx(InterruptPin::A);
        function.signal_bus_master(Arc::clone(&doorbell) as _);
        let transport = Arc::new(Mutex::new(Self {
            common,
            interrupts: Interrupts::new(queues, msix, intx),
            doorbell,
            pci_cfg_data: [0; 4],
        }));
        let function = builder.build(Arc::clone(&transport) as _);
        Ok((transport, function))
    }

    fn read_common_config(&mut self, field: Field) -> u32 {
        let common = &mut self.common;
        match field {
            field::DEVICE_FEATURE_SELECT => common.device_feature_select,
            field::DEVICE_FEATURE => common.device_features(),
            field::DRIVER_FEATURE_SELECT => common.driver_feature_select,
            field::DRIVER_FEATURE => common.selected_driver_features(),
            field::CONFIG_MSIX_VECTOR => self.interrupts.config_vector().into(),
            field::NUM_QUEUES => common.queues.len() as u32,
            field::DEVICE_STATUS => common.status.bits().into(),
            // Truncated to the width of the field.
            field::CONFIG_GENERATION => common.config_generation,
            field::QUEUE_SELECT => common.queue_select.into(),
            field::QUEUE_MSIX_VECTOR => self.interrupts.queue_vector(common.queue_select).into(),
            // A reset is over at once.
            field::QUEUE_RESET => 0,
            _ => self.read_queue_field(field),
        }
    }

    /// The fields of the selected queue. They are zeros if there is none.
    fn read_queue_field(&mut self, field: Field) -> u32 {
        let Some(queue) = self.common.selected_queue() else {
            return 0;
        };
        let registers = &queue.registers;
        match field {
            // This must read as a power of two, or 0 (section 4.1.4.3.1).
            field::QUEUE_SIZE if registers.size.is_power_of_two() => registers.size.into(),
            field::QUEUE_ENABLE => queue.is_ready().into(),
            // All queues are notified at the same address.
            field::QUEUE_NOTIFY_OFF => 0,
            field::QUEUE_DESC_LOW => registers.descriptor_area as u32,
            field::QUEUE_DESC_HIGH => (registers.descriptor_area >> 32) as u32,
            field::QUEUE_DRIVER_LOW => registers.driver_area as u32,
            field::QUEUE_DRIVER_HIGH => (registers.driver_area >> 32) as u32,
            field::QUEUE_DEVICE_LOW => registers.device_area as u32,
            field::QUEUE_DEVICE_HIGH => (registers.device_area >> 32) as u32,
            _ => 0,
        }
    }

    /// `value` is as wide as `field`.
    fn write_common_config(&mut self, field: Field, value: u32) {
        let common = &mut self.common;
        match field {
            field::DEVICE_FEATURE_SELECT => common.device_feature_select = value,
            field::DRIVER_FEATURE_SELECT => common.driver_feature_select = value,
            field::DRIVER_FEATURE => common.set_driver_features(value),
            field::CONFIG_MSIX_VECTOR => self.interrupts.set_config_vector(value as u16),
            field::DEVICE_STATUS => {
                common.set_status(value);
                if common.status.is_empty() {
                    self.interrupts.reset();
                }
            }
            field::QUEUE_SELECT => common.queue_select = value as u16,
            field::QUEUE_MSIX_VECTOR => {
                self.interrupts.set_queue_vector(common.queue_select, value as u16);
            }
            // Only a reset disables a queue.
            field::QUEUE_ENABLE if value == 1 => {
                let notification = common.set_queue_ready(true);
                self.interrupts.notify(&notification);
            }
            field::QUEUE_RESET if value == 1 => {
                if common.reset_queue() {
                    self.interrupts.reset_queue(common.queue_select);
                }
            }
            _ => self.write_queue_field(field, value),
        }
    }

    /// The fields of the selected queue, which take effect when it is enabled.
    fn write_queue_field(&mut self, field: Field, value: u32) {
        let Some(queue) = self.common.selected_queue() else {
            return;
        };
        let registers = &mut queue.registers;
        match field {
            field::QUEUE_SIZE => registers.size = value as u16,
            field::QUEUE_DESC_LOW => set_low(&mut registers.descriptor_area, value),
            field::QUEUE_DESC_HIGH => set_high(&mut registers.descriptor_area, value),
            field::QUEUE_DRIVER_LOW => set_low(&mut registers.driver_area, value),
            field::QUEUE_DRIVER_HIGH => set_high(&mut registers.driver_area, value),
            field::QUEUE_DEVICE_LOW => set_low(&mut registers.device_area, value),
            field::QUEUE_DEVICE_HIGH => set_high(&mut registers.device_area, value),
            _ => {}
        }
    }

    /// Reads from the structures into `data`, which holds zeros.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match Structure::at(offset) {
            Some((Structure::CommonConfig, offset)) => {
                let value = self.read_common_config((offset, data.len())).to_le_bytes();
                data.iter_mut().zip(value).for_each(|(data, byte)| *data = byte);
            }
            Some((Structure::IsrStatus, 0)) => {
                if let Some(isr_status) = data.first_mut() {
                    *isr_status = self.interrupts.take_isr_status();
                }
            }
            Some((Structure::DeviceConfig, offset)) => self.common.read_config(offset, data),
            Some((Structure::IsrStatus | Structure::Notify, _)) | None => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match Structure::at(offset) {
            Some((Structure::CommonConfig, offset)) => {
                let mut value = [0; 4];
                value.iter_mut().zip(data).for_each(|(value, byte)| *value = *byte);
                self.write_common_config((offset, data.len()), u32::from_le_bytes(value));
            }
            Some((Structure::Notify, _)) => self.doorbell.signal(),
            Some((Structure::DeviceConfig, offset)) => self.common.write_config(offset, data),
            Some((Structure::IsrStatus, _)) | None => {}
        }
    }
}

impl PciDevice for PciTransport {
    fn read_bar(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar == Structure::BAR {
            self.read(offset, data);
        }
    }

    fn write_bar(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        if bar == Structure::BAR {
            self.write(offset, data);
        }
    }

    fn reset(&mut self, _kind: ResetKind) {
        self.common.reset();
        self.interrupts.reset();
        self.pci_cfg_data = [0; 4];
    }

    /// `pci_cfg_data`, after the read that the capability describes.
    fn read_capability(&mut self, capability: &[u8], offset: usize, data: &mut [u8]) {
        if let Some(ConfigAccess { offset, length }) = ConfigAccess::parse(capability) {
            let mut pci_cfg_data = [0; 4];
            self.read(offset, &mut pci_cfg_data[..length]);
            self.pci_cfg_data = pci_cfg_data;
        }
        let own = self.pci_cfg_data.iter().skip(offset - ConfigAccess::DATA);
        data.iter_mut().zip(own).for_each(|(data, byte)| *data = *byte);
    }

    /// `pci_cfg_data`, before the write that the capability describes.
    fn write_capability(&mut self, capability: &[u8], offset: usize, data: &[u8]) {
        let own = self.pci_cfg_data.iter_mut().skip(offset - ConfigAccess::DATA);
        own.zip(data).for_each(|(byte, data)| *byte = *data);
        if let Some(ConfigAccess { offset, length }) = ConfigAccess::parse(capability) {
            let pci_cfg_data = self.pci_cfg_data;
            self.write(offset, &pci_cfg_data[..length]);
        }
    }
}

impl TransportRegisters for PciTransport {
    fn common(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn notify(&mut self, notification: &Notification) {
        self.interrupts.notify(notification);
    }
}

fn identity(device_type: DeviceType) -> Identity {
    let device = FIRST_DEVICE + device_type as u16;
    Identity {
        vendor: VENDOR,
        device,
        revision: REVISION,
        class: class_code(device_type),
        subsystem_vendor: VENDOR,
        subsystem: device,
    }
}

/// The class code, which describes the device to a system without a driver for it (PCI Code and ID
/// Assignment, section 1).
fn class_code(device_type: DeviceType) -> ClassCode {
    let (base, sub) = match device_type {
        // Other communication controller.
        DeviceType::Console => (0x07, 0x80),
        // Unclassified.
        DeviceType::Entropy => (0x00, 0xff),
        // An IOMMU.
        DeviceType::Iommu => (0x08, 0x06),
        // Other mass storage controller.
        DeviceType::FileSystem => (0x01, 0x80),
        // RAM.
        DeviceType::Memory => (0x05, 0x00),
    };
    ClassCode { base, sub, interface: 0 }
}
