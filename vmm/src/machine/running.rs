//! What of a running machine has to be ended.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::pause::Pause;
use crate::board::worker::Worker;
use crate::memory::host::HostMemory;
use crate::memory::slots::SlotId;

/// The threads of a machine, and its RAM.
pub struct Running {
    /// Where they are stopped.
    pub pause: Arc<Pause>,
    /// The vCPUs' threads.
    pub vcpus: Vec<JoinHandle<()>>,
    /// The devices' threads.
    pub workers: Vec<Worker>,
    /// Slots refer to this memory: it goes last.
    pub _ram: Vec<(HostMemory, SlotId)>,
}

impl Running {
    /// Ends every thread.
    pub fn end(self) {
        self.pause.end();
        for vcpu in self.vcpus {
            // A panic there has been reported already, and there is nothing left to do.
            let _ = vcpu.join();
        }
        self.workers.into_iter().for_each(Worker::stop);
    }
}
