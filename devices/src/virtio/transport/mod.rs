//! How a driver reaches a device: the state common to all transports, virtio-mmio and virtio-pci.

mod mmio;
#[cfg(test)]
mod mmio_test;
mod pci;
#[cfg(test)]
mod pci_test;
#[cfg(test)]
mod transport_test;

use std::sync::{Arc, Mutex};

use log::debug;

pub use mmio::MmioTransport;
pub use pci::PciTransport;

use super::queue::{Progress, QueueCorrupt, Ring, Virtqueue};
use super::{DeviceStatus, Features, VirtioDevice};
use crate::dma::DmaView;
use crate::lock;

/// A device's transport, as the machine's worker sees it.
pub trait Transport: Send + Sync {
    /// Processes every queue once. True if a queue may hold more: call again after other work. One
    /// thread may do this at a time.
    ///
    /// That may take as long as the host does; accesses to the registers do not wait for it.
    fn process_queues(&self) -> bool;

    /// Calls `change` to change the device's configuration, and notifies the driver if it returns true.
    /// The driver cannot read meanwhile, so it never reads new values under the old generation.
    fn change_config(&self, change: &mut dyn FnMut() -> bool);
}

/// The registers of a transport.
trait TransportRegisters: Send {
    fn common(&mut self) -> &mut CommonConfig;

    /// Interrupts the driver.
    fn notify(&mut self, notification: &Notification);
}

impl<R: TransportRegisters> Transport for Mutex<R> {
    fn process_queues(&self) -> bool {
        let Some(mut work) = lock(self).common().begin_work() else {
            return false;
        };
        work.process();
        let mut registers = lock(self);
        let (notification, more) = registers.common().end_work(work);
        registers.notify(&notification);
        more
    }

    fn change_config(&self, change: &mut dyn FnMut() -> bool) {
        let mut registers = lock(self);
        if change() {
            let notification = registers.common().config_changed();
            registers.notify(&notification);
        }
    }
}

/// The registers that are common to all transports (the fields of virtio 1.3, section
/// 4.1.4.3, `virtio_pci_common_cfg`, which virtio-mmio has too).
struct CommonConfig {
    device: Arc<dyn VirtioDevice>,
    memory: DmaView,
    status: DeviceStatus,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<Virtqueue>,
    config_generation: u32,
    /// Whether the driver has read the device's configuration since the generation changed.
    config_read: bool,
}

/// The events of which the transport has to notify the driver.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notification {
    /// The queues in which buffers were used, and for which the driver wants an interrupt.
    used_queues: Vec<u16>,
    config_change: bool,
}

/// The rings of a device, while they are processed.
struct Work {
    device: Arc<dyn VirtioDevice>,
    rings: Vec<RingWork>,
}

struct RingWork {
    queue: u16,
    ring: Ring,
    outcome: Result<Progress, QueueCorrupt>,
}

impl Work {
    /// Once for each ring. A corrupt one is the last.
    fn process(&mut self) {
        for RingWork { queue, ring, outcome } in &mut self.rings {
            *outcome = ring.process(*queue, &*self.device);
            if outcome.is_err() {
                break;
            }
        }
    }
}

impl CommonConfig {
    fn new(device: Arc<dyn VirtioDevice>, memory: DmaView) -> Self {
        let queues = device.queue_max_sizes().iter().map(|&size| Virtqueue::new(size)).collect();
        Self {
            device,
            memory,
            status: DeviceStatus::empty(),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            config_generation: 0,
            config_read: false,
        }
    }

    fn offered_features(&self) -> u64 {
        let common = Features::INDIRECT_DESC | Features::EVENT_IDX | Features::RING_RESET;
        common.bits() | self.required_features().bits() | self.device.features()
    }

    /// The features that a driver must accept. Without ACCESS_PLATFORM it would give the device
    /// addresses that the IOMMU has no mappings for (section 6.1).
    fn required_features(&self) -> Features {
        let translated = self.memory.is_translated();
        Features::VERSION_1 | if translated { Features::ACCESS_PLATFORM } else { Features::empty() }
    }

    /// The 32 offered feature bits that the driver selected.
    fn device_features(&self) -> u32 {
        half(self.offered_features(), self.device_feature_select)
    }

    /// The 32 feature bits, of those that the driver accepted, that it selected.
    fn selected_driver_features(&self) -> u32 {
        half(self.driver_features, self.driver_feature_select)
    }

    /// The driver accepts 32 feature bits. Too late once FEATURES_OK is set (section 2.2).
    fn set_driver_features(&mut self, bits: u32) {
        if self.status.contains(DeviceStatus::FEATURES_OK) {
            return;
        }
        match self.driver_feature_select {
            0 => set_low(&mut self.driver_features, bits),
            1 => set_high(&mut self.driver_features, bits),
            _ => {}
        }
    }

