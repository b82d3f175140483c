//! The files and directories that the guest has open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::descriptors::Descriptor;
use crate::listing::Listing;

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    /// The node ID of what is open.
    pub node: u64,
    pub descriptor: Descriptor,
    /// None for a file.
    pub directory: Option<OpenDirectory>,
}

/// What else there is to know of an open directory.
#[derive(Debug)]
pub struct OpenDirectory {
    pub device: u64,
    pub is_boundary: bool,
    pub listing: Mutex<Listing>,
}

#[derive(Debug, Default)]
struct HandleTable {
    by_id: HashMap<u64, Arc<Handle>>,
    last_id: u64,
}

/// All of the guest's handles. An ID is never used twice.
#[derive(Debug, Default)]
pub struct Handles(Mutex<HandleTable>);

impl Handles {
    fn lock(&self) -> MutexGuard<'_, HandleTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a handle to the guest.
    pub fn add(&self, handle: Handle) -> u64 {
        let mut table = self.lock();
        table.last_id += 1;
        let id = table.last_id;
        table.by_id.insert(id, Arc::new(handle));
        id
    }

    /// The file that the guest has open as `id`.
    pub fn file(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.lock().by_id.get(&id).cloned();
        handle.filter(|handle| handle.directory.is_none()).ok_or(Errno::BADF)
    }

    /// The directory that the guest has open as `id`.
    pub fn directory(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        let handle = self.lock().by_id.get(&id).cloned();
        handle.filter(|handle| handle.directory.is_some()).ok_or(Errno::BADF)
    }

    /// Whether the guest has this node open.
    pub fn has_open(&self, node: u64) -> bool {
        self.lock().by_id.values().any(|handle| handle.node == node)
    }

    /// The guest closes `id`.
    pub fn remove(&self, id: u64) -> Result<(), Errno> {
        // Closed when the lock is no longer held: closing may take the host a while.
        let handle = self.lock().by_id.remove(&id);
        handle.map(drop).ok_or(Errno::BADF)
    }

    /// The guest closes everything.
    pub fn remove_all(&self) {
        let handles = std::mem::take(&mut self.lock().by_id);
        drop(handles);
    }
}
