//! What threads share.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a panicking thread leaves behind is still better served than left alone.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that nobody needs the result of work any more that may take the host long. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Nobody needs results any more.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Somebody needs results again.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// An error if nobody needs the result.
    pub fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Acquire) {
            true => Err(io::Error::other("the machine is ending")),
            false => Ok(()),
        }
    }
}
