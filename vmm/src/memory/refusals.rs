//! Devices that were told to access unplugged blocks, and were refused.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use devices::dma::DmaOrigin;
use serde::{Deserialize, Serialize};

use super::violations::{ThrottledWarnings, ViolationPolicy, now_ms};
use crate::endpoint;
use crate::machine::{Ending, EndingCell};

/// A device that was refused, once or again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDevice {
    /// What it carries to say who it is: a PCI requester ID, or what the machine has given it.
    pub requester: u32,
    /// The device: bus, device and function, or where its registers are.
    pub device: String,
    /// How often.
    pub count: u64,
    /// When first, by the host's clock: milliseconds since the Unix epoch.
    pub first_time_ms: u64,
    /// When last.
    pub time_ms: u64,
    /// What the latest access was made for, unless it was for a ring, or the device has none.
    pub chain: Option<Chain>,
    /// Guest address of the latest access.
    pub address: u64,
    /// Bytes of it.
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

/// A chain of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The queue's number.
    pub queue: u16,
    /// The first descriptor's index.
    pub descriptor: u16,
}

/// The latest accesses to blocks of a virtio-mem device that were refused, and what becomes of them.
#[derive(Default)]
pub struct Refusals {
    memory_device: String,
    policy: ViolationPolicy,
    ending: Arc<EndingCell>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The one that has been quiet longest comes first.
    devices: VecDeque<RefusedDevice>,
    warnings: ThrottledWarnings,
}

impl Refusals {
    /// As many devices are kept, the latest ones.
    const KEPT: usize = 64;

    /// None so far, of `memory_device`. `policy` may end the machine by `ending`.
    pub fn new(memory_device: String, policy: ViolationPolicy, ending: Arc<EndingCell>) -> Self {
        Self { memory_device, policy, ending, inner: Mutex::default() }
    }

    /// Does as the policy says with an access to `block`.
    pub fn record(&self, origin: DmaOrigin, address: u64, size: u64, block: u64) {
        if self.policy == ViolationPolicy::Ignore {
            return;
        }
        let DmaOrigin { requester, chain } = origin;
        let chain = chain.map(|chain| Chain { queue: chain.queue, descriptor: chain.head });
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { devices, warnings } = &mut *inner;
        let time_ms = now_ms();
        let known = devices.iter().position(|device| device.requester == requester);
        let before = known.and_then(|index| devices.remove(index));
        let (count, first_time_ms) =
            before.map_or((0, time_ms), |before| (before.count, before.first_time_ms));
        if devices.len() == Self::KEPT {
            devices.pop_front();
        }
        let device = endpoint::name(requester);
        let count = count + 1;
        let refused = RefusedDevice {
            requester,
            device,
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
        if self.policy == ViolationPolicy::Stop {
            self.ending.set(Ending::RefusedDma(Box::new(refused.clone())));
        }
        devices.push_back(refused);
    }

    /// The devices, latest last.
    pub fn devices(&self) -> Vec<RefusedDevice> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.devices.iter().cloned().collect()
    }
}
