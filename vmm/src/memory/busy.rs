//! A backend that reports BUSY on purpose, to test a driver against a host that is short of memory.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::virtio::mem::{BackendBusy, BlockBackend, BlockRange};

/// Reports BUSY at every Nth request, and carries out all others.
pub struct BusyBackend {
    backend: Box<dyn BlockBackend>,
    every: NonZeroU64,
    requests: AtomicU64,
}

impl BusyBackend {
    /// Reports BUSY at each request whose number, counted from 1, is a multiple of `every`.
    pub fn new(backend: Box<dyn BlockBackend>, every: NonZeroU64) -> Self {
        Self { backend, every, requests: AtomicU64::new(0) }
    }

    fn admit(&self) -> Result<(), BackendBusy> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(self.every.get()) {
            return Err(BackendBusy(
                "the device is configured to report BUSY at every Nth request".into(),
            ));
        }
        Ok(())
    }
}

impl BlockBackend for BusyBackend {
    fn plug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        self.admit()?;
        self.backend.plug(range)
    }

    fn unplug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        self.admit()?;
        self.backend.unplug(range)
    }

    fn unplug_all(&self) -> Result<(), BackendBusy> {
        self.admit()?;
        self.backend.unplug_all()
    }
}
