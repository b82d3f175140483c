//! Devices that were told to access unplugged blocks, and were refused.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use devices::dma::DmaOrigin;
use serde::{Deserialize, Serialize};

use super::violations::now_ms;
use crate::endpoint;

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
}

/// A chain of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The queue's number.
    pub queue: u16,
    /// The first descriptor's index.
    pub descriptor: u16,
}

/// The latest accesses that were refused, by device.
#[derive(Default)]
pub struct Refusals(Mutex<VecDeque<RefusedDevice>>);

impl Refusals {
    /// As many devices are kept, the latest ones.
    const KEPT: usize = 64;

    /// Keeps an access to `block`.
    pub fn keep(&self, origin: DmaOrigin, address: u64, size: u64, block: u64) {
        let DmaOrigin { requester, chain } = origin;
        let chain = chain.map(|chain| Chain { queue: chain.queue, descriptor: chain.head });
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        devices.push_back(RefusedDevice {
            requester,
            device,
            count,
            first_time_ms,
            time_ms,
            chain,
            address,
            size,
            block,
        });
    }

    /// The devices, latest last.
    pub fn devices(&self) -> Vec<RefusedDevice> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
