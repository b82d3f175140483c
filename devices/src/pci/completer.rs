//! What answers in a function's address ranges (the "Completer" of PCI Express Base 6.0): the
//! part of a function that needs no register, and so not the registers' lock.

use std::sync::{Arc, Mutex};

use log::trace;

use super::state::FunctionState;
use super::{BarIndex, IntxPin, Msix, PciDevice, ResetKind};
use crate::lock;

/// The part of a function that an access goes to.
#[derive(Clone)]
pub(super) enum Target {
    Device(BarIndex),
    MsixTable(Arc<Msix>),
    MsixPending(Arc<Msix>),
    Rom,
}

pub(super) struct Completer {
    pub state: Arc<FunctionState>,
    pub device: Arc<Mutex<dyn PciDevice>>,
    pub msix: Option<Arc<Msix>>,
    pub intx: Option<Arc<IntxPin>>,
    pub rom: Vec<u8>,
}

impl Completer {
    pub fn read(&self, target: &Target, offset: u64, data: &mut [u8]) {
        self.state.count_read();
        match target {
            Target::Device(bar) => {
                lock(&self.device).read_bar(*bar, offset, data);
                trace!("{}: {bar:?} {offset:#x} -> {data:02x?}", self.state);
            }
            Target::MsixTable(msix) => msix.read_table(offset, data),
            Target::MsixPending(msix) => msix.read_pending(offset, data),
            Target::Rom => {
                data.fill(0);
                // No ROM is larger than that, so it fits.
                let contents = self.rom.iter().skip(offset as usize);
                data.iter_mut().zip(contents).for_each(|(data, byte)| *data = *byte);
            }
        }
    }

    pub fn write(&self, target: &Target, offset: u64, data: &[u8]) {
        self.state.count_write();
        match target {
            Target::Device(bar) => {
                trace!("{}: {bar:?} {offset:#x} <- {data:02x?}", self.state);
                lock(&self.device).write_bar(*bar, offset, data);
            }
            Target::MsixTable(msix) => msix.write_table(offset, data),
            Target::MsixPending(_) | Target::Rom => {}
        }
    }

    /// Resets everything but the registers, which have been reset already.
    pub fn reset(&self, kind: ResetKind) {
        self.state.count_reset();
        // Under the device's lock, so that an interrupt that it was about to raise is gone too.
        let mut device = lock(&self.device);
        device.reset(kind);
        if let Some(msix) = &self.msix {
            msix.reset();
        }
        if let Some(intx) = &self.intx {
            intx.set_level(false);
        }
    }
}
