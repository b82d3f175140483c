//! What has to be shut down when a machine ends.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::pause::Pause;
use crate::board::worker::Worker;
use crate::memory::host::HostMemory;
use crate::memory::slots::SlotId;

/// The threads of a machine, and its RAM.
pub struct Running {
    /// Stops them.
    pub pause: Arc<Pause>,
    /// The vCPUs' threads.
    pub vcpus: Vec<JoinHandle<()>>,
    /// The devices' threads.
    pub workers: Vec<Worker>,
    /// Memory slots refer to this memory, so it is freed last.
    pub _ram: Vec<(HostMemory, SlotId)>,
}

impl Running {
    /// Ends and joins every thread.
    pub fn end(self) {
        self.pause.end();
        for vcpu in self.vcpus {
            // A panic of the thread has been reported already.
            let _ = vcpu.join();
        }
        self.workers.into_iter().for_each(Worker::stop);
    }
}