    fn negotiated(&self, feature: Features) -> bool {
        self.status.contains(DeviceStatus::FEATURES_OK)
            && self.driver_features & feature.bits() != 0
    }

    /// The driver writes the status field: 0 resets, anything else only adds bits.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let wanted = DeviceStatus::from_bits_truncate(value as u8);
        let mut added = wanted - self.status - DeviceStatus::DEVICE_NEEDS_RESET;
        if added.contains(DeviceStatus::FEATURES_OK) && !self.features_acceptable() {
            added -= DeviceStatus::FEATURES_OK;
        }
        self.status |= added;
    }

    fn features_acceptable(&self) -> bool {
        let features = self.driver_features;
        features & !self.offered_features() == 0
            && Features::from_bits_retain(features).contains(self.required_features())
            && self.device.accept_features(features)
    }

    fn reset(&mut self) {
        self.status = DeviceStatus::empty();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(Virtqueue::reset);
        self.device.reset();
    }

    fn selected_queue(&mut self) -> Option<&mut Virtqueue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The driver makes the selected queue ready or not ready.
    fn set_queue_ready(&mut self, ready: bool) -> Notification {
        let event_idx = self.negotiated(Features::EVENT_IDX);
        let memory = self.memory.clone();
        let negotiated = self.status.contains(DeviceStatus::FEATURES_OK);
        let Some(queue) = self.selected_queue() else {
            return Notification::default();
        };
        if !ready {
            queue.reset();
        } else if negotiated
            && !queue.is_ready()
            && let Err(error) = queue.enable(&memory, event_idx)
        {
            return self.needs_reset(&error);
        }
        Notification::default()
    }

    /// The driver resets the selected queue (section 2.6.1). True if there is one, and RING_RESET was
    /// negotiated.
    fn reset_queue(&mut self) -> bool {
        let negotiated = self.negotiated(Features::RING_RESET);
        let queue = self.selected_queue().filter(|_| negotiated);
        queue.map(Virtqueue::reset).is_some()
    }

    /// Takes the rings, to process them without a lock on the registers.
    fn begin_work(&mut self) -> Option<Work> {
        let working = self.status.contains(DeviceStatus::DRIVER_OK)
            && !self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET);
        let take_ring = |(queue, virtqueue): (u16, &mut Virtqueue)| {
            let ring = virtqueue.take_ring()?;
            Some(RingWork { queue, ring, outcome: Ok(Progress::default()) })
        };
        working.then(|| Work {
            device: Arc::clone(&self.device),
            rings: (0..).zip(&mut self.queues).filter_map(take_ring).collect(),
        })
    }

    /// Puts the rings back. The driver is not notified of those that have been reset meanwhile. The
    /// flag is whether a queue may hold more.
    fn end_work(&mut self, work: Work) -> (Notification, bool) {
        let mut notification = Notification::default();
        let mut more = false;
        let mut corrupt = None;
        for RingWork { queue, ring, outcome } in work.rings {
            if !self.queues[usize::from(queue)].put_back(ring) {
                continue;
            }
            match outcome {
                Ok(Progress { interrupt, more: queue_more }) => {
                    notification.used_queues.extend(interrupt.then_some(queue));
                    more |= queue_more;
                }
                Err(error) => corrupt = Some(error),
            }
        }
        if let Some(error) = corrupt {
            notification.config_change = self.needs_reset(&error).config_change;
            more = false;
        }
        (notification, more)
    }

    /// The device cannot go on until the driver resets it (section 2.1.2).
    fn needs_reset(&mut self, error: &dyn std::error::Error) -> Notification {
        debug!("{:?} device needs a reset: {error}", self.device.device_type());
        self.status |= DeviceStatus::DEVICE_NEEDS_RESET;
        self.config_changed()
    }

    /// The driver reads the device's configuration.
    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.config_read = true;
        self.device.read_config(offset, data);
    }

    /// The driver writes to the device's configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// If the driver has read nothing since the last change, the generation stays as it is: some
    /// transports show only a few of its bits, and it must not wrap around to an old value between two
    /// reads (section 4.1.4.3.1).
    fn config_changed(&mut self) -> Notification {
        if std::mem::take(&mut self.config_read) {
            self.config_generation = self.config_generation.wrapping_add(1);
        }
        let config_change = self.status.contains(DeviceStatus::DRIVER_OK);
        Notification { used_queues: Vec::new(), config_change }
    }
}

/// The low or high half of `bits`, by the value of a feature select register; other halves are empty.
fn half(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = *register & 0xffff_ffff | u64::from(value) << 32;
}
