//! The memory of a virtio-mem device: which blocks are plugged. Asserts that each call is for blocks in
//! the right state.

use std::sync::{Arc, Mutex, MutexGuard};

use devices::dma::Reachability;
use devices::virtio::mem::{BackendBusy, BlockBackend, BlockRange};

/// Bytes in a block.
pub const BLOCK_SIZE: u64 = 0x1_0000;
/// Blocks there are.
pub const BLOCKS: usize = 32;

/// Blocks, of which none is plugged at first.
#[derive(Clone, Default)]
pub struct Blocks(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    plugged: [bool; BLOCKS],
    is_busy: bool,
}

impl Blocks {
    /// Makes all requests fail, or succeed again.
    pub fn set_busy(&self, is_busy: bool) {
        self.state().is_busy = is_busy;
    }

    /// Bytes plugged.
    pub fn plugged_size(&self) -> u64 {
        let plugged = self.state().plugged;
        BLOCK_SIZE * plugged.iter().filter(|&&plugged| plugged).count() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing has panicked")
    }

    fn set(&self, range: BlockRange, plugged: bool) -> Result<(), BackendBusy> {
        let indices = range.indices();
        let mut state = self.state();
        let blocks = indices.start as usize..indices.end as usize;
        assert!(state.plugged[blocks.clone()].iter().all(|&before| before != plugged));
        if state.is_busy {
            return Err(BackendBusy("refused by the test".into()));
        }
        state.plugged[blocks].fill(plugged);
        Ok(())
    }
}

impl BlockBackend for Blocks {
    fn plug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        self.set(range, true)
    }

    fn unplug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        self.set(range, false)
    }

    fn unplug_all(&self) -> Result<(), BackendBusy> {
        let mut state = self.state();
        if state.is_busy {
            return Err(BackendBusy("refused by the test".into()));
        }
        state.plugged = [false; BLOCKS];
        Ok(())
    }
}

impl Reachability for Blocks {
    fn permits(&self, offset: u64, len: usize) -> bool {
        let blocks = offset / BLOCK_SIZE..(offset + len as u64).div_ceil(BLOCK_SIZE);
        self.state().plugged[blocks.start as usize..blocks.end as usize]
            .iter()
            .all(|&plugged| plugged)
    }
}
