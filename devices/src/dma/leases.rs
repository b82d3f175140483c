//! Leases: how long an access of a device may rely on what it was permitted.
//!
//! A device asks whether it may access memory, is told where the memory is, and accesses it. What it was
//! told must hold until it is done. So it does all three within a lease. Whoever takes a permission away
//! (bus mastering, a translation, a plugged block) changes the state first, which every later lease
//! sees, and then waits for the leases from before to end.
//!
//! So this is the rule, whatever thread a device works on: **memory is accessed within a lease, and nothing
//! that was taken away is good to others before the leases have been settled.** In particular
//!
//! - an unplugged block's memory goes after that (the machine's block backend drains);
//! - a driver's UNMAP, DETACH or ATTACH is answered after that (`virtio::iommu::translations`);
//! - a vCPU that has cleared Bus Master Enable, reset a queue, or taken the IOMMU's bypass away by a
//!   register executes its next instruction after that (it settles after each exit).
//!
//! What is given, such as a plugged block, waits for nobody: whoever does not see it yet is refused.
//!
//! A lease is short: a copy of some KiB. Nothing within one waits for a vCPU or for the host.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// The leases of all devices of a machine.
#[derive(Clone, Default)]
pub struct Leases(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Read by each lease as long as it lasts.
    under_way: RwLock<()>,
    /// How often a permission was taken away.
    revoked: AtomicU64,
    /// Of which so many times no lease from before is left.
    settled: AtomicU64,
}

thread_local! {
    /// How many leases this thread holds, one within the other. An access to registers may lead to
    /// accesses of their device.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// While this lives, permissions that were found are good.
pub struct Lease<'a> {
    /// None within another lease of the same thread.
    _under_way: Option<RwLockReadGuard<'a, ()>>,
    // It counts for the thread that took it.
    _not_send: PhantomData<*const ()>,
}

impl Leases {
    /// A lease that starts now.
    pub fn take(&self) -> Lease<'_> {
        let outermost = HELD.replace(HELD.get() + 1) == 0;
        let under_way =
            outermost.then(|| self.0.under_way.read().unwrap_or_else(PoisonError::into_inner));
        Lease { _under_way: under_way, _not_send: PhantomData }
    }

    /// A permission has been taken away. Whoever did it must not go on before [`Self::settle`]. Never
    /// waits, so it may be called with a device's lock held.
    pub fn revoke(&self) {
        self.0.revoked.fetch_add(1, Ordering::Release);
    }

    /// Waits until no lease is left from before the latest [`Self::revoke`].
    ///
    /// To be called without any device's lock, for which a lease may wait. Within a lease it does
    /// nothing: a device's own access, which took the permission away, is over when it is.
    pub fn settle(&self) {
        let revoked = self.0.revoked.load(Ordering::Acquire);
        if self.0.settled.load(Ordering::Acquire) >= revoked || HELD.get() > 0 {
            return;
        }
        drop(self.0.under_way.write().unwrap_or_else(PoisonError::into_inner));
        self.0.settled.fetch_max(revoked, Ordering::Release);
    }

    /// A permission has been taken away: waits until no lease is left that may rely on it.
    pub fn drain(&self) {
        self.revoke();
        self.settle();
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn whoever_takes_a_permission_away_waits_for_the_leases_from_before() {
        let leases = Leases::default();
        let (taken, is_taken) = mpsc::channel();
        let (end, is_ended) = mpsc::channel::<()>();
        let over = AtomicU64::new(0);
        thread::scope(|scope| {
            let (leases, over) = (&leases, &over);
            scope.spawn(move || {
                let lease = leases.take();
                taken.send(()).unwrap();
                is_ended.recv().unwrap();
                over.store(1, Ordering::Relaxed);
                drop(lease);
            });
            is_taken.recv().unwrap();
            let waiting = scope.spawn(move || {
                leases.drain();
                over.load(Ordering::Relaxed)
            });
            end.send(()).unwrap();
            assert_eq!(waiting.join().unwrap(), 1);
        });
    }

    #[test]
    fn nothing_is_waited_for_where_nothing_was_taken_away() {
        let leases = Leases::default();
        let lease = leases.take();
        thread::scope(|scope| {
            scope.spawn(|| leases.settle());
        });
        drop(lease);
    }

    #[test]
    fn a_lease_within_a_lease_neither_waits_nor_is_waited_for() {
        let leases = Leases::default();
        let outer = leases.take();
        let inner = leases.take();
        leases.drain();
        drop((inner, outer));
        leases.settle();
        assert_eq!(HELD.get(), 0);
    }
}
