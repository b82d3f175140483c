//! Stops devices' work while their machine is paused.
//!
//! A thread that does devices' work enters the gate before each piece of work. Work that arrives while the
//! gate is closed stays pending: a doorbell stays signalled, and input and output stay in their queues.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    closed: bool,
    /// Number of [`Working`] guards that exist.
    working: usize,
}

/// The gate of a machine's devices, initially open.
#[derive(Default)]
pub struct DeviceGate {
    state: Mutex<State>,
    changed: Condvar,
}

/// Guard: while it lives, a piece of work is under way.
pub struct Working<'a>(&'a DeviceGate);

impl DeviceGate {
    /// Starts a piece of work, once the gate is open. Must not be called within another piece of work.
    pub fn enter(&self) -> Working<'_> {
        let mut state = self.lock();
        while state.closed {
            state = self.wait(state);
        }
        state.working += 1;
        Working(self)
    }

    /// Lets no more work start, and waits until none is under way, or the gate is opened.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        while state.closed && state.working > 0 {
            state = self.wait(state);
        }
    }

    /// Lets work start again.
    pub fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.lock().working -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn closing_waits_for_work_under_way_and_lets_none_start() {
        let (gate, ended, again) =
            (DeviceGate::default(), AtomicBool::new(false), AtomicBool::new(false));
        let (begun, has_begun) = mpsc::channel();
        thread::scope(|scope| {
            let (gate, ended, again) = (&gate, &ended, &again);
            scope.spawn(move || {
                let working = gate.enter();
                begun.send(()).unwrap();
                ended.store(true, Ordering::Relaxed);
                drop(working);
            });
            has_begun.recv().unwrap();
            gate.close();
            assert!(ended.load(Ordering::Relaxed));
            let later = scope.spawn(move || {
                drop(gate.enter());
                again.load(Ordering::Relaxed)
            });
            again.store(true, Ordering::Relaxed);
            gate.open();
            assert!(later.join().unwrap());
        });
    }
}
