//! A shared directory as a virtio-fs device's server.

use devices::virtio::fs::FileServer;
use shared_dir::{Buffers, SharedDirectory};

/// Answers messages on a directory.
pub struct FuseServer(pub SharedDirectory);

impl FileServer for FuseServer {
    fn answer(&self, request: &mut [u8], reply: &mut [u8]) -> usize {
        self.0.handle(&Buffers::over(request, reply))
    }

    fn reset(&self) {
        self.0.reset();
    }
}
