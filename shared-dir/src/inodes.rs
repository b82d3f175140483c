//! The files that the guest knows, by node ID.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, makedev, openat, statx,
};
use rustix::io::Errno;

use crate::descriptors::{Descriptor, Descriptors, Purpose};
use crate::wire;

/// So many directories are opened by name at most, one in the other, to get to a node. Directories are
/// the last to go without a descriptor, and few trees are as deep.
const MOST_STEPS: usize = 256;

/// So many files the guest may know, so that it cannot use up this process's memory by looking up
/// everything. A guest with Linux needs about 1 KiB of its own memory for each, and forgets some when that
/// runs short.
const MOST_NODES: usize = 1 << 21;

/// Opens `name` in `directory` as a node: whatever it is, without side effects, and without following
/// it.
pub fn open_node(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// A file's attributes on the host.
pub struct Status(pub Statx);

impl Status {
    /// Of the file that a descriptor is of.
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        let fields = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
        statx(file, c"", AtFlags::EMPTY_PATH, fields).map(Self)
    }

    /// The file system's device number.
    pub fn device(&self) -> u64 {
        makedev(self.0.stx_dev_major, self.0.stx_dev_minor)
    }

    /// Which file it is, as long as it exists.
    pub fn identity(&self) -> Identity {
        Identity { device: self.device(), inode: self.0.stx_ino, mount: self.0.stx_mnt_id }
    }

    /// What it is.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.0.stx_mode.into())
    }

    /// When it was made, where the file system knows.
    fn birth(&self) -> (i64, u32) {
        let StatxTimestamp { tv_sec, tv_nsec, .. } = self.0.stx_btime;
        (tv_sec, tv_nsec)
    }
}

/// A file among those that exist. A file that is open keeps its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
    mount: u64,
}

/// A name in a directory.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory's node ID.
    pub parent: u64,
    pub name: CString,
}

/// A file that the guest knows.
#[derive(Debug)]
struct Inode {
    identity: Identity,
    birth: (i64, u32),
    file_type: FileType,
    /// Whether the share ends here; see [`crate::boundary`].
    is_boundary: bool,
    /// How many replies gave it to the guest which that has not taken back.
    lookups: u64,
    /// Where it was found last. None for the root.
    place: Option<Place>,
    /// None if it is opened by its place, for want of descriptors.
    descriptor: Option<Arc<Descriptor>>,
}

/// A file, ready for use.
#[derive(Debug, Clone)]
pub struct Node {
    pub id: u64,
    /// `O_PATH`.
    pub descriptor: Arc<Descriptor>,
    pub file_type: FileType,
    pub device: u64,
    pub is_boundary: bool,
}

/// All of the guest's files. An ID is never used twice.
#[derive(Debug)]
struct InodeTable {
    by_id: HashMap<u64, Inode>,
    by_identity: HashMap<Identity, u64>,
    next_id: u64,
    /// How many have no descriptor.
    by_name: usize,
    /// Device numbers, in the order in which they were met.
    devices: Vec<u64>,
}

impl InodeTable {
    /// The way to node `id`: the next above it that has a descriptor, and what to open from there,
    /// last first.
    fn way(&self, id: u64) -> Result<(Node, Vec<(u64, Place)>), Errno> {
        let mut steps = Vec::new();
        let mut at = id;
        loop {
            let inode = self.by_id.get(&at).ok_or(Errno::STALE)?;
            if let Some(descriptor) = &inode.descriptor {
                return Ok((inode.node(at, descriptor.clone()), steps));
            }
            if steps.len() == MOST_STEPS {
                return Err(Errno::NAMETOOLONG);
            }
            let place = inode.place.clone().ok_or(Errno::STALE)?;
            let parent = place.parent;
            steps.push((at, place));
            at = parent;
        }
    }

    /// The node that `status` is of, if the guest knows it.
    fn find(&self, status: &Status) -> Option<u64> {
        let id = *self.by_identity.get(&status.identity())?;
        // Without a descriptor the file may be gone, and its number another file's.
        let inode = self.by_id.get(&id)?;
        (inode.descriptor.is_some() || inode.birth == status.birth()).then_some(id)
    }

    /// Adds a node without a descriptor. Gives its ID.
    fn add(&mut self, status: &Status, place: Place, is_boundary: bool) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.by_identity.insert(status.identity(), id);
        self.by_id.insert(id, Inode::new(status, Some(place), is_boundary));
        self.by_name += 1;
        id
    }

    /// Counts lookups down. Gives the node if none is left.
    fn forget(&mut self, id: u64, lookups: u64) -> Option<Inode> {
        let inode = self.by_id.get_mut(&id).filter(|_| id != wire::ROOT)?;
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups > 0 {
            return None;
        }
        let inode = self.by_id.remove(&id)?;
        if inode.descriptor.is_none() {
            self.by_name -= 1;
        }
        if self.by_identity.get(&inode.identity) == Some(&id) {
            self.by_identity.remove(&inode.identity);
        }
        Some(inode)
    }

    /// Removes all nodes but the root, and gives them.
    fn forget_all(&mut self) -> HashMap<u64, Inode> {
        self.by_identity.retain(|_, id| *id == wire::ROOT);
        self.by_name = 0;
        let root = self.by_id.remove_entry(&wire::ROOT);
        std::mem::replace(&mut self.by_id, root.into_iter().collect())
    }
}

impl Inode {
    fn new(status: &Status, place: Option<Place>, is_boundary: bool) -> Self {
        Self {
            identity: status.identity(),
            birth: status.birth(),
            file_type: status.file_type(),
            is_boundary,
            lookups: 0,
            place,
            descriptor: None,
        }
    }

