//! File descriptors, of which a process has only so many.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many descriptors shared directories may hold, all together. Clones count together.
///
/// Nodes that are files may take half of them, directories three quarters, and what cannot do without,
/// all: what is open, and the nodes of files that are removed while they are open. Beyond, the guest's
/// `open` and such an `unlink` fail with `ENFILE`, and the rest of the process has what it needs.
#[derive(Debug, Clone)]
pub struct Descriptors(Arc<Count>);

#[derive(Debug)]
struct Count {
    most: usize,
    held: AtomicUsize,
}

/// What a descriptor is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// A node that could be opened by name each time.
    File,
    /// The same, but with files below it.
    Directory,
    /// What must have a descriptor.
    Required,
}

impl Descriptors {
    /// Left to the rest of the process, and to what is open only during a call.
    const RESERVE: u64 = 256;
    /// More are not taken, however many a process may have: for each, the host's kernel keeps a file in
    /// memory that it could drop otherwise, with 1 to 2 KiB.
    const MOST: u64 = 1 << 18;

    /// Raises this process's limit as far as it may go, and takes all of it but a reserve, up to 2^18.
    pub fn of_process() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: maximum, maximum };
        let limit = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => maximum,
            Err(_) => current,
        };
        // None is without limit.
        let limit = limit.unwrap_or(u64::MAX);
        Self::at_most(limit.saturating_sub(Self::RESERVE).max(limit / 2).min(Self::MOST) as usize)
    }

    /// So many.
    pub fn at_most(most: usize) -> Self {
        Self(Arc::new(Count { most, held: AtomicUsize::new(0) }))
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// The right to hold one more, if there is one left for this purpose.
    pub(crate) fn permit(&self, purpose: Purpose) -> Option<Permit> {
        let most = match purpose {
            Purpose::File => self.0.most / 2,
            Purpose::Directory => self.0.most / 4 * 3,
            Purpose::Required => self.0.most,
        };
        let one_more = |held| (held < most).then_some(held + 1);
        self.0.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Permit(self.0.clone()))
    }
}

/// The right to hold a descriptor.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Count>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A descriptor that may be held.
#[derive(Debug)]
pub(crate) struct Descriptor {
    descriptor: OwnedFd,
    /// None if it is closed at the end of the call.
    _permit: Option<Permit>,
}

impl Descriptor {
    /// `descriptor`, held for as long as it likes.
    pub fn held(descriptor: OwnedFd, permit: Permit) -> Self {
        Self { descriptor, _permit: Some(permit) }
    }

    /// `descriptor` for one call.
    pub fn temporary(descriptor: OwnedFd) -> Self {
        Self { descriptor, _permit: None }
    }

    /// A path by which the very file is reached, and be it a symbolic link.
    pub fn path(&self) -> String {
        descriptor_path(&self.descriptor)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A path by which the very file is reached that `descriptor` is of (proc(5)).
pub(crate) fn descriptor_path(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_that_need_no_descriptor_leave_some_to_those_that_do() {
        let descriptors = Descriptors::at_most(4);
        let take = |purpose| descriptors.permit(purpose);
        let file = (take(Purpose::File), take(Purpose::File));
        assert!(file.0.is_some() && file.1.is_some() && take(Purpose::File).is_none());
        let directory = take(Purpose::Directory);
        assert!(directory.is_some() && take(Purpose::Directory).is_none());
        let required = take(Purpose::Required);
        assert!(required.is_some() && take(Purpose::Required).is_none());
        assert_eq!(descriptors.held(), 4);
        drop((file, directory));
        assert_eq!(descriptors.held(), 1);
        assert!(take(Purpose::File).is_some());
    }

    #[test]
    fn a_process_may_use_its_hard_limit() {
        let descriptors = Descriptors::of_process();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(descriptors.0.most > 0 && descriptors.0.most <= 1 << 18);
    }
}
