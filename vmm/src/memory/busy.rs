//! A backend that is busy at will: what a driver meets on a host that is short of memory.

use std::num::NonZeroU64;

use devices::virtio::mem::{BackendBusy, BlockBackend, BlockRange};

/// Carries out all requests but every so manieth, which gets BUSY.
pub struct BusyBackend {
    backend: Box<dyn BlockBackend>,
    every: NonZeroU64,
    requests: u64,
}

impl BusyBackend {
    /// Has `backend` be busy at each request whose number, counted from 1, is a multiple of `every`.
    pub fn new(backend: Box<dyn BlockBackend>, every: NonZeroU64) -> Self {
        Self { backend, every, requests: 0 }
    }

    fn admit(&mut self) -> Result<(), BackendBusy> {
        self.requests += 1;
        if self.requests.is_multiple_of(self.every.get()) {
            return Err(BackendBusy("this device is made to be busy".into()));
        }
        Ok(())
    }
}

impl BlockBackend for BusyBackend {
    fn plug(&mut self, range: BlockRange) -> Result<(), BackendBusy> {
        self.admit()?;
        self.backend.plug(range)
    }

    fn unplug(&mut self, range: BlockRange) -> Result<(), BackendBusy> {
        self.admit()?;
        self.backend.unplug(range)
    }

    fn unplug_all(&mut self) -> Result<(), BackendBusy> {
        self.admit()?;
        self.backend.unplug_all()
    }
}
