//! Devices whose DMA to unplugged blocks was refused.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use devices::dma::DmaOrigin;
use serde::{Deserialize, Serialize};

use super::{ThrottledWarnings, ViolationPolicy, now_ms};

/// A device whose DMA was refused one or more times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDevice {
    /// The device's name.
    pub device: String,
    /// The requester ID of its access: on PCI, its bus, device and function at that moment.
    pub requester: u32,
    /// How many times.
    pub count: u64,
    /// When the first time was, by the host's clock: milliseconds since the Unix epoch.
    pub first_time_ms: u64,
    /// When the last time was.
    pub time_ms: u64,
    /// The descriptor chain that the latest access was for. None if it was to a ring, or the device has no
    /// queues.
    pub chain: Option<Chain>,
    /// Guest address of the latest access.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The block that it starts in.
    pub block: u64,
    /// The virtio-mem device that has the block.
    pub memory_device: String,
}

impl fmt::Display for RefusedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, size, address, block, memory_device, .. } = self;
        write!(f, "{device}: DMA of {size} bytes at {address:#x}")?;
        if let Some(Chain { queue, descriptor }) = self.chain {
            write!(f, " for queue {queue}, descriptor {descriptor}")?;
        }
        write!(f, ", unplugged block {block} of {memory_device}")
    }
}

/// A descriptor chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The queue's number.
    pub queue: u16,
    /// The first descriptor's index.
    pub descriptor: u16,
}

/// The latest refused accesses to blocks of a virtio-mem device, and the policy for them.
#[derive(Default)]
pub struct Refusals {
    memory_device: String,
    policy: ViolationPolicy,
    stop: Option<StopForRefusal>,
    inner: Mutex<Inner>,
}

/// Stops the machine because of a refused device.
pub type StopForRefusal = Box<dyn Fn(&RefusedDevice) + Send + Sync>;

#[derive(Default)]
struct Inner {
    /// In the order of their latest accesses, oldest first.
    devices: VecDeque<RefusedDevice>,
    warnings: ThrottledWarnings,
}

impl Refusals {
    /// How many devices are kept: the latest ones.
    const KEPT: usize = 64;

    /// No refusals so far, for `memory_device`. `stop` is called if the policy is to stop.
    pub fn new(memory_device: String, policy: ViolationPolicy, stop: StopForRefusal) -> Self {
        Self { memory_device, policy, stop: Some(stop), inner: Mutex::default() }
    }

    /// Records a refused access to `block` as the policy demands.
    pub fn record(&self, origin: DmaOrigin<'_>, address: u64, size: u64, block: u64) {
        if self.policy == ViolationPolicy::Ignore {
            return;
        }
        let DmaOrigin { device, requester, chain } = origin;
        let chain = chain.map(|chain| Chain { queue: chain.queue, descriptor: chain.head });
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { devices, warnings } = &mut *inner;
        let time_ms = now_ms();
        let known = devices.iter().position(|known| known.device == device);
        let before = known.and_then(|index| devices.remove(index));
        let (count, first_time_ms) =
            before.map_or((0, time_ms), |before| (before.count, before.first_time_ms));
        if devices.len() == Self::KEPT {
            devices.pop_front();
        }
        let count = count + 1;
        let refused = RefusedDevice {
            device: device.to_owned(),
            requester,
            count,
            first_time_ms,
            time_ms,
            chain,
            address,
            size,
            block,
            memory_device: self.memory_device.clone(),
        };
        warnings.warn(&refused);
        if let (ViolationPolicy::Stop, Some(stop)) = (self.policy, &self.stop) {
            stop(&refused);
        }
        devices.push_back(refused);
    }

    /// The devices, latest last.
    pub fn devices(&self) -> Vec<RefusedDevice> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.devices.iter().cloned().collect()
    }
}
