//! The guest's memory: its layout, and the part of it that a test controls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::dma::Reachability;

/// Size of the RAM at address 0. There is no memory behind it.
pub const RAM_SIZE: u64 = 64 << 20;
/// Where tests put indirect tables.
pub const TABLES: u64 = 2 << 20;
/// Where tests put buffers.
pub const BUFFERS: u64 = 4 << 20;
/// First address of the stage.
pub const STAGE: u64 = 0x1000_0000;
/// Size of the stage.
pub const STAGE_SIZE: u64 = 1 << 20;

/// Host memory for guest addresses.
pub fn map(start: u64, size: u64) -> Arc<GuestRegionMmap> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(start), size as usize, None).unwrap())
}

/// Memory that a test can remove, or for which it runs code just before a device accesses it.
pub struct Stage {
    present: AtomicBool,
    before_access: Mutex<Box<dyn FnMut() + Send>>,
}

impl Stage {
    /// Memory that is present, without an action before accesses.
    pub fn new() -> Arc<Self> {
        let before_access = Mutex::new(Box::new(|| {}) as _);
        Arc::new(Self { present: AtomicBool::new(true), before_access })
    }

    /// Makes the memory appear or vanish.
    pub fn set_present(&self, present: bool) {
        self.present.store(present, Ordering::Relaxed);
    }

    /// Has `action` run each time just before a device accesses the memory.
    pub fn before_access(&self, action: impl FnMut() + Send + 'static) {
        *self.before_access.lock().unwrap() = Box::new(action);
    }
}

impl Reachability for Stage {
    fn permits(&self, _offset: u64, _len: usize) -> bool {
        (self.before_access.lock().unwrap())();
        self.present.load(Ordering::Relaxed)
    }
}
