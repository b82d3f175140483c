//! Locks and cancellation shared between threads.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a thread has panicked while it held the lock.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cancels work that may take the host long. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Cancels work that is under way, and all work until [`Self::clear`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Undoes [`Self::cancel`].
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// An error if work is cancelled.
    pub fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Acquire) {
            true => Err(io::Error::other("the machine is ending")),
            false => Ok(()),
        }
    }
}
