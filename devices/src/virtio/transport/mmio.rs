//! virtio over MMIO, version 2 (virtio 1.3, section 4.2).

use std::sync::Arc;

use super::{CommonConfig, Notification, TransportRegisters, set_high, set_low};
use crate::Signal;
use crate::bus::BusDevice;
use crate::dma::DmaView;
use crate::virtio::VirtioDevice;

/// Register offsets (section 4.2.2, table 4.1).
mod register {
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
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const QUEUE_RESET: u64 = 0x0c0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"moat");

const INTERRUPT_USED_BUFFER: u32 = 1 << 0;
const INTERRUPT_CONFIG_CHANGE: u32 = 1 << 1;

/// The registers of one device.
pub struct MmioTransport {
    common: CommonConfig,
    interrupt_status: u32,
    interrupt: Arc<dyn Signal>,
    doorbell: Arc<dyn Signal>,
}

impl MmioTransport {
    /// Bytes of address space the registers and the device's configuration take.
    pub const SIZE: u64 = 0x1000;
    /// Offset of the register that a driver writes to when it made buffers available.
    pub const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;

    /// A transport for `device`, which reaches guest memory through `memory`.
    ///
    /// `doorbell` is signalled when the driver notifies a queue. The machine then calls
    /// [`Transport::process_queues`](super::Transport::process_queues) from a thread that does not run
    /// a vCPU.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: DmaView,
        interrupt: Arc<dyn Signal>,
        doorbell: Arc<dyn Signal>,
    ) -> Self {
        let common = CommonConfig::new(device, memory);
        Self { common, interrupt_status: 0, interrupt, doorbell }
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        let common = &mut self.common;
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => common.device.device_type() as u32,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => common.device_features(),
            register::QUEUE_SIZE_MAX => {
                common.selected_queue().map_or(0, |queue| queue.max_size().into())
            }
            register::QUEUE_READY => {
                common.selected_queue().is_some_and(|queue| queue.is_ready()).into()
            }
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => common.status.bits().into(),
            // There are no shared memory regions: their lengths and bases read as -1.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => common.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let common = &mut self.common;
        match offset {
            register::DEVICE_FEATURES_SEL => common.device_feature_select = value,
            register::DRIVER_FEATURES => common.set_driver_features(value),
            register::DRIVER_FEATURES_SEL => common.driver_feature_select = value,
            // A selector beyond 16 bits selects no queue, as any other that does not exist.
            register::QUEUE_SEL => {
                common.queue_select = u16::try_from(value).unwrap_or(u16::MAX);
            }
            register::QUEUE_READY => {
                let notification = common.set_queue_ready(value & 1 != 0);
                self.notify(&notification);
            }
            // A reset completes at once, so the register always reads as 0.
            register::QUEUE_RESET => {
                if value == 1 {
                    common.reset_queue();
                }
            }
            register::QUEUE_NOTIFY => self.doorbell.signal(),
            register::INTERRUPT_ACK => self.interrupt_status &= !value,
            register::STATUS => {
                common.set_status(value);
                if common.status.is_empty() {
                    self.interrupt_status = 0;
                }
            }
            _ => self.write_queue_register(offset, value),
        }
    }

    /// The registers of the selected queue, which take effect when it is made ready.
    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.common.selected_queue() else {
            return;
        };
        let registers = &mut queue.registers;
        match offset {
            // A size beyond 16 bits is stored as 0, which is invalid too: it is refused when the queue
            // is made ready.
            register::QUEUE_SIZE => registers.size = u16::try_from(value).unwrap_or(0),
            register::QUEUE_DESC_LOW => set_low(&mut registers.descriptor_area, value),
            register::QUEUE_DESC_HIGH => set_high(&mut registers.descriptor_area, value),
            register::QUEUE_DRIVER_LOW => set_low(&mut registers.driver_area, value),
            register::QUEUE_DRIVER_HIGH => set_high(&mut registers.driver_area, value),
            register::QUEUE_DEVICE_LOW => set_low(&mut registers.device_area, value),
            register::QUEUE_DEVICE_HIGH => set_high(&mut registers.device_area, value),
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.common.read_config(offset, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            // Registers are 32 bits wide and aligned (section 4.2.2.2): other accesses have no effect.
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.common.write_config(offset, data);
        } else if offset.is_multiple_of(4)
            && let Ok(bytes) = data.try_into()
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl TransportRegisters for MmioTransport {
    fn common(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn notify(&mut self, notification: &Notification) {
        let used_buffer = !notification.used_queues.is_empty();
        if used_buffer {
            self.interrupt_status |= INTERRUPT_USED_BUFFER;
        }
        if notification.config_change {
            self.interrupt_status |= INTERRUPT_CONFIG_CHANGE;
        }
        if used_buffer || notification.config_change {
            self.interrupt.signal();
        }
    }
}