    fn node(&self, id: u64, descriptor: Arc<Descriptor>) -> Node {
        let Self { identity: Identity { device, .. }, file_type, is_boundary, .. } = *self;
        Node { id, descriptor, file_type, device, is_boundary }
    }
}

/// The table, and where its descriptors come from.
pub struct Inodes {
    table: Mutex<InodeTable>,
    descriptors: Descriptors,
    /// [`MOST_NODES`], but for tests.
    pub most: usize,
}

impl Inodes {
    /// Nothing but the root.
    pub fn new(root: OwnedFd, status: &Status, descriptors: Descriptors) -> Self {
        let mut inode = Inode::new(status, None, false);
        // It was open before anything was counted.
        inode.descriptor = Some(Arc::new(Descriptor::temporary(root)));
        let table = InodeTable {
            by_identity: HashMap::from([(inode.identity, wire::ROOT)]),
            by_id: HashMap::from([(wire::ROOT, inode)]),
            next_id: wire::ROOT + 1,
            by_name: 0,
            devices: vec![status.device()],
        };
        Self { table: Mutex::new(table), descriptors, most: MOST_NODES }
    }

    fn lock(&self) -> MutexGuard<'_, InodeTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many files the guest knows.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    /// The node of this ID.
    pub fn node(&self, id: u64) -> Result<Node, Errno> {
        let (mut node, steps) = self.lock().way(id)?;
        for (id, Place { name, .. }) in steps.into_iter().rev() {
            let descriptor = match open_node(&*node.descriptor, &name) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
                descriptor => descriptor?,
            };
            let status = Status::of(&descriptor)?;
            let table = self.lock();
            let inode = table.by_id.get(&id).ok_or(Errno::STALE)?;
            if (inode.identity, inode.birth) != (status.identity(), status.birth()) {
                return Err(Errno::STALE);
            }
            node = inode.node(id, Arc::new(Descriptor::temporary(descriptor)));
        }
        Ok(node)
    }

    /// `ENFILE` if the guest may not get to know another file. For what is about to be made.
    pub fn check_room(&self) -> Result<(), Errno> {
        self.check_room_in(&self.lock())
    }

    fn check_room_in(&self, table: &InodeTable) -> Result<(), Errno> {
        if table.by_id.len() < self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// The guest gets to know what is at `place`. Gives its node ID, or `ENFILE` if it knows too many.
    pub fn remember(
        &self,
        descriptor: OwnedFd,
        status: &Status,
        place: Place,
        is_boundary: bool,
    ) -> Result<u64, Errno> {
        let mut table = self.lock();
        let id = match table.find(status) {
            Some(id) => id,
            None => {
                self.check_room_in(&table)?;
                table.add(status, place.clone(), is_boundary)
            }
        };
        let table = &mut *table;
        let Some(inode) = table.by_id.get_mut(&id) else { return Ok(id) };
        inode.lookups = inode.lookups.saturating_add(1);
        if id != wire::ROOT {
            inode.place = Some(place);
        }
        let purpose = match inode.file_type {
            FileType::Directory => Purpose::Directory,
            _ => Purpose::File,
        };
        if inode.descriptor.is_none()
            && let Some(permit) = self.descriptors.permit(purpose)
        {
            inode.descriptor = Some(Arc::new(Descriptor::held(descriptor, permit)));
            table.by_name -= 1;
        }
        Ok(id)
    }

    /// The guest takes back that it knows `id`, `lookups` times.
    pub fn forget(&self, id: u64, lookups: u64) {
        // Closed without the lock: with its last descriptor the host frees a file that has no name.
        let forgotten = self.lock().forget(id, lookups);
        drop(forgotten);
    }

    /// The guest forgets everything.
    pub fn forget_all(&self) {
        let forgotten = self.lock().forget_all();
        drop(forgotten);
    }

    /// A name in `directory` is about to go. If the guest knows what it is of by this name only and has
    /// it open, it is held by a descriptor from now on, so that it outlives its name.
    pub fn keep(
        &self,
        directory: &Node,
        name: &CStr,
        is_open: impl Fn(u64) -> bool,
    ) -> Result<(), Errno> {
        if self.lock().by_name == 0 {
            return Ok(());
        }
        let descriptor = open_node(&*directory.descriptor, name)?;
        let status = Status::of(&descriptor)?;
        let mut table = self.lock();
        let table = &mut *table;
        let id = table.find(&status).filter(|id| is_open(*id));
        let Some(inode) = id.and_then(|id| table.by_id.get_mut(&id)) else { return Ok(()) };
        if inode.descriptor.is_none() {
            let permit = self.descriptors.permit(Purpose::Required).ok_or(Errno::NFILE)?;
            inode.descriptor = Some(Arc::new(Descriptor::held(descriptor, permit)));
            table.by_name -= 1;
        }
        Ok(())
    }

    /// What is in `directory` by this name was moved there.
    pub fn moved(&self, directory: &Node, name: &CStr) {
        let status = open_node(&*directory.descriptor, name).and_then(Status::of);
        // If it is gone already, there is no better place.
        let Ok(status) = status else { return };
        let mut table = self.lock();
        let id = table.find(&status);
        if let Some(inode) = id.and_then(|id| table.by_id.get_mut(&id)) {
            inode.place = Some(Place { parent: directory.id, name: name.to_owned() });
        }
    }

    /// An inode number for the guest, which sees one device where the host may have several: the number
    /// of the device goes to the 16 bits at the top, which file systems hardly use.
    pub fn number(&self, device: u64, inode: u64) -> u64 {
        let devices = &mut self.lock().devices;
        let index = devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            devices.push(device);
            devices.len() - 1
        });
        inode ^ (index as u64) << 48
    }
}
