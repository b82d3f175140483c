//! Leases: how long a device's access may rely on a permission.
//!
//! A device looks up whether it may access memory and where that memory is, and accesses it. The result
//! of the lookup must hold until the access is done, so all of this happens within a lease. Code that
//! takes a permission away (bus mastering, a translation, a plugged block) changes the state first,
//! which every later lease sees, and then waits for the leases from before to end.
//!
//! So this is the rule, whatever thread a device works on: **memory is accessed within a lease, and
//! what was taken away is not put to another use before the leases have been settled.** In particular
//!
//! - an unplugged block's memory goes after that (the machine's block backend drains);
//! - a driver's UNMAP, DETACH or ATTACH is answered after that (`virtio::iommu::translations`);
//! - a vCPU that has cleared Bus Master Enable, reset a queue, or taken the IOMMU's bypass away by a
//!   register executes its next instruction after that (it settles after each exit).
//!
//! To grant something, such as a plugged block, needs no waiting: an access that does not see it yet is
//! refused.
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
    /// The value of `revoked` up to which no earlier lease is left.
    settled: AtomicU64,
}

thread_local! {
    /// How many leases this thread holds, one within the other. An access to registers may lead to
    /// accesses of their device.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// While this lives, permissions that were looked up hold.
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

    /// Records that a permission has been taken away. The caller must not go on before
    /// [`Self::settle`]. Never waits, so it may be called with a device's lock held.
    pub fn revoke(&self) {
        self.0.revoked.fetch_add(1, Ordering::Release);
    }

    /// Waits until no lease is left from before the latest [`Self::revoke`].
    ///
    /// To be called without any device's lock, for which a lease may wait. Within a lease it does
    /// nothing: there a device's own access took the permission away, and ends with that lease.
    pub fn settle(&self) {
        let revoked = self.0.revoked.load(Ordering::Acquire);
        if self.0.settled.load(Ordering::Acquire) >= revoked || HELD.get() > 0 {
            return;
        }
        drop(self.0.under_way.write().unwrap_or_else(PoisonError::into_inner));
        self.0.settled.fetch_max(revoked, Ordering::Release);
    }

    /// [`Self::revoke`] and [`Self::settle`]: waits until no lease is left that may rely on the
    /// permission.
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
    fn taking_a_permission_away_waits_for_earlier_leases() {
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
    fn without_a_revocation_settling_does_not_wait() {
        let leases = Leases::default();
        let lease = leases.take();
        thread::scope(|scope| {
            scope.spawn(|| leases.settle());
        });
        drop(lease);
    }

    #[test]
    fn a_nested_lease_neither_waits_nor_is_waited_for() {
        let leases = Leases::default();
        let outer = leases.take();
        let inner = leases.take();
        leases.drain();
        drop((inner, outer));
        leases.settle();
        assert_eq!(HELD.get(), 0);
    }
}
