//! Takes every vCPU out of KVM_RUN together, and lets them back in.
//!
//! A vCPU enters the gate before KVM_RUN and leaves it after. Closing the gate kicks the vCPUs inside and
//! waits until all are out. A vCPU that is out may still handle its exit, or wait for a device's lock that
//! the thread that closes the gate holds: only guest code is stopped.
//!
//! [`VcpuGate::hold`] waits longer: until every vCPU has handled its exit and waits at the gate.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::kick::{self, Kicker};

/// Where a vCPU's thread is.
#[derive(Clone, Copy)]
enum Place {
    /// Out of KVM_RUN, handling an exit.
    Outside,
    /// At the closed gate.
    Waiting,
    /// In KVM_RUN.
    Inside(Kicker),
    /// It has ended.
    Gone,
}

struct State {
    /// Number of [`Closed`] guards and holds.
    closers: usize,
    vcpus: Vec<Place>,
    ended: bool,
}

impl State {
    fn is_any_inside(&self) -> bool {
        self.vcpus.iter().any(|place| matches!(place, Place::Inside(_)))
    }

    fn are_all_waiting(&self) -> bool {
        self.vcpus.iter().all(|place| matches!(place, Place::Waiting | Place::Gone))
    }

    /// Lets no vCPU in, and kicks those inside.
    fn close(&mut self) {
        self.closers += 1;
        for place in &self.vcpus {
            if let Place::Inside(kicker) = place {
                kicker.kick();
            }
        }
    }
}

/// The gate of a virtual machine.
pub struct VcpuGate {
    state: Mutex<State>,
    changed: Condvar,
}

/// Guard: while it lives, no vCPU executes guest code.
pub struct Closed<'a>(&'a VcpuGate);

/// Guard: while it lives, a vCPU may be in KVM_RUN.
pub struct Entered<'a> {
    gate: &'a VcpuGate,
    vcpu: usize,
}

impl VcpuGate {
    /// A gate for `vcpus` vCPUs, open.
    pub fn new(vcpus: usize) -> Self {
        kick::install_handler();
        let state = State { closers: 0, vcpus: vec![Place::Outside; vcpus], ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Lets the calling thread take `vcpu` into KVM_RUN, once the gate is open. None when the
    /// machine has ended.
    ///
    /// `kicker` kicks the calling thread.
    pub fn enter(&self, vcpu: usize, kicker: Kicker) -> Option<Entered<'_>> {
        let mut state = self.lock();
        while state.closers > 0 && !state.ended {
            state.vcpus[vcpu] = Place::Waiting;
            self.changed.notify_all();
            state = self.wait(state);
        }
        if state.ended {
            return None;
        }
        kick::rearm();
        state.vcpus[vcpu] = Place::Inside(kicker);
        Some(Entered { gate: self, vcpu })
    }

    /// Records that the thread of `vcpu` has ended.
    pub fn leave(&self, vcpu: usize) {
        self.lock().vcpus[vcpu] = Place::Gone;
        self.changed.notify_all();
    }

    /// Takes all vCPUs out of KVM_RUN and keeps them out while the result lives.
    pub fn close(&self) -> Closed<'_> {
        let mut state = self.lock();
        // The guard is created before waiting, so that the gate opens again even after a panic.
        state.close();
        let closed = Closed(self);
        while state.is_any_inside() {
            state = self.wait(state);
        }
        closed
    }

    /// Takes all vCPUs out of KVM_RUN, and waits until each has handled its exit. They stay out until
    /// [`Self::release`]. Returns false if the machine has ended; then nothing must be released.
    pub fn hold(&self) -> bool {
        let mut state = self.lock();
        state.close();
        while !state.ended && !state.are_all_waiting() {
            state = self.wait(state);
        }
        let ended = state.ended;
        drop(state);
        if ended {
            self.release();
        }
        !ended
    }

    /// Undoes one [`Self::hold`].
    pub fn release(&self) {
        self.lock().closers -= 1;
        self.changed.notify_all();
    }

    /// Takes all vCPUs out of KVM_RUN, for good.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
        drop(self.close());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.vcpus[self.vcpu] = Place::Outside;
        if state.closers > 0 {
            self.gate.changed.notify_all();
        }
    }
}
